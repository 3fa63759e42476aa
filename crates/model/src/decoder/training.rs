//! Passes with gradients, the optimiser's state, and what a router reads: a loop over blocks forward and a loop backward.

use std::{collections::HashMap, sync::Arc};

use super::{Decoder, Loaded, LoadedRouting, PassGates};
use crate::{
    Error, Result,
    backend::{AdamW, Backend, Batch, BlockGradients, Decided, MomentSums, Ragged, RouterGradients},
    engine::{DomainTarget, Memory, Moments, Parameters, Step, Trained, Trainer, TrainingPass},
    mixture::Mixture,
    router::{Granularity, RouterConfig, RouterInput},
};

/// AdamW's usual constants (Loshchilov and Hutter 2019).
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// A [`Trainer`] of a decoder.
pub(crate) struct DecoderTrainer<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    mixture: Loaded<B>,
    trained: Trained,
    memory: Memory,
    /// Values of each array that is trained.
    lengths: Vec<usize>,
    /// Of everything that is trained, in the order of [`Trainer::read`].
    gradients: Vec<B::Array>,
    first_moments: Vec<B::Array>,
    second_moments: Vec<B::Array>,
    best: Vec<B::Array>,
    /// The base's final hidden states of rows that were seen, by the row's key; `None`: they are not kept.
    states: Option<HashMap<usize, B::Array>>,
}

/// What is trained of a mixture: the experts' blocks, then the router's maps, then its bias.
fn trained<B: Backend>(mixture: &Loaded<B>, which: Trained) -> impl Iterator<Item = &B::Array> {
    let experts = which.experts.then_some(&mixture.params).into_iter().flatten();
    let router = mixture.router().filter(|_| which.router);
    experts.chain(router.into_iter().flat_map(|router| router.weights.iter().chain(&router.bias)))
}

/// As [`trained`], writable.
fn trained_mut<B: Backend>(mixture: &mut Loaded<B>, which: Trained) -> impl Iterator<Item = &mut B::Array> {
    let experts = which.experts.then_some(&mut mixture.params).into_iter().flatten();
    let router = match &mut mixture.routing {
        LoadedRouting::Learned(router) if which.router => Some(router),
        _ => None,
    };
    experts.chain(router.into_iter().flat_map(|router| router.weights.iter_mut().chain(&mut router.bias)))
}

impl<'a, B: Backend> DecoderTrainer<'a, B> {
    pub(crate) fn new(
        decoder: &'a Decoder<B>,
        mixture: &Mixture,
        which: Trained,
        memory: Memory,
        keep_states: bool,
    ) -> Result<Self> {
        let backend = &decoder.backend;
        let loaded = Loaded::new(backend, mixture)?;
        let lengths: Vec<usize> = parameters(mixture, which).map(|values| values.len()).collect();
        let zeros = || lengths.iter().map(|&len| backend.zeros(len)).collect::<Result<Vec<_>>>();
        let (gradients, first_moments, second_moments) = (zeros()?, zeros()?, zeros()?);
        let states = (keep_states && loaded.reads_base_last()).then(HashMap::new);
        Ok(Self {
            decoder,
            mixture: loaded,
            trained: which,
            memory,
            lengths,
            gradients,
            first_moments,
            second_moments,
            best: Vec::new(),
            states,
        })
    }

    /// The base's final hidden states of a pass, `[rows, d]`, where the router reads them.
    fn base_last(&mut self, pass: &TrainingPass<'_>) -> Result<Option<B::Array>> {
        let decoder = self.decoder;
        let Some(states) = &mut self.states else {
            return decoder.base_last_whole(pass.ids, pass.ragged, Some(&self.mixture));
        };
        if pass.keys.len() != pass.ragged.segments.len() {
            return decoder.base_last_whole(pass.ids, pass.ragged, Some(&self.mixture));
        }
        let rows = || pass.keys.iter().zip(&pass.ragged.segments);
        let new: Vec<_> = rows().filter(|(key, _)| !states.contains_key(key)).collect();
        if !new.is_empty() {
            let ids: Vec<u32> =
                new.iter().flat_map(|(_, s)| &pass.ids[s.start..s.start + s.len]).copied().collect();
            let ragged = Arc::new(Ragged::whole(new.iter().map(|(_, s)| s.len)));
            let all = decoder.base_last(&ids, &ragged)?;
            let d = decoder.config.hidden_size;
            for ((key, _), s) in new.into_iter().zip(&ragged.segments) {
                states.insert(*key, decoder.backend.slice(&all, s.start * d, s.len * d)?);
            }
        }
        let parts: Vec<&B::Array> = rows().filter_map(|(key, _)| states.get(key)).collect();
        Ok(Some(decoder.backend.concat(&parts)?))
    }

    /// A pass forward and backward; adds to `gradients`, which are those of this pass alone.
    fn differentiate(
        &self,
        pass: &TrainingPass<'_>,
        base_last: Option<&B::Array>,
        gradients: &mut Gradients<B>,
    ) -> Result<f32> {
        let (decoder, backend, mixture) = (self.decoder, &self.decoder.backend, &self.mixture);
        let (ids, ragged) = (pass.ids, pass.ragged);
        let embedded = decoder.embed(ids)?;
        let gates = decoder.pass_gates(mixture, ids, ragged, &embedded, base_last, &[])?;
        let rows = backend.pass(&decoder.blocks, &Batch { ragged: ragged.clone(), tables: None })?;
        let experts = |block| Decoder::block_experts(Some(mixture), &gates, block, ragged, &[], pass.dropout);

        let mut inputs = Vec::with_capacity(decoder.blocks.len());
        let mut kept = Vec::new();
        let (mut x, mut between) = (embedded, B::Saved::default());
        for (index, block) in decoder.blocks.iter().enumerate() {
            let y = match self.memory {
                Memory::Keep => {
                    let mut saved = B::Saved::default();
                    let y = backend.forward(block, &x, &rows, experts(index), None, &mut saved)?;
                    backend.trim(&mut saved);
                    kept.push(saved);
                    y
                }
                Memory::Recompute => backend.forward(block, &x, &rows, experts(index), None, &mut between)?,
            };
            inputs.push(std::mem::replace(&mut x, y));
        }
        let (loss, dx) = backend.loss(&decoder.ends, &x, pass.targets, pass.scale, true)?;
        let mut loss = f64::from(loss);
        drop(x);
        let Some(mut dx) = dx else { return Ok(loss as f32) };

        let mut d_gates = match &gates {
            PassGates::Decided(_) if self.trained.router => Some(backend.zeros(ids.len() * mixture.experts)?),
            _ => None,
        };
        let routes = matches!(gates, PassGates::PerBlock);
        let router = mixture.router();
        for (index, block) in decoder.blocks.iter().enumerate().rev() {
            let x = &inputs[index];
            let mut saved = kept.pop().unwrap_or_else(|| std::mem::take(&mut between));
            if self.memory == Memory::Recompute {
                backend.forward(block, x, &rows, experts(index), None, &mut saved)?;
            }
            let own = BlockGradients {
                params: gradients.experts.get_mut(index),
                gates: d_gates.as_mut(),
                router: router
                    .filter(|_| routes)
                    .and_then(|router| gradients.router.get_mut(router.map(index))),
            };
            let mut d_input = backend.backward(block, x, &rows, experts(index), &mut saved, &dx, own)?;
            if let (true, Some(target), Some(router)) = (routes, &pass.domains, router) {
                let h = backend.router_input(block, x)?;
                let mut dh = backend.zeros(ids.len() * decoder.config.hidden_size)?;
                let routing = router.routing(index, ragged, &[]);
                let scale = target.scale / decoder.blocks.len() as f32;
                let own = RouterGradients { weight: gradients.router.get_mut(router.map(index)), bias: None };
                let part = backend.domain_loss(&h, routing, target.labels, scale, Some(&mut dh), own)?;
                loss += f64::from(part);
                backend.router_input_backward(block, x, &dh, &mut d_input)?;
            }
            dx = d_input;
            if self.memory == Memory::Recompute {
                between = saved;
            }
            // The first block's input is what an embedding router has read.
            if index > 0 {
                inputs.truncate(index);
            }
        }
        if let (PassGates::Decided(decided), Some(router)) = (&gates, router)
            && let Some(h) = Decoder::pass_input(router, &inputs[0], base_last)?
        {
            loss += self.decision_backward(h, router, pass, decided, d_gates.as_ref(), gradients)?;
        }
        Ok(loss as f32)
    }

    /// Backward of a decision that was taken before the blocks, and its domain loss.
    fn decision_backward(
        &self,
        h: &B::Array,
        router: &super::Learned<B>,
        pass: &TrainingPass<'_>,
        decided: &Decided<B>,
        d_gates: Option<&B::Array>,
        gradients: &mut Gradients<B>,
    ) -> Result<f64> {
        let backend = &self.decoder.backend;
        let routing = router.routing(0, pass.ragged, &[]);
        if let Some(d_gates) = d_gates {
            backend.decide_backward(h, routing, decided, d_gates, gradients.of_map(0))?;
        }
        let Some(target) = &pass.domains else { return Ok(0.0) };
        let own = gradients.of_map(0);
        Ok(f64::from(backend.domain_loss(h, routing, target.labels, target.scale, None, own)?))
    }
}

/// The gradients of one pass; those that are not wanted are missing.
struct Gradients<B: Backend> {
    experts: Vec<B::Array>,
    /// By map.
    router: Vec<B::Array>,
    bias: Option<B::Array>,
}

impl<B: Backend> Gradients<B> {
    fn of_map(&mut self, map: usize) -> RouterGradients<'_, B> {
        RouterGradients { weight: self.router.get_mut(map), bias: self.bias.as_mut() }
    }

    /// In the order of [`trained`].
    fn all(self) -> impl Iterator<Item = B::Array> {
        self.experts.into_iter().chain(self.router).chain(self.bias)
    }
}

/// The host's values of what is trained, in the order of [`trained`].
fn parameters(mixture: &Mixture, which: Trained) -> impl Iterator<Item = &Arc<Vec<f32>>> {
    let experts = which.experts.then_some(&mixture.experts.params).into_iter().flatten();
    let router = match &mixture.routing {
        crate::mixture::Routing::Learned(router) if which.router => Some(router),
        _ => None,
    };
    experts.chain(router.into_iter().flat_map(|router| router.weights.iter().chain(&router.bias)))
}

impl<B: Backend> Trainer for DecoderTrainer<'_, B> {
    fn pass(&mut self, pass: &TrainingPass<'_>) -> Result<f32> {
        self.decoder.check_targets(pass.targets, pass.ids.len())?;
        if let Some(target) = &pass.domains {
            check_domains(target, pass.ids.len(), &self.mixture)?;
        }
        let base_last = self.base_last(pass)?;
        let backend = &self.decoder.backend;
        let mut zeros = self.lengths.iter().map(|&len| backend.zeros(len));
        let mut take = |count: usize| zeros.by_ref().take(count).collect::<Result<Vec<B::Array>>>();
        let maps = self.mixture.router().filter(|_| self.trained.router);
        let mut gradients = Gradients {
            experts: take(if self.trained.experts { self.mixture.params.len() } else { 0 })?,
            router: take(maps.map_or(0, |router| router.weights.len()))?,
            bias: take(1)?.pop(),
        };
        let loss = self.differentiate(pass, base_last.as_ref(), &mut gradients)?;
        for (own, sum) in gradients.all().zip(&mut self.gradients) {
            backend.add(&own, sum)?;
        }
        Ok(loss)
    }

    fn loss(&mut self, pass: &TrainingPass<'_>) -> Result<f32> {
        self.decoder.check_targets(pass.targets, pass.ids.len())?;
        let decoder = self.decoder;
        let base_last = self.base_last(pass)?;
        let mixture = Some(&self.mixture);
        let (x, _) = decoder.run(pass.ids, pass.ragged, mixture, None, base_last.as_ref(), false)?;
        Ok(decoder.backend.loss(&decoder.ends, &x, pass.targets, pass.scale, false)?.0)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let backend = &self.decoder.backend;
        if step.clip_norm > 0.0 {
            let norm = backend.squared_norm(&self.gradients)?.sqrt();
            if norm > step.clip_norm {
                let factor = (step.clip_norm / norm) as f32;
                self.gradients.iter_mut().try_for_each(|gradient| backend.scale(gradient, factor))?;
            }
        }
        let experts = if self.trained.experts { self.mixture.params.len() } else { 0 };
        let values = trained_mut(&mut self.mixture, self.trained);
        for (index, ((((values, gradient), &len), first), second)) in values
            .zip(&mut self.gradients)
            .zip(&self.lengths)
            .zip(&mut self.first_moments)
            .zip(&mut self.second_moments)
            .enumerate()
        {
            let rate = if index < experts { step.expert_rate } else { step.router_rate };
            let settings = AdamW {
                lr: (rate * step.factor) as f32,
                beta1: BETA1,
                beta2: BETA2,
                eps: EPSILON,
                weight_decay: step.weight_decay as f32,
                step: step.number,
            };
            backend.adamw(values, gradient, (first, second), settings)?;
            *gradient = backend.zeros(len)?;
        }
        Ok(())
    }

    fn keep_best(&mut self) -> Result<()> {
        let backend = &self.decoder.backend;
        self.best =
            trained(&self.mixture, self.trained).map(|values| backend.copy(values)).collect::<Result<_>>()?;
        Ok(())
    }

    fn restore_best(&mut self) -> Result<()> {
        let best = std::mem::take(&mut self.best);
        trained_mut(&mut self.mixture, self.trained).zip(best).for_each(|(values, best)| *values = best);
        Ok(())
    }

    fn read(&self, which: Parameters) -> Result<Vec<Vec<f32>>> {
        let backend = &self.decoder.backend;
        let all = |arrays: &[B::Array]| arrays.iter().map(|array| backend.read(array)).collect();
        match which {
            Parameters::Values => {
                trained(&self.mixture, self.trained).map(|array| backend.read(array)).collect()
            }
            Parameters::Gradients => all(&self.gradients),
            Parameters::FirstMoments => all(&self.first_moments),
            Parameters::SecondMoments => all(&self.second_moments),
            Parameters::Best => all(&self.best),
        }
    }

    fn write(&mut self, which: Parameters, values: Vec<Vec<f32>>) -> Result<()> {
        let backend = &self.decoder.backend;
        let lengths: Vec<usize> = values.iter().map(Vec::len).collect();
        if lengths != self.lengths {
            return Err(Error::Unsupported(format!(
                "arrays of {lengths:?} values were given for parameters of {:?}",
                self.lengths
            )));
        }
        let arrays = values
            .into_iter()
            .map(|values| backend.copy(&backend.upload(&Arc::new(values))?))
            .collect::<Result<Vec<_>>>()?;
        match which {
            Parameters::Values => {
                let places = trained_mut(&mut self.mixture, self.trained);
                places.zip(arrays).for_each(|(place, array)| *place = array);
            }
            Parameters::Gradients => self.gradients = arrays,
            Parameters::FirstMoments => self.first_moments = arrays,
            Parameters::SecondMoments => self.second_moments = arrays,
            Parameters::Best => self.best = arrays,
        }
        Ok(())
    }
}

/// The labels must be those of the mixture's router.
fn check_domains<B: Backend>(target: &DomainTarget<'_>, rows: usize, mixture: &Loaded<B>) -> Result<()> {
    if mixture.router().is_none() {
        return Err(Error::Unsupported("a domain loss needs a mixture with a router".into()));
    }
    if target.labels.len() != rows {
        let labels = target.labels.len();
        return Err(Error::Unsupported(format!("{labels} domain labels were given for {rows} rows")));
    }
    match target.labels.iter().find(|&&label| label as usize >= mixture.experts) {
        None => Ok(()),
        Some(label) => Err(Error::Unsupported(format!(
            "domain label {label} lies outside the {} experts of the mixture",
            mixture.experts
        ))),
    }
}

/// [`Moments`] of a decoder.
pub(crate) struct DecoderMoments<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    config: RouterConfig,
    maps: Vec<B::Moments>,
}

impl<'a, B: Backend> DecoderMoments<'a, B> {
    pub(crate) fn new(decoder: &'a Decoder<B>, config: &RouterConfig) -> Result<Self> {
        let maps = if config.shared { 1 } else { decoder.blocks.len() };
        let new = |_| decoder.backend.new_moments(decoder.config.hidden_size);
        Ok(Self { decoder, config: config.clone(), maps: (0..maps).map(new).collect::<Result<_>>()? })
    }

    fn add_to(&mut self, map: usize, h: &B::Array, ragged: &Ragged) -> Result<()> {
        let backend = &self.decoder.backend;
        match self.config.granularity {
            Granularity::Token => backend.add_moments(&mut self.maps[map], h),
            Granularity::Sequence => {
                backend.add_moments(&mut self.maps[map], &backend.prompt_means(h, ragged)?)
            }
        }
    }
}

impl<B: Backend> Moments for DecoderMoments<'_, B> {
    fn add(&mut self, ids: &[u32], ragged: &Arc<Ragged>) -> Result<()> {
        let (decoder, backend) = (self.decoder, &self.decoder.backend);
        match self.config.input {
            RouterInput::Embedding => self.add_to(0, &decoder.embed(ids)?, ragged),
            RouterInput::BaseLast => self.add_to(0, &decoder.base_last(ids, ragged)?, ragged),
            RouterInput::Block => {
                let mut x = decoder.embed(ids)?;
                let pass = backend.pass(&decoder.blocks, &Batch { ragged: ragged.clone(), tables: None })?;
                let mut between = B::Saved::default();
                for (index, block) in decoder.blocks.iter().enumerate() {
                    let map = if self.config.shared { 0 } else { index };
                    self.add_to(map, &backend.router_input(block, &x)?, ragged)?;
                    x = backend.forward(block, &x, &pass, None, None, &mut between)?;
                }
                Ok(())
            }
        }
    }

    fn read(&self) -> Result<Vec<MomentSums>> {
        self.maps.iter().map(|sums| self.decoder.backend.read_moments(sums)).collect()
    }
}
