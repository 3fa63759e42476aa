//! A base model, ready to run, whatever it runs on: what the other crates know of the decoder and its backends.
//!
//! An [`Engine`] continues sequences ([`Session`]), trains experts and routers ([`Trainer`]), takes what a router in closed form
//! needs ([`Moments`]) and shows single passes. Mixtures are given as they lie on the host and put where the engine computes.

use std::{fmt, sync::Arc};

use crate::{
    Result,
    backend::{Backend, cpu::Cpu},
    config::ModelConfig,
    decoder::{Decoder, DecoderMoments, DecoderSession, DecoderTrainer},
    mixture::Mixture,
    router::RouterConfig,
    weights::Checkpoint,
};
pub use crate::{
    backend::{
        Choice, Chosen, Draw, LogitChanges, MomentSums, Target, TokenScore,
        dropout::Dropout,
        rows::{PAGE_TOKENS, Ragged},
    },
    cache::SequenceId,
    decoder::Precision,
};

/// What an engine computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Processor {
    /// The processor's own kernels.
    #[default]
    Cpu,
    /// Plain differentiable operations, on the processor and slow: what every backend is held against. Only with the cargo
    /// feature `reference`.
    Reference,
}

impl Processor {
    /// This binary has it.
    pub fn is_built(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Reference => cfg!(feature = "reference"),
        }
    }

    /// It can hold weights so.
    pub fn has(self, precision: Precision) -> bool {
        self == Self::Cpu || matches!(precision, Precision::F32 | Precision::Bf16)
    }
}

/// How a base model is held, and what computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// How frozen weights are kept.
    pub precision: Precision,
    /// What computes.
    pub processor: Processor,
}

/// What is asked of a pass, besides its effect on a session; everything may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ask<'a> {
    /// Rows whose next token is to be chosen.
    pub choices: &'a [Choice],
    /// Tokens whose probability is wanted.
    pub targets: &'a [Target],
    /// So many of the likeliest tokens are told beside each of them.
    pub top: usize,
    /// Rows whose logits are wanted, for inspection: they are large.
    pub logits: &'a [usize],
    /// Each block's gates are wanted.
    pub gates: bool,
}

/// What a pass has given, in the order in which it was asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PassOutput {
    /// Next tokens.
    pub chosen: Vec<Chosen>,
    /// Probabilities.
    pub scores: Vec<TokenScore>,
    /// Logits `[rows, vocabulary]`.
    pub logits: Vec<f32>,
    /// By block `[rows, experts]`; none where experts count fully.
    pub gates: Vec<Vec<f32>>,
}

/// What the backward of a block finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Everything between input and output: fastest.
    Keep,
    /// Only the input; the forward is run again: least memory.
    Recompute,
}

/// Which parts of a mixture are trained; the base never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trained {
    /// The experts' factors.
    pub experts: bool,
    /// The router.
    pub router: bool,
}

/// A pass over whole sequences that lie one after another.
#[derive(Debug, Clone, Copy)]
pub struct TrainingPass<'a> {
    /// The tokens of all sequences.
    pub ids: &'a [u32],
    /// Where each sequence lies.
    pub ragged: &'a Arc<Ragged>,
    /// What is predicted; may be empty where there are domains.
    pub targets: &'a [Target],
    /// Factor of the sum of `−log p` over the targets.
    pub scale: f32,
    /// Asks for the router's cross-entropy against known domains as well.
    pub domains: Option<DomainTarget<'a>>,
    /// Thins out what the adapters read; it has a key for every row.
    pub dropout: Option<&'a Dropout>,
    /// A number for each sequence that is the same in every pass that holds it: the base's hidden states are kept under it, where
    /// the trainer keeps them. Empty: they are computed.
    pub keys: &'a [usize],
}

impl<'a> TrainingPass<'a> {
    /// A pass without anything that only some trainings ask for.
    pub fn new(ids: &'a [u32], ragged: &'a Arc<Ragged>, targets: &'a [Target], scale: f32) -> Self {
        Self { ids, ragged, targets, scale, domains: None, dropout: None, keys: &[] }
    }
}

/// The choices that a router should make: `scale · Σ −log p(label)` of its softmax (all choices, before any is dropped) over
/// the rows, averaged over the blocks.
#[derive(Debug, Clone, Copy)]
pub struct DomainTarget<'a> {
    /// Index of the right expert of each row of the pass.
    pub labels: &'a [u32],
    /// Factor of the sum over the rows.
    pub scale: f32,
}

/// Settings of one step of the optimiser (AdamW with its usual constants).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Number of the step, from 1.
    pub number: u32,
    /// Peak learning rate of the experts.
    pub expert_rate: f64,
    /// Peak learning rate of the router.
    pub router_rate: f64,
    /// The schedule's factor of both in this step.
    pub factor: f64,
    /// Gradients are scaled down together to this norm; 0: never.
    pub clip_norm: f64,
    /// Share of a parameter that is taken off for each unit of its learning rate.
    pub weight_decay: f64,
}

/// The values that a training holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameters {
    /// What is trained.
    Values,
    /// Its gradients, summed over the passes since the last step.
    Gradients,
    /// The optimiser's means of gradients.
    FirstMoments,
    /// The optimiser's means of squared gradients.
    SecondMoments,
    /// The values at [`Trainer::keep_best`]; nothing before it.
    Best,
}

/// Sequences that are being continued by a model, with their keys and values.
pub trait Session {
    /// A sequence without tokens.
    fn start(&mut self) -> SequenceId;

    /// Says that the first `tokens` tokens of a new sequence are its prompt, over which a router for whole sequences decides. They
    /// must come in one step; without this call, the first step is the prompt.
    fn set_prompt(&mut self, id: SequenceId, tokens: usize);

    /// A sequence that starts with everything `id` holds; nothing is computed again.
    ///
    /// # Errors
    /// A fault of the device.
    fn fork(&mut self, id: SequenceId) -> Result<SequenceId>;

    /// Tokens of a sequence.
    fn len(&self, id: SequenceId) -> usize;

    /// Bytes held for keys and values.
    fn cache_bytes(&self) -> usize;

    /// Forgets a sequence.
    fn release(&mut self, id: SequenceId);

    /// Appends tokens to sequences (each at most once in a call) and answers what is asked of the new rows, which are counted in the
    /// order given.
    ///
    /// # Errors
    /// An id outside the vocabulary or a row outside the pass; part of a prompt where the router decides over all of it; a fault
    /// of the device.
    fn step(&mut self, work: &[(SequenceId, &[u32])], ask: &Ask<'_>) -> Result<PassOutput>;
}

/// A training: parameters, their gradients and the optimiser's state, where the engine computes.
///
/// All lists of values have one order: the experts' flat factors by block, the router's maps, the router's bias, as far as they are
/// trained.
pub trait Trainer {
    /// The loss of a pass; its gradients are added up until the next step.
    ///
    /// # Errors
    /// Ids, targets or labels outside what there is; domains for a mixture without a router; a fault of the device.
    fn pass(&mut self, pass: &TrainingPass<'_>) -> Result<f32>;

    /// The loss over the targets of a pass, without gradients, dropout or domains.
    ///
    /// # Errors
    /// As [`Trainer::pass`].
    fn loss(&mut self, pass: &TrainingPass<'_>) -> Result<f32>;

    /// Moves the parameters along the gradients, and forgets those.
    ///
    /// # Errors
    /// A fault of the device.
    fn step(&mut self, step: &Step) -> Result<()>;

    /// Takes note of the values as the best so far.
    ///
    /// # Errors
    /// A fault of the device.
    fn keep_best(&mut self) -> Result<()>;

    /// Goes back to them.
    ///
    /// # Errors
    /// A fault of the device.
    fn restore_best(&mut self) -> Result<()>;

    /// The values, on the host.
    ///
    /// # Errors
    /// A fault of the device.
    fn read(&self, which: Parameters) -> Result<Vec<Vec<f32>>>;

    /// Replaces all values by others of the same number and lengths.
    ///
    /// # Errors
    /// Another number of values, or other lengths; a fault of the device.
    fn write(&mut self, which: Parameters, values: Vec<Vec<f32>>) -> Result<()>;
}

/// Sums over what a router reads in the base without experts.
pub trait Moments {
    /// Adds whole sequences: their tokens or, where the router decides for sequences, the means of their prompts.
    ///
    /// # Errors
    /// An id outside the vocabulary; a fault of the device.
    fn add(&mut self, ids: &[u32], ragged: &Arc<Ragged>) -> Result<()>;

    /// One for each linear map of the router.
    ///
    /// # Errors
    /// A fault of the device.
    fn read(&self) -> Result<Vec<MomentSums>>;
}

/// A frozen base model, ready to run.
pub struct Engine {
    /// Sizes and switches.
    pub config: ModelConfig,
    precision: Precision,
    decoder: Box<dyn AnyDecoder>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("processor", &self.decoder.name()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Reads every tensor of a checkpoint and lays it out for its use.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; a processor that this binary was built without, or a precision that it does
    /// not have.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let decoder: Box<dyn AnyDecoder> = match options.processor {
            Processor::Cpu => Box::new(Decoder::load(Cpu, checkpoint, options.precision)?),
            #[cfg(feature = "reference")]
            Processor::Reference => {
                Box::new(Decoder::load(crate::reference::Reference, checkpoint, options.precision)?)
            }
            #[cfg(not(feature = "reference"))]
            Processor::Reference => {
                return Err(crate::Error::Unsupported(
                    "this binary was built without the reference operations: build it with the cargo feature `reference`".into(),
                ));
            }
        };
        Ok(Self { config: checkpoint.config.clone(), precision: options.precision, decoder })
    }

    fn check_trains(&self) -> Result<()> {
        if self.precision.trains() {
            return Ok(());
        }
        Err(crate::Error::Unsupported(format!(
            "the precision {} is for generation, because it rounds activations: train with bf16, f32 or int4",
            self.precision.name()
        )))
    }

    /// Where it computes: `cpu`.
    pub fn backend(&self) -> &'static str {
        self.decoder.name()
    }

    /// SHA-256 (lower-case hex) over the frozen projections as they are held: a training must not change it.
    pub fn weights_hash(&self) -> String {
        self.decoder.weights_hash()
    }

    /// Bytes of frozen projections that one pass reads, the output head included.
    pub fn weight_bytes(&self) -> usize {
        self.decoder.weight_bytes()
    }

    /// Sequences to be continued, by the base alone or with experts.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn session(&self, mixture: Option<&Mixture>) -> Result<Box<dyn Session + '_>> {
        self.decoder.session(mixture)
    }

    /// A training from the values that a mixture has. With `keep_states` the base's final hidden states are kept from one pass to
    /// the next, where the router reads them: 4 bytes a number; it changes time and memory, not results.
    ///
    /// # Errors
    /// A precision that is for generation; a fault of the device.
    pub fn trainer(
        &self,
        mixture: &Mixture,
        trained: Trained,
        memory: Memory,
        keep_states: bool,
    ) -> Result<Box<dyn Trainer + '_>> {
        self.check_trains()?;
        self.decoder.trainer(mixture, trained, memory, keep_states)
    }

    /// Sums for routers of this kind.
    ///
    /// # Errors
    /// A precision that is for generation; a fault of the device.
    pub fn moments(&self, router: &RouterConfig) -> Result<Box<dyn Moments + '_>> {
        self.check_trains()?;
        self.decoder.moments(router)
    }

    /// One pass over whole sequences, of which nothing is kept.
    ///
    /// # Errors
    /// An id outside the vocabulary or a row outside the pass; a fault of the device.
    pub fn whole(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Mixture>,
        ask: &Ask<'_>,
    ) -> Result<PassOutput> {
        self.decoder.whole(ids, ragged, mixture, ask)
    }

    /// Each block's gates `[rows, experts]` for whole sequences `ids`: which expert every token went to.
    ///
    /// # Errors
    /// As [`Engine::whole`].
    pub fn route(&self, ids: &[u32], ragged: &Arc<Ragged>, mixture: &Mixture) -> Result<Vec<Vec<f32>>> {
        Ok(self.whole(ids, ragged, Some(mixture), &Ask { gates: true, ..Ask::default() })?.gates)
    }

    /// The mean over one sequence of the final hidden states in the base, `[d]`.
    ///
    /// # Errors
    /// As [`Engine::whole`].
    pub fn mean_hidden(&self, ids: &[u32]) -> Result<Vec<f32>> {
        self.decoder.mean_hidden(ids)
    }
}

/// A [`Decoder`] on whichever backend.
trait AnyDecoder: Send + Sync {
    fn name(&self) -> &'static str;
    fn weights_hash(&self) -> String;
    fn weight_bytes(&self) -> usize;
    fn session(&self, mixture: Option<&Mixture>) -> Result<Box<dyn Session + '_>>;
    fn trainer(
        &self,
        mixture: &Mixture,
        trained: Trained,
        memory: Memory,
        keep_states: bool,
    ) -> Result<Box<dyn Trainer + '_>>;
    fn moments(&self, router: &RouterConfig) -> Result<Box<dyn Moments + '_>>;
    fn whole(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Mixture>,
        ask: &Ask<'_>,
    ) -> Result<PassOutput>;
    fn mean_hidden(&self, ids: &[u32]) -> Result<Vec<f32>>;
}

impl<B: Backend> AnyDecoder for Decoder<B> {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn weights_hash(&self) -> String {
        Decoder::weights_hash(self)
    }

    fn weight_bytes(&self) -> usize {
        Decoder::weight_bytes(self)
    }

    fn session(&self, mixture: Option<&Mixture>) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(DecoderSession::new(self, mixture)?))
    }

    fn trainer(
        &self,
        mixture: &Mixture,
        trained: Trained,
        memory: Memory,
        keep_states: bool,
    ) -> Result<Box<dyn Trainer + '_>> {
        Ok(Box::new(DecoderTrainer::new(self, mixture, trained, memory, keep_states)?))
    }

    fn moments(&self, router: &RouterConfig) -> Result<Box<dyn Moments + '_>> {
        Ok(Box::new(DecoderMoments::new(self, router)?))
    }

    fn whole(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Mixture>,
        ask: &Ask<'_>,
    ) -> Result<PassOutput> {
        Decoder::whole(self, ids, ragged, mixture, ask)
    }

    fn mean_hidden(&self, ids: &[u32]) -> Result<Vec<f32>> {
        Decoder::mean_hidden(self, ids)
    }
}
