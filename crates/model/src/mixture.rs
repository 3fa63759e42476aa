//! A mixture: experts of one base and the way tokens choose among them.

use sha2::{Digest, Sha256};

use crate::{
    Error, Result,
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

    /// A short name for everything that the mixture adds to its base: the same values give the same name, and others another one. It
    /// covers the factors, their ranks, scales and places, the order of the experts, and the routing.
    ///
    /// # Errors
    /// The router's configuration cannot be written.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let number = |hasher: &mut Sha256, value: usize| hasher.update((value as u64).to_le_bytes());
        hasher.update(b"mixture 2\n");
        number(&mut hasher, self.experts.len());
        number(&mut hasher, self.experts.layouts.len());
        for layout in &self.experts.layouts {
            for module in &layout.modules {
                let Some(module) = module else {
                    number(&mut hasher, 0);
                    continue;
                };
                for size in [1, module.k, module.n, module.offset] {
                    number(&mut hasher, size);
                }
                module.ranks.iter().for_each(|&rank| number(&mut hasher, rank));
                module.scales.iter().for_each(|scale| hasher.update(scale.to_le_bytes()));
            }
        }
        let router = match &self.routing {
            Routing::Learned(router) => router.weights.iter().chain(&router.bias).collect(),
            _ => Vec::new(),
        };
        for values in self.experts.params.iter().chain(router) {
            number(&mut hasher, values.len());
            for value in values.iter() {
                hasher.update(value.to_le_bytes());
            }
        }
        match &self.routing {
            Routing::All => hasher.update(b"all"),
            Routing::Fixed(gates) => {
                hasher.update(b"fixed");
                gates.iter().for_each(|gate| hasher.update(gate.to_le_bytes()));
            }
            Routing::Random { seed } => {
                hasher.update(b"random");
                hasher.update(seed.to_le_bytes());
            }
            Routing::Learned(router) => {
                hasher.update(b"learned");
                let config = serde_json::to_vec(&router.config)
                    .map_err(|e| Error::Unsupported(format!("the router's configuration: {e}")))?;
                hasher.update(config);
            }
        }
        Ok(hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        expert::PerModule,
        expert_set::{BlockLayout, ModuleLayout},
        router::{GateScale, RouterConfig},
    };

    /// Two experts in one module of one block.
    fn experts(ranks: [usize; 2], scales: [f32; 2], place: usize, first: f32) -> ExpertSet {
        let layout = ModuleLayout { k: 2, n: 3, offset: 0, ranks: ranks.to_vec(), scales: scales.to_vec() };
        let modules = PerModule::from_fn(|module| (module.index() == place).then(|| layout.clone()));
        let mut values = vec![0.5; 20];
        values[0] = first;
        ExpertSet {
            names: vec!["a".into(), "b".into()],
            layouts: vec![Arc::new(BlockLayout { modules, len: 20 })],
            params: vec![Arc::new(values)],
        }
    }

    fn router(scale: GateScale, bias: bool) -> Routing {
        let mut config = RouterConfig::default();
        config.gate.scale = scale;
        let zeros = |length: usize| Arc::new(vec![0.0; length]);
        Routing::Learned(Router {
            config,
            experts: vec!["a".into(), "b".into()],
            weights: vec![zeros(4)],
            bias: bias.then(|| zeros(2)),
        })
    }

    #[test]
    fn the_fingerprint_names_everything_that_decides() {
        let usual = || experts([2, 2], [1.0, 2.0], 0, 0.5);
        let mixtures = [
            (usual(), Routing::All),
            // The same numbers, with another alpha, other ranks, another module, another value.
            (experts([2, 2], [1.0, 4.0], 0, 0.5), Routing::All),
            (experts([1, 3], [1.0, 2.0], 0, 0.5), Routing::All),
            (experts([2, 2], [1.0, 2.0], 1, 0.5), Routing::All),
            (experts([2, 2], [1.0, 2.0], 0, 0.25), Routing::All),
            (usual(), Routing::Fixed(vec![1.0, 0.0])),
            (usual(), Routing::Fixed(vec![0.0, 1.0])),
            (usual(), Routing::Random { seed: 0 }),
            (usual(), Routing::Random { seed: 1 }),
            (usual(), router(GateScale::Probability, false)),
            (usual(), router(GateScale::Unit, false)),
            (usual(), router(GateScale::Unit, true)),
        ];
        let names: Vec<String> = mixtures
            .into_iter()
            .map(|(experts, routing)| Mixture { experts, routing }.fingerprint().unwrap())
            .collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{i} has the name of another one");
        }
        assert_eq!(Mixture::all(usual()).fingerprint().unwrap(), names[0]);
        // Kept answers are found again by it: it changes on purpose only.
        assert_eq!(names[0], "4a4a20c8ac5ba33d45ebfc5ea0975fbd");
    }
}
