//! One decoder block: what it is, and the choice between its two bodies.
//!
//! ```text
//! h  = norm(x)                      gates = router(h), or given for all blocks
//! q, k, v = Wq h, Wk h, Wv h        every W adds Σ_i gate_i s_i B_i A_i of its own input
//! a  = attention(rope(q), rope(k), v)
//! x₂ = x + [norm] Wo a
//! h₂ = norm(x₂)
//! y  = x₂ + [norm] Wd (act(Wg h₂) ⊙ Wu h₂)
//! ```

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use mixse_kernels::{AttentionShape, Packed, RmsNorm, Segment, Storage};

use super::{dropout::BlockDropout, gates::Sequences};
use crate::{
    Result,
    backend::cpu::own_blocks,
    config::{Activation, ModelConfig},
    decoder::Precision,
    expert::Module,
    expert_set::BlockLayout,
    router::{GateConfig, Granularity},
    weights::Checkpoint,
};

/// The rows of a ragged batch: sequences one after another, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Ragged {
    /// Position of each row in its own sequence.
    pub positions: Vec<u32>,
    /// Which rows are one sequence.
    pub segments: Vec<Segment>,
    /// Rows at the start of each sequence that are its prompt, over which a router for whole sequences decides; 0: it has
    /// decided in an earlier pass.
    pub prompts: Vec<usize>,
}

impl Ragged {
    /// Whole sequences of the given lengths, each starting at position 0; all of each is a prompt.
    pub fn whole(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self::with_prompts(lengths.into_iter().map(|len| (len, len)))
    }

    /// Whole sequences, each given by the tokens of its prompt and all its tokens.
    pub fn with_prompts(lengths: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut ragged = Self { positions: Vec::new(), segments: Vec::new(), prompts: Vec::new() };
        for (prompt, len) in lengths {
            ragged.segments.push(Segment { start: ragged.positions.len(), len });
            ragged.positions.extend(0..len as u32);
            ragged.prompts.push(prompt.clamp(1, len.max(1)));
        }
        ragged
    }

    /// Its sequences as those that decide together, where a router decides for sequences.
    pub(crate) fn sequences<'a>(
        &'a self,
        granularity: Granularity,
        earlier: &'a [f32],
    ) -> Option<Sequences<'a>> {
        (granularity == Granularity::Sequence).then_some(Sequences { ragged: self, earlier })
    }

    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}

/// What a block needs besides its weights.
#[derive(Debug, Clone)]
pub(crate) struct BlockSpec {
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) attention: AttentionShape,
    pub(crate) eps: f32,
    pub(crate) plus_one: bool,
    pub(crate) activation: Activation,
    /// Rotary frequencies, `head_dim / 2`.
    pub(crate) inv_freq: Arc<[f32]>,
}

impl BlockSpec {
    pub(crate) fn new(config: &ModelConfig, block: usize) -> Self {
        let own = &config.blocks[block];
        Self {
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            attention: AttentionShape {
                heads: config.num_heads,
                kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                scale: config.attention_scale as f32,
                window: own.window,
                softcap: config.attention_softcap.map(|c| c as f32),
            },
            eps: config.norm_eps as f32,
            plus_one: config.norm_plus_one,
            activation: config.activation,
            inv_freq: config.blocks[block]
                .rope
                .inverse_frequencies(config.head_dim, &config.rope_factors)
                .into(),
        }
    }

    /// A norm of the block with its weight.
    pub(crate) fn norm<'w>(&self, weight: &'w [f32]) -> RmsNorm<'w> {
        RmsNorm { weight, eps: self.eps, plus_one: self.plus_one }
    }

    /// Width of q.
    pub(crate) fn q_width(&self) -> usize {
        self.attention.heads * self.attention.head_dim
    }

    /// Width of k and of v.
    pub(crate) fn kv_width(&self) -> usize {
        self.attention.kv_heads * self.attention.head_dim
    }
}

/// A frozen projection `[n, k]`, held for one of the two bodies.
#[derive(Debug)]
pub(crate) enum FrozenWeight {
    /// For the fused body.
    Packed(Packed),
    /// For the portable body.
    Tensor(Tensor),
}

/// The frozen tensors of a block.
#[derive(Debug)]
pub(crate) struct BlockWeights {
    pub(crate) projections: [FrozenWeight; 7],
    /// By [`Module::index`]; q, k, v and o only.
    pub(crate) biases: [Option<Vec<f32>>; 7],
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) q_norm: Option<Vec<f32>>,
    pub(crate) k_norm: Option<Vec<f32>>,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) post_mlp_norm: Option<Vec<f32>>,
}

/// Which body runs, and how it holds frozen weights.
#[derive(Debug, Clone)]
pub(crate) enum Holding {
    /// The fused body on the CPU.
    Fused(Storage),
    /// The portable body on a device, in f32; `Bf16` rounds first.
    Portable(Device, Precision),
}

impl BlockWeights {
    pub(crate) fn load(checkpoint: &Checkpoint, block: usize, holding: &Holding) -> Result<Self> {
        let config = &checkpoint.config;
        let name = |path: &str| format!("model.layers.{block}.{path}");
        let vector = |path: &str| -> Result<Vec<f32>> {
            Ok(checkpoint.tensor(&name(path))?.flatten_all()?.to_vec1()?)
        };
        let optional = |wanted: bool, path: &str| wanted.then(|| vector(path)).transpose();
        let mut projections = Vec::with_capacity(7);
        let mut biases = [const { None }; 7];
        for module in Module::ALL {
            projections.push(hold(checkpoint, &name(&format!("{}.weight", module.path())), holding)?);
            let biased = match module {
                Module::Q | Module::K | Module::V => config.qkv_bias,
                Module::O => config.output_bias,
                Module::Gate | Module::Up | Module::Down => false,
            };
            biases[module.index()] = optional(biased, &format!("{}.bias", module.path()))?;
        }
        let projections =
            projections.try_into().map_err(|_| candle_core::Error::Msg("seven projections".into()))?;
        // With two more norms a block, Hugging Face calls the norm after the attention `post_attention_layernorm` and
        // the one before the MLP `pre_feedforward_layernorm`; without them `post_attention_layernorm` is the one before the MLP.
        let mlp_norm =
            if config.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Ok(Self {
            projections,
            biases,
            attention_norm: vector("input_layernorm.weight")?,
            mlp_norm: vector(&format!("{mlp_norm}.weight"))?,
            q_norm: optional(config.qk_norm, "self_attn.q_norm.weight")?,
            k_norm: optional(config.qk_norm, "self_attn.k_norm.weight")?,
            post_attention_norm: optional(config.post_norms, "post_attention_layernorm.weight")?,
            post_mlp_norm: optional(config.post_norms, "post_feedforward_layernorm.weight")?,
        })
    }
}

/// Reads one frozen matrix and holds it as `holding` says. For 8 and for 4 bits the file's own blocks are kept as they
/// are where there are kernels for them; other blocks of a file are held in 8 bits, so that nothing is cut twice.
pub(crate) fn hold(checkpoint: &Checkpoint, name: &str, holding: &Holding) -> Result<FrozenWeight> {
    let mut storage = match holding {
        Holding::Fused(storage) => *storage,
        Holding::Portable(device, precision) => {
            let weight = checkpoint.tensor(name)?;
            let weight = match precision {
                Precision::Bf16 => weight.to_dtype(DType::BF16)?.to_dtype(DType::F32)?,
                _ => weight,
            };
            return Ok(FrozenWeight::Tensor(weight.to_device(device)?));
        }
    };
    if matches!(storage, Storage::Int8 | Storage::Q4)
        && let Some(blocks) = checkpoint.quantized(name)?
    {
        if let Some(packed) = own_blocks::pack(&blocks)? {
            return Ok(FrozenWeight::Packed(packed));
        }
        storage = Storage::Int8;
    }
    let weight = checkpoint.tensor(name)?;
    let (n, k) = weight.dims2()?;
    Ok(FrozenWeight::Packed(Packed::pack(&super::values(&weight)?, n, k, storage)))
}

/// The experts of one block, as a pass uses them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockExperts<'a> {
    /// The flat factors.
    pub(crate) params: &'a Tensor,
    pub(crate) layout: &'a Arc<BlockLayout>,
    pub(crate) gate: Gate<'a>,
    pub(crate) dropout: Option<BlockDropout<'a>>,
}

/// Where a block's gates come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gate<'a> {
    /// Every expert counts fully (a single expert: plain LoRA).
    Full,
    /// Gates `[rows, experts]`, the same for all blocks.
    Given(&'a Tensor),
    /// The router reads the block's own input: R `[choices, d]`. `None`: every row decides for itself.
    Routed(&'a Tensor, GateConfig, Option<Sequences<'a>>),
}
