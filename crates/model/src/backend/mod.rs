//! Where a decoder's arithmetic runs.
//!
//! A [`Backend`] keeps arrays, weights, pages of keys and values, gradients and the optimiser's state in its own memory, and has
//! the operations that a [`Decoder`](crate::decoder::Decoder) is made of. Into a pass go ids, positions, segments, page tables and
//! parameters of sampling, all small and known before it starts ([`Batch`]); out of it come only chosen ids, log-probabilities,
//! losses and, where somebody asks, gates. [`Backend::read`] is for checkpoints, inspection and tests.
//!
//! [`cpu`] is the processor. `reference`, behind the cargo feature of that name, is what the tests hold every backend against.

pub(crate) mod cpu;
pub(crate) mod dropout;
pub(crate) mod rows;
pub(crate) mod spec;
pub(crate) mod token;

use std::{fmt::Debug, sync::Arc};

pub(crate) use mixse_kernels::AdamW;

use crate::{Result, decoder::Precision, expert_set::BlockLayout, router::GateConfig, weights::Checkpoint};
use dropout::BlockDropout;
pub(crate) use rows::{PageTable, Ragged, Sequences};
pub use token::{Choice, Chosen, Draw, LogitChanges, Target, TokenScore};

/// The rows of a pass, and where their sequences' keys and values lie.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) ragged: Arc<Ragged>,
    /// One for each sequence, in the order of `ragged.segments`; `None`: the rows are whole sequences and nothing is kept.
    pub(crate) tables: Option<Vec<PageTable>>,
}

/// The experts of one block, as a pass uses them.
#[derive(Debug)]
pub(crate) struct BlockExperts<'a, B: Backend> {
    /// The flat factors, laid out as `layout` says.
    pub(crate) params: &'a B::Array,
    pub(crate) layout: &'a BlockLayout,
    pub(crate) gate: Gate<'a, B>,
    pub(crate) dropout: Option<BlockDropout<'a>>,
}

/// Where a block's gates come from.
#[derive(Debug)]
pub(crate) enum Gate<'a, B: Backend> {
    /// Every expert counts fully (a single expert: plain LoRA).
    Full,
    /// Gates `[rows, experts]`, the same for all blocks.
    Given(&'a B::Array),
    /// The router reads the block's own input.
    Routed(Routing<'a, B>),
}

/// A router's map and the rows that it decides for.
#[derive(Debug)]
pub(crate) struct Routing<'a, B: Backend> {
    /// R `[choices, d]`.
    pub(crate) weight: &'a B::Array,
    /// Its rows.
    pub(crate) choices: usize,
    /// b `[choices]`.
    pub(crate) bias: Option<&'a B::Array>,
    pub(crate) config: GateConfig,
    /// `None`: every row decides for itself.
    pub(crate) sequences: Option<Sequences<'a>>,
}

// Not derived: a derived `Copy` would ask the backend for one.
impl<B: Backend> Clone for BlockExperts<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for BlockExperts<'_, B> {}
impl<B: Backend> Clone for Gate<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Gate<'_, B> {}
impl<B: Backend> Clone for Routing<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Routing<'_, B> {}

/// A decision that was taken before the blocks run.
#[derive(Debug)]
pub(crate) struct Decided<B: Backend> {
    /// `[rows, experts]`.
    pub(crate) gates: B::Array,
    /// The softmax, for the backward: `[rows or sequences, choices]`.
    pub(crate) probabilities: B::Array,
}

/// Gradients of one block besides that of its input, each added to; `None`: not wanted.
#[derive(Debug)]
pub(crate) struct BlockGradients<'a, B: Backend> {
    /// Of the flat factors.
    pub(crate) params: Option<&'a mut B::Array>,
    /// Of given gates, `[rows, experts]`.
    pub(crate) gates: Option<&'a mut B::Array>,
    /// Of R where the block routes.
    pub(crate) router: Option<&'a mut B::Array>,
}

/// Gradients of a router's map, each added to; `None`: not wanted.
#[derive(Debug)]
pub(crate) struct RouterGradients<'a, B: Backend> {
    pub(crate) weight: Option<&'a mut B::Array>,
    pub(crate) bias: Option<&'a mut B::Array>,
}

/// Sums over the rows that a router reads, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct MomentSums {
    /// Rows (or sequences) that were seen.
    pub rows: usize,
    /// `Σ h`, `[d]`.
    pub sum: Vec<f64>,
    /// `Σ h hᵀ`: the upper triangle, row after row, `[d (d + 1) / 2]`.
    pub products: Vec<f64>,
}

/// What a decoder runs on. All arrays are f32, row-major; `d` is the hidden size.
///
/// A backend chooses how its results depend on a batch; that of a row on the processor depends on the row alone.
pub(crate) trait Backend: Debug + Send + Sync + Sized + 'static {
    /// Values in the backend's memory: activations, parameters, gradients.
    type Array: Debug + Send + Sync;
    /// A frozen block with its place among the others.
    type Block: Debug + Send + Sync;
    /// The input embedding, the final norm and the output head.
    type Ends: Debug + Send + Sync;
    /// Pages of keys and values of every block.
    type Pages: Debug + Send;
    /// A [`Batch`] as the blocks read it, made once a pass.
    type Pass: Debug;
    /// Everything between a block's input and output that its backward reads. A pass without a backward uses one for all
    /// blocks.
    type Saved: Debug + Default;
    /// Sums for a router in closed form.
    type Moments: Debug + Send;

    /// In reports: `cpu`.
    fn name(&self) -> &'static str;

    /// Reads every tensor of a checkpoint and lays it out for its use.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; a precision that the backend does not have.
    fn load(&self, checkpoint: &Checkpoint, precision: Precision) -> Result<(Vec<Self::Block>, Self::Ends)>;
    /// Feeds the frozen projections as they are held: the embedding, the head, the blocks.
    fn hash_weights(&self, blocks: &[Self::Block], ends: &Self::Ends, feed: &mut dyn FnMut(&[u8]));
    /// Bytes of frozen projections that one pass reads, the output head included.
    fn weight_bytes(&self, blocks: &[Self::Block], ends: &Self::Ends) -> usize;

    /// Parameters in the backend's memory; the processor shares them with the host.
    fn upload(&self, values: &Arc<Vec<f32>>) -> Result<Self::Array>;
    /// The values, for checkpoints, inspection and tests.
    fn read(&self, array: &Self::Array) -> Result<Vec<f32>>;
    /// So many zeros.
    fn zeros(&self, len: usize) -> Result<Self::Array>;
    /// The same values in memory of their own.
    fn copy(&self, array: &Self::Array) -> Result<Self::Array>;
    /// The values of all parts, one after another.
    fn concat(&self, parts: &[&Self::Array]) -> Result<Self::Array>;
    /// `len` values from `start` on, copied.
    fn slice(&self, array: &Self::Array, start: usize, len: usize) -> Result<Self::Array>;

    /// Keys and values of as many blocks as there are; no pages yet.
    fn new_pages(&self, blocks: &[Self::Block]) -> Result<Self::Pages>;
    /// Makes room for `pages` pages in all; those there are keep what they hold.
    fn grow_pages(&self, pages: &mut Self::Pages, count: usize) -> Result<()>;
    /// Copies one page over another, in every block.
    fn copy_page(&self, pages: &mut Self::Pages, from: u32, to: u32) -> Result<()>;
    /// Bytes held.
    fn page_bytes(&self, pages: &Self::Pages) -> usize;

    /// What the blocks read of a batch.
    fn pass(&self, blocks: &[Self::Block], batch: &Batch) -> Result<Self::Pass>;
    /// Scaled input embeddings `[rows, d]`.
    fn embed(&self, ends: &Self::Ends, ids: &[u32]) -> Result<Self::Array>;
    /// The block over `x [rows, d]`; leaves everything in between in `saved`. With `pages`, the rows continue the sequences of the
    /// pass's tables, and their keys and values are stored there first.
    fn forward(
        &self,
        block: &Self::Block,
        x: &Self::Array,
        pass: &Self::Pass,
        experts: Option<BlockExperts<'_, Self>>,
        pages: Option<&mut Self::Pages>,
        saved: &mut Self::Saved,
    ) -> Result<Self::Array>;
    /// Frees what the backward computes again, for keeping the rest until then.
    fn trim(&self, saved: &mut Self::Saved);
    /// The gates `[rows, experts]` that the block's router has given in the forward that left `saved`.
    fn routed_gates(&self, saved: &Self::Saved) -> Result<Self::Array>;
    /// Backward of [`Backend::forward`] over whole sequences: from `dy` to the gradient of the input.
    fn backward(
        &self,
        block: &Self::Block,
        x: &Self::Array,
        pass: &Self::Pass,
        experts: Option<BlockExperts<'_, Self>>,
        saved: &mut Self::Saved,
        dy: &Self::Array,
        gradients: BlockGradients<'_, Self>,
    ) -> Result<Self::Array>;

    /// What a router reads in this block: the norm of its input.
    fn router_input(&self, block: &Self::Block, x: &Self::Array) -> Result<Self::Array>;
    /// Backward of [`Backend::router_input`], added to `dx`.
    fn router_input_backward(
        &self,
        block: &Self::Block,
        x: &Self::Array,
        dh: &Self::Array,
        dx: &mut Self::Array,
    ) -> Result<()>;
    /// Gates from what the router reads, `h [rows, d]`.
    fn decide(&self, h: &Self::Array, routing: Routing<'_, Self>) -> Result<Decided<Self>>;
    /// Backward of [`Backend::decide`] from `dgates [rows, experts]`, where nothing that is trained stands before `h`.
    fn decide_backward(
        &self,
        h: &Self::Array,
        routing: Routing<'_, Self>,
        decided: &Decided<Self>,
        dgates: &Self::Array,
        gradients: RouterGradients<'_, Self>,
    ) -> Result<()>;
    /// `scale · Σ −log softmax(z)[label]` of the router's logits z over the rows. Adds its gradients, that of h to `dh`.
    fn domain_loss(
        &self,
        h: &Self::Array,
        routing: Routing<'_, Self>,
        labels: &[u32],
        scale: f32,
        dh: Option<&mut Self::Array>,
        gradients: RouterGradients<'_, Self>,
    ) -> Result<f32>;
    /// Mean of `h [rows, d]` over each sequence's prompt, `[sequences, d]`.
    fn prompt_means(&self, h: &Self::Array, ragged: &Ragged) -> Result<Self::Array>;

    /// The final norm of `x [rows, d]`.
    fn final_norm(&self, ends: &Self::Ends, x: &Self::Array) -> Result<Self::Array>;
    /// `scale · Σ −log p(token)` over the targets, from the last block's output `x`, without ever holding rows x vocabulary
    /// logits; and its gradient `[rows, d]` where it is wanted.
    fn loss(
        &self,
        ends: &Self::Ends,
        x: &Self::Array,
        targets: &[Target],
        scale: f32,
        gradient: bool,
    ) -> Result<(f32, Option<Self::Array>)>;
    /// The next token of each of these rows of the last block's output.
    fn choose(&self, ends: &Self::Ends, x: &Self::Array, choices: &[Choice]) -> Result<Vec<Chosen>>;
    /// How likely each target is, and the `top` likeliest tokens of its row.
    fn score(
        &self,
        ends: &Self::Ends,
        x: &Self::Array,
        targets: &[Target],
        top: usize,
    ) -> Result<Vec<TokenScore>>;
    /// Logits `[rows, vocabulary]` of these rows, for inspection and tests.
    fn logits(&self, ends: &Self::Ends, x: &Self::Array, rows: &[usize]) -> Result<Vec<f32>>;

    /// Sums without rows, of vectors of `d` values.
    fn new_moments(&self, d: usize) -> Result<Self::Moments>;
    /// Adds the rows of `h`.
    fn add_moments(&self, moments: &mut Self::Moments, h: &Self::Array) -> Result<()>;
    /// The sums.
    fn read_moments(&self, moments: &Self::Moments) -> Result<MomentSums>;

    /// `into += values`.
    fn add(&self, values: &Self::Array, into: &mut Self::Array) -> Result<()>;
    /// `array *= factor`.
    fn scale(&self, array: &mut Self::Array, factor: f32) -> Result<()>;
    /// Sum of the squares of all values.
    fn squared_norm(&self, arrays: &[Self::Array]) -> Result<f64>;
    /// One step of AdamW, in place: `moments` are the means of the gradients and of their squares.
    fn adamw(
        &self,
        values: &mut Self::Array,
        gradient: &Self::Array,
        moments: (&mut Self::Array, &mut Self::Array),
        settings: AdamW,
    ) -> Result<()>;
}
