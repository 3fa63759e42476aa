//! A mixture in a backend's memory.

use std::sync::Arc;

use crate::{
    Result,
    backend::{self, Backend, Ragged},
    expert_set::BlockLayout,
    mixture::{Mixture, Routing},
    router::{Granularity, RouterConfig, RouterInput},
};

/// Experts and their routing as a pass reads them.
#[derive(Debug)]
pub(crate) struct Loaded<B: Backend> {
    /// Number of experts.
    pub(crate) experts: usize,
    pub(crate) layouts: Vec<Arc<BlockLayout>>,
    /// One flat array a block.
    pub(crate) params: Vec<B::Array>,
    pub(crate) routing: LoadedRouting<B>,
}

/// As [`Routing`].
#[derive(Debug)]
pub(crate) enum LoadedRouting<B: Backend> {
    All,
    Fixed(Vec<f32>),
    Random { seed: u64 },
    Learned(Learned<B>),
}

/// A router.
#[derive(Debug)]
pub(crate) struct Learned<B: Backend> {
    pub(crate) config: RouterConfig,
    choices: usize,
    /// One for all blocks, or one a block.
    pub(crate) weights: Vec<B::Array>,
    pub(crate) bias: Option<B::Array>,
}

impl<B: Backend> Learned<B> {
    /// The map of `block`.
    pub(crate) fn map(&self, block: usize) -> usize {
        if self.config.shared { 0 } else { block }
    }

    /// As a block, or a pass, is told of it.
    pub(crate) fn routing<'a>(
        &'a self,
        block: usize,
        ragged: &'a Ragged,
        earlier: &'a [f32],
    ) -> backend::Routing<'a, B> {
        backend::Routing {
            weight: &self.weights[self.map(block)],
            choices: self.choices,
            bias: self.bias.as_ref(),
            config: self.config.gate,
            sequences: ragged.sequences(self.config.granularity, earlier),
        }
    }
}

impl<B: Backend> Loaded<B> {
    pub(crate) fn new(backend: &B, mixture: &Mixture) -> Result<Self> {
        let all = |values: &[Arc<Vec<f32>>]| -> Result<Vec<B::Array>> {
            values.iter().map(|values| backend.upload(values)).collect()
        };
        let routing = match &mixture.routing {
            Routing::All => LoadedRouting::All,
            Routing::Fixed(gates) => LoadedRouting::Fixed(gates.clone()),
            Routing::Random { seed } => LoadedRouting::Random { seed: *seed },
            Routing::Learned(router) => LoadedRouting::Learned(Learned {
                config: router.config.clone(),
                choices: router.config.choices(mixture.experts.len()),
                weights: all(&router.weights)?,
                bias: router.bias.as_ref().map(|bias| backend.upload(bias)).transpose()?,
            }),
        };
        Ok(Self {
            experts: mixture.experts.len(),
            layouts: mixture.experts.layouts.clone(),
            params: all(&mixture.experts.params)?,
            routing,
        })
    }

    pub(crate) fn router(&self) -> Option<&Learned<B>> {
        match &self.routing {
            LoadedRouting::Learned(router) => Some(router),
            _ => None,
        }
    }

    /// As [`Mixture::reads_base_last`].
    pub(crate) fn reads_base_last(&self) -> bool {
        self.router().is_some_and(|router| router.config.input == RouterInput::BaseLast)
    }

    /// As [`Mixture::decides_for_sequences`].
    pub(crate) fn decides_for_sequences(&self) -> bool {
        self.router().is_some_and(|router| router.config.granularity == Granularity::Sequence)
    }
}
