//! A mixture: experts of one base and the way tokens choose among them.

use crate::{
    expert_set::ExpertSet,
    router::{Router, RouterInput},
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

    /// The router reads the base's final hidden states, so a pass runs the base first.
    pub fn reads_base_last(&self) -> bool {
        matches!(&self.routing, Routing::Learned(router) if router.config.input == RouterInput::BaseLast)
    }
}
