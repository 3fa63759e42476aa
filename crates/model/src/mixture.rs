//! A mixture: experts of one base and the way tokens choose among them.

use sha2::{Digest, Sha256};

use crate::{
    expert_set::ExpertSet,
    router::{Granularity, Router, RouterInput},
};

/// How tokens choose among experts.
#[derive(Debug, Clone)]
pub enum Routing {
    /// Every expert counts fully for every token; with one expert this is that expert alone.
    All,
    /// The same gates for every token, one an expert.
    Fixed(Vec<f32>),
    /// One expert, drawn evenly from (seed, position, token), counts fully: the baseline that a router has to beat.
    Random {
        /// Of the draw.
        seed: u64,
    },
    /// A trained router.
    Learned(Router),
}

/// Experts and their routing.
#[derive(Debug, Clone)]
pub struct Mixture {
    /// The experts.
    pub experts: ExpertSet,
    /// The choice among them.
    pub routing: Routing,
}

impl Mixture {
    /// One expert that always counts fully, or several that are added up.
    pub fn all(experts: ExpertSet) -> Self {
        Self { experts, routing: Routing::All }
    }

    /// A short name for everything that the mixture adds to its base: the same values give the same name.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        let router = match &self.routing {
            Routing::Learned(router) => router.weights.iter().chain(&router.bias).collect(),
            _ => Vec::new(),
        };
        for values in self.experts.params.iter().chain(router) {
            values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
        }
        match &self.routing {
            Routing::Learned(router) => hasher.update(format!("{:?}", router.config)),
            other => hasher.update(format!("{other:?}")),
        }
        hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The router decides once a sequence, over its whole prompt: a prompt cannot be computed in parts, nor shared in part.
    pub fn decides_for_sequences(&self) -> bool {
        matches!(&self.routing, Routing::Learned(router) if router.config.granularity == Granularity::Sequence)
    }

    /// The router reads the base's final hidden states, so a pass runs the base first.
    pub fn reads_base_last(&self) -> bool {
        matches!(&self.routing, Routing::Learned(router) if router.config.input == RouterInput::BaseLast)
    }
}
