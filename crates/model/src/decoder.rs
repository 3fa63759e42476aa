//! The decoder: one forward pass for all architectures, used by training, generation, evaluation and serving.

mod session;
mod training;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use mixse_kernels::{attention::PagedSegment, packed::Storage, rope::Angles};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use session::Session;
pub use training::{DomainTarget, TrainingPass};

pub use crate::ops::{
    block::Ragged,
    block_op::{Memory, Wanted},
    dropout::Dropout,
    head::Target,
};
use crate::{
    Error, Result,
    cache::{self, KvCache, PAGE_TOKENS, PagedCache, PagedParts, SequenceId},
    config::ModelConfig,
    memory,
    mixture::{Mixture, Routing},
    ops::{
        AnyDevice,
        block::{BlockExperts, BlockSpec, BlockWeights, FrozenWeight, Gate, Holding, hold},
        dropout::BlockDropout,
        fused::{Activations, Attend, ExpertValues, FusedBlock, GateValues},
        gates,
        head::{FusedLoss, Head, check_logits},
        portable, values,
    },
    router::{Router, RouterInput},
    weights::Checkpoint,
};

/// How frozen weights are kept for a pass. Activations are f32 everywhere (on a CPU with AMX, products round them to bf16
/// unless the precision is f32). The portable bodies compute with f32 tensors on every device: they have `F32`, and `Bf16` as
/// f32 numbers that were rounded to bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As 32-bit floats: agrees with a reference to its last digits.
    F32,
    /// Rounded to bfloat16: the default.
    #[default]
    Bf16,
    /// 8-bit integers with a scale for 32 weights: for decoding, where reading weights is all the cost. A GGUF file's own
    /// blocks of 8 and 4 bits (Q8_0, Q4_0, Q4_1, Q4_K) are kept as they are.
    Int8,
    /// 4-bit integers with a scale and a minimum for 32 weights: a large base in little memory. Of a GGUF file's blocks
    /// the same ones are kept, all others are held in 8 bits.
    Int4,
}

impl Precision {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// The portable bodies, the only ones on other devices than the CPU, have it.
    pub fn is_portable(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16)
    }
}

/// Where and how a base model is held.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How frozen weights are kept.
    pub precision: Precision,
    /// Where the pass runs.
    pub device: Device,
    /// Run the portable bodies although the device is the CPU (other devices always do).
    pub portable: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { precision: Precision::default(), device: Device::Cpu, portable: false }
    }
}

/// A frozen base model, ready to run.
#[derive(Debug)]
pub struct Decoder {
    /// Sizes and switches.
    pub config: ModelConfig,
    device: Device,
    body: Body,
    embedding: Arc<FrozenWeight>,
    head: Arc<Head>,
}

#[derive(Debug)]
enum Body {
    Fused(Vec<Arc<FusedBlock>>),
    Portable(Vec<(BlockSpec, BlockWeights)>),
}

/// How gates come to each block of one pass.
enum PassGates {
    Full,
    Given(Tensor),
    PerBlock,
}

/// What a pass over cached sequences works on.
struct CachedPass<'a> {
    cache: &'a mut KvCache,
    sequences: &'a [SequenceId],
    /// By block, the gates `[sequences, experts]` of those that a router has decided for earlier; empty where it decides for
    /// tokens.
    earlier: Vec<Vec<f32>>,
}

impl Decoder {
    /// Reads every tensor of a checkpoint and lays it out for its use.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; a precision that the portable bodies do not have.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let config = checkpoint.config.clone();
        let portable = options.portable || !options.device.is_cpu();
        let holding = if portable {
            if !options.precision.is_portable() {
                return Err(Error::Unsupported(format!(
                    "the portable operations have no precision {}",
                    options.precision.name()
                )));
            }
            Holding::Portable(options.device.clone(), options.precision)
        } else {
            Holding::Fused(match options.precision {
                Precision::F32 => Storage::F32,
                Precision::Bf16 => Storage::Bf16,
                Precision::Int8 => Storage::Int8,
                Precision::Int4 => Storage::Q4,
            })
        };
        let embedding = Arc::new(hold(checkpoint, "model.embed_tokens.weight", &holding)?);
        let head_weight = if config.tied_embeddings {
            embedding.clone()
        } else {
            Arc::new(hold(checkpoint, "lm_head.weight", &holding)?)
        };
        let head = Head {
            norm: checkpoint.tensor("model.norm.weight")?.flatten_all()?.to_vec1()?,
            eps: config.norm_eps as f32,
            plus_one: config.norm_plus_one,
            weight: head_weight,
            softcap: config.logit_softcap.map(|c| c as f32),
        };
        let blocks = (0..config.blocks.len())
            .map(|block| {
                Ok((BlockSpec::new(&config, block), BlockWeights::load(checkpoint, block, &holding)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let body = if portable {
            Body::Portable(blocks)
        } else {
            Body::Fused(
                blocks.into_iter().map(|(spec, weights)| Arc::new(FusedBlock { spec, weights })).collect(),
            )
        };
        // What tensors looked like before they were packed is no longer needed.
        memory::release();
        Ok(Self { config, device: options.device.clone(), body, embedding, head: Arc::new(head) })
    }

    /// SHA-256 (lower-case hex) over the frozen projections as they are held: a training must not change it.
    pub fn weights_hash(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut feed = |weight: &FrozenWeight| -> Result<()> {
            match weight {
                FrozenWeight::Packed(packed) => packed.fold_hash(&mut |bytes| hasher.update(bytes)),
                FrozenWeight::Tensor(tensor) => {
                    for value in tensor.flatten_all()?.to_vec1::<f32>()? {
                        hasher.update(value.to_le_bytes());
                    }
                }
            }
            Ok(())
        };
        feed(&self.embedding)?;
        feed(&self.head.weight)?;
        match &self.body {
            Body::Fused(blocks) => {
                blocks.iter().flat_map(|b| &b.weights.projections).try_for_each(&mut feed)?
            }
            Body::Portable(blocks) => blocks.iter().flat_map(|b| &b.1.projections).try_for_each(&mut feed)?,
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Bytes of frozen projections that one pass reads, the output head included.
    pub fn weight_bytes(&self) -> usize {
        let of = |weight: &FrozenWeight| match weight {
            FrozenWeight::Packed(packed) => packed.bytes(),
            FrozenWeight::Tensor(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        };
        let blocks: usize = match &self.body {
            Body::Fused(blocks) => blocks.iter().flat_map(|b| &b.weights.projections).map(of).sum(),
            Body::Portable(blocks) => blocks.iter().flat_map(|b| &b.1.projections).map(of).sum(),
        };
        blocks + of(&self.head.weight)
    }

    /// Where the pass runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Kept during a pass: with portable bodies, it must not rely on the CPU.
    fn body_guard(&self) -> AnyDevice {
        AnyDevice::when(matches!(self.body, Body::Portable(_)))
    }

    /// Fails when an id lies outside the vocabulary.
    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            Some(id) => Err(Error::Unsupported(format!(
                "token id {id} lies outside the vocabulary of {} tokens",
                self.config.vocab_size
            ))),
            None => Ok(()),
        }
    }

    /// Scaled input embeddings `[rows, d]`.
    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.check_ids(ids)?;
        let (d, scale) = (self.config.hidden_size, self.config.embedding_scale as f32);
        match &*self.embedding {
            FrozenWeight::Tensor(table) => {
                let ids = Tensor::from_slice(ids, ids.len(), &self.device)?;
                Ok((table.index_select(&ids, 0)? * f64::from(scale))?)
            }
            FrozenWeight::Packed(table) => {
                let mut rows = vec![0f32; ids.len() * d];
                for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(d)) {
                    table.row(id as usize, row);
                    row.iter_mut().for_each(|v| *v *= scale);
                }
                Ok(Tensor::from_vec(rows, (ids.len(), d), &self.device)?)
            }
        }
    }

    /// Gates that are decided before the blocks run. `embedded` is the pass's input; `base_last` its final hidden state
    /// in the base without experts, when the router wants it.
    fn pass_gates(
        &self,
        mixture: &Mixture,
        ids: &[u32],
        ragged: &Ragged,
        embedded: &Tensor,
        base_last: Option<&Tensor>,
        earlier: &[Vec<f32>],
    ) -> Result<PassGates> {
        let experts = mixture.experts.len();
        let given = |values: Vec<f32>| -> Result<PassGates> {
            Ok(PassGates::Given(Tensor::from_vec(values, (ids.len(), experts), &self.device)?))
        };
        match &mixture.routing {
            Routing::All => Ok(PassGates::Full),
            Routing::Fixed(weights) => given(weights.repeat(ids.len())),
            Routing::Random { seed } => {
                let mut values = vec![0f32; ids.len() * experts];
                for ((row, &id), &position) in
                    values.chunks_exact_mut(experts).zip(ids).zip(&ragged.positions)
                {
                    row[crate::random::below(experts, *seed, u64::from(position), u64::from(id))] = 1.0;
                }
                given(values)
            }
            Routing::Learned(router) => {
                let Some(h) = Self::pass_input(router, embedded, base_last)? else {
                    return Ok(PassGates::PerBlock);
                };
                Ok(PassGates::Given(gates::portable(
                    h,
                    router.weight(0),
                    router.bias.as_ref(),
                    &router.config.gate,
                    ragged.sequences(router.config.granularity, of_block(earlier, 0)),
                )?))
            }
        }
    }

    /// What a router reads that decides before the blocks run; `None`: each block's input.
    fn pass_input<'t>(
        router: &Router,
        embedded: &'t Tensor,
        base_last: Option<&'t Tensor>,
    ) -> Result<Option<&'t Tensor>> {
        match router.config.input {
            RouterInput::Block => Ok(None),
            RouterInput::Embedding => Ok(Some(embedded)),
            RouterInput::BaseLast => base_last.map(Some).ok_or_else(|| {
                Error::Unsupported("a base_last router needs the base's final hidden states".into())
            }),
        }
    }

    /// The experts and gate of one block in a pass.
    fn block_experts<'a>(
        mixture: Option<&'a Mixture>,
        gates: &'a PassGates,
        block: usize,
        ragged: &'a Ragged,
        earlier: &'a [Vec<f32>],
        dropout: Option<&'a Dropout>,
    ) -> Option<BlockExperts<'a>> {
        let mixture = mixture?;
        let gate = match (gates, &mixture.routing) {
            (PassGates::Given(gates), _) => Gate::Given(gates),
            (PassGates::PerBlock, Routing::Learned(router)) => {
                let sequences = ragged.sequences(router.config.granularity, of_block(earlier, block));
                Gate::Routed(router.weight(block), router.config.gate, sequences)
            }
            _ => Gate::Full,
        };
        let (params, layout) = (&mixture.experts.params[block], &mixture.experts.layouts[block]);
        let dropout = dropout.map(|pass| BlockDropout { pass, block });
        Some(BlockExperts { params, layout, gate, dropout })
    }

    /// Rotary angles of each block for some positions; blocks with the same frequencies share them.
    fn angles(&self, positions: &[u32]) -> Vec<Arc<Angles>> {
        let Body::Fused(blocks) = &self.body else { return Vec::new() };
        let mut known: Vec<(&[f32], Arc<Angles>)> = Vec::new();
        blocks
            .iter()
            .map(|block| {
                let frequencies = &*block.spec.inv_freq;
                if let Some((_, angles)) = known.iter().find(|(f, _)| *f == frequencies) {
                    return angles.clone();
                }
                let angles = Arc::new(Angles::new(positions, frequencies));
                known.push((frequencies, angles.clone()));
                angles
            })
            .collect()
    }

    /// The base's final hidden states (after the final norm) of whole sequences, when the mixture's router reads them.
    fn base_last_whole(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Mixture>,
    ) -> Result<Option<Tensor>> {
        mixture.is_some_and(Mixture::reads_base_last).then(|| self.base_last(ids, ragged)).transpose()
    }

    /// The final hidden states (after the final norm) `[rows, d]` of whole sequences in the base without experts.
    pub fn base_last(&self, ids: &[u32], ragged: &Ragged) -> Result<Tensor> {
        let (x, _) = self.run(ids, ragged, None, None, None, false)?;
        self.final_norm(&x)
    }

    /// The final norm of `x [rows, d]`.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        let _guard = self.body_guard();
        match &self.body {
            Body::Portable(_) => Ok(self.head.portable_norm(x)?),
            Body::Fused(_) => {
                let x_values = values(x)?;
                let mut y = vec![0f32; x_values.len()];
                self.head.final_norm(&x_values, &mut y);
                Ok(Tensor::from_vec(y, x.shape(), &self.device)?)
            }
        }
    }

    /// `scale · Σ −log p(token)` over the targets, from [`Decoder::hidden`]'s output. Differentiable.
    ///
    /// # Errors
    /// A target outside the batch or the vocabulary.
    pub fn loss(&self, hidden: &Tensor, targets: &[Target], scale: f32) -> Result<Tensor> {
        let _guard = self.body_guard();
        let rows = hidden.dim(0)?;
        if let Some(t) = targets.iter().find(|t| t.row >= rows || t.token as usize >= self.config.vocab_size)
        {
            return Err(Error::Unsupported(format!(
                "target token {} of row {} lies outside {rows} rows and {} tokens",
                t.token, t.row, self.config.vocab_size
            )));
        }
        match &self.body {
            Body::Fused(_) => Ok(FusedLoss::apply(&self.head, hidden, targets, scale)?),
            Body::Portable(_) => Ok(self.head.portable_loss(hidden, targets, scale)?),
        }
    }

    /// Logits `[rows, vocab]` on the CPU of the given rows of [`Decoder::hidden`]'s output, row-major.
    ///
    /// # Errors
    /// A logit that is not finite: nothing can be chosen or scored by it.
    pub fn logits(&self, hidden: &Tensor, rows: &[usize]) -> Result<Vec<f32>> {
        let logits = self.all_logits(hidden, rows)?;
        check_logits(&logits, self.config.vocab_size, rows)?;
        Ok(logits)
    }

    fn all_logits(&self, hidden: &Tensor, rows: &[usize]) -> Result<Vec<f32>> {
        let _guard = self.body_guard();
        let d = self.config.hidden_size;
        match &self.body {
            Body::Fused(_) => {
                let x = values(hidden)?;
                let picked: Vec<f32> =
                    rows.iter().flat_map(|&r| x[r * d..(r + 1) * d].iter().copied()).collect();
                let mut normed = vec![0f32; picked.len()];
                self.head.final_norm(&picked, &mut normed);
                let mut logits = vec![0f32; rows.len() * self.config.vocab_size];
                self.head.fused_logits(&normed, &mut logits);
                Ok(logits)
            }
            // Other devices have no operations on nothing.
            Body::Portable(_) if rows.is_empty() => Ok(Vec::new()),
            Body::Portable(_) => {
                let rows = Tensor::from_iter(rows.iter().map(|&r| r as u32), &self.device)?;
                let normed = self.head.portable_norm(&hidden.index_select(&rows, 0)?)?;
                Ok(self.head.portable_logits(&normed)?.flatten_all()?.to_vec1()?)
            }
        }
    }

    /// A pass without gradients. Returns the last block's output `[rows, d]` and, when asked, each block's gates.
    fn run(
        &self,
        ids: &[u32],
        ragged: &Ragged,
        mixture: Option<&Mixture>,
        mut cached: Option<CachedPass<'_>>,
        base_last: Option<&Tensor>,
        trace: bool,
    ) -> Result<(Tensor, Vec<Vec<f32>>)> {
        let _guard = self.body_guard();
        let embedded = self.embed(ids)?;
        let earlier = cached.as_mut().map(|cached| std::mem::take(&mut cached.earlier)).unwrap_or_default();
        let gates = match mixture {
            Some(m) => self.pass_gates(m, ids, ragged, &embedded, base_last, &earlier)?,
            None => PassGates::Full,
        };
        let mut traced = Vec::new();
        let x = match &self.body {
            Body::Portable(blocks) => {
                let mut x = embedded;
                for (index, (spec, weights)) in blocks.iter().enumerate() {
                    let experts = Self::block_experts(mixture, &gates, index, ragged, &earlier, None);
                    let mut past = match &mut cached {
                        Some(CachedPass { cache: KvCache::Tensors(all), sequences, .. }) => {
                            cache::take_past(all, sequences, index)
                        }
                        _ => Vec::new(),
                    };
                    let (y, used) = portable::block(spec, weights, &x, ragged, experts, &mut past)?;
                    if let Some(CachedPass { cache: KvCache::Tensors(all), sequences, .. }) = &mut cached {
                        cache::put_past(all, sequences, index, past);
                    }
                    if trace && let Some(gates) = used {
                        traced.push(gates.flatten_all()?.to_vec1()?);
                    }
                    x = y;
                }
                x
            }
            Body::Fused(blocks) => {
                let mut x = values(&embedded)?.to_vec();
                let mut y = vec![0f32; x.len()];
                let mut act = Activations::default();
                let angles = self.angles(&ragged.positions);
                for (index, block) in blocks.iter().enumerate() {
                    let experts = Self::block_experts(mixture, &gates, index, ragged, &earlier, None);
                    let params = experts.map(|e| values(e.params)).transpose()?;
                    let third = match experts.map(|e| e.gate) {
                        Some(Gate::Given(t) | Gate::Routed(t, ..)) => Some(values(t)?),
                        _ => None,
                    };
                    let experts = experts.zip(params.as_deref()).map(|(e, params)| ExpertValues {
                        params,
                        layout: e.layout,
                        dropout: None,
                        gate: match (e.gate, third.as_deref()) {
                            (Gate::Given(_), Some(gates)) => GateValues::Given(gates),
                            (Gate::Routed(_, config, sequences), Some(r)) => {
                                GateValues::Routed(r, config, sequences)
                            }
                            _ => GateValues::Full,
                        },
                    });
                    self.run_fused(
                        block,
                        index,
                        &x,
                        ragged,
                        &angles[index],
                        experts,
                        &mut cached,
                        &mut act,
                        &mut y,
                    )?;
                    if trace {
                        match experts.map(|e| e.gate) {
                            Some(GateValues::Given(gates)) => traced.push(gates.to_vec()),
                            Some(GateValues::Routed(..)) => traced.push(act.gates.to_vec()),
                            _ => {}
                        }
                    }
                    std::mem::swap(&mut x, &mut y);
                }
                Tensor::from_vec(x, (ids.len(), self.config.hidden_size), &self.device)?
            }
        };
        Ok((x, traced))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one block's part of a pass; a struct would only rename the same things"
    )]
    fn run_fused(
        &self,
        block: &FusedBlock,
        index: usize,
        x: &[f32],
        ragged: &Ragged,
        angles: &Angles,
        experts: Option<ExpertValues<'_>>,
        cached: &mut Option<CachedPass<'_>>,
        act: &mut Activations,
        y: &mut [f32],
    ) -> Result<()> {
        match cached {
            None => {
                let attend = Attend::Whole(&ragged.segments);
                block.forward(x, angles, attend, experts, act, y);
            }
            Some(CachedPass { cache: KvCache::Paged(cache), sequences, .. }) => {
                let PagedParts { tables, keys, values } = cache.parts(sequences, index);
                let segments: Vec<PagedSegment<'_>> = tables
                    .iter()
                    .zip(&ragged.segments)
                    .map(|((pages, kv_len), s)| PagedSegment {
                        q_start: s.start,
                        q_len: s.len,
                        kv_len: *kv_len,
                        pages,
                    })
                    .collect();
                let attend = Attend::Paged { segments: &segments, page_tokens: PAGE_TOKENS, keys, values };
                block.forward(x, angles, attend, experts, act, y);
            }
            Some(CachedPass { cache: KvCache::Tensors(_), .. }) => {
                return Err(Error::Unsupported("the fused body needs a paged cache".into()));
            }
        }
        Ok(())
    }

    /// Each block's gates `[rows, experts]` for whole sequences `ids`: which expert every token went to.
    pub fn route(&self, ids: &[u32], ragged: &Arc<Ragged>, mixture: &Mixture) -> Result<Vec<Vec<f32>>> {
        let base_last = self.base_last_whole(ids, ragged, Some(mixture))?;
        Ok(self.run(ids, ragged, Some(mixture), None, base_last.as_ref(), true)?.1)
    }

    fn new_cache(&self) -> KvCache {
        match self.body {
            Body::Portable(_) => KvCache::Tensors(Vec::new()),
            Body::Fused(_) => KvCache::Paged(PagedCache::new(
                self.config.blocks.len(),
                self.config.num_kv_heads * self.config.head_dim,
            )),
        }
    }
}

/// What was decided earlier for one block.
fn of_block(earlier: &[Vec<f32>], block: usize) -> &[f32] {
    earlier.get(block).map_or(&[], Vec::as_slice)
}
