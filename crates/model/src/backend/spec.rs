//! What a block is, whichever backend runs it, and which tensors of a checkpoint it takes.
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

use mixse_kernels::{AttentionShape, RmsNorm};

use crate::{
    Result,
    config::{Activation, ModelConfig},
    expert::{Module, PerModule},
    weights::Checkpoint,
};

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
                bf16: false,
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

/// A frozen linear module: W `[n, k]`, as a backend holds it, and its bias.
#[derive(Debug)]
pub(crate) struct Projection<W> {
    pub(crate) weight: W,
    pub(crate) bias: Option<Vec<f32>>,
}

/// The frozen tensors of a block.
#[derive(Debug)]
pub(crate) struct BlockWeights<W> {
    pub(crate) projections: PerModule<Projection<W>>,
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) q_norm: Option<Vec<f32>>,
    pub(crate) k_norm: Option<Vec<f32>>,
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) post_mlp_norm: Option<Vec<f32>>,
}

impl<W> BlockWeights<W> {
    /// Reads a block; `hold` reads the matrix with a name and keeps it the backend's way.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        block: usize,
        hold: &mut dyn FnMut(&str) -> Result<W>,
    ) -> Result<Self> {
        let config = &checkpoint.config;
        let name = |path: &str| format!("model.layers.{block}.{path}");
        let optional = |wanted: bool, path: &str| wanted.then(|| vector(checkpoint, &name(path))).transpose();
        let projections = PerModule::try_from_fn(|module| {
            let biased = match module {
                Module::Q | Module::K | Module::V => config.qkv_bias,
                Module::O => config.output_bias,
                Module::Gate | Module::Up | Module::Down => false,
            };
            Ok(Projection {
                weight: hold(&name(&format!("{}.weight", module.path())))?,
                bias: optional(biased, &format!("{}.bias", module.path()))?,
            })
        })?;
        // With two more norms a block, Hugging Face calls the norm after the attention `post_attention_layernorm` and
        // the one before the MLP `pre_feedforward_layernorm`; without them `post_attention_layernorm` is the one before the MLP.
        let mlp_norm =
            if config.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Ok(Self {
            projections,
            attention_norm: vector(checkpoint, &name("input_layernorm.weight"))?,
            mlp_norm: vector(checkpoint, &name(&format!("{mlp_norm}.weight")))?,
            q_norm: optional(config.qk_norm, "self_attn.q_norm.weight")?,
            k_norm: optional(config.qk_norm, "self_attn.k_norm.weight")?,
            post_attention_norm: optional(config.post_norms, "post_attention_layernorm.weight")?,
            post_mlp_norm: optional(config.post_norms, "post_feedforward_layernorm.weight")?,
        })
    }
}

/// What stands before and after the blocks.
#[derive(Debug)]
pub(crate) struct Ends<W> {
    /// `[vocabulary, d]`.
    pub(crate) embedding: Arc<W>,
    pub(crate) embedding_scale: f32,
    /// The final norm's weight, `[d]`.
    pub(crate) norm: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) plus_one: bool,
    /// The output projection `[vocabulary, d]`; where it is tied, the embedding.
    pub(crate) head: Arc<W>,
    pub(crate) softcap: Option<f32>,
}

impl<W> Ends<W> {
    /// As [`BlockWeights::load`].
    pub(crate) fn load(checkpoint: &Checkpoint, hold: &mut dyn FnMut(&str) -> Result<W>) -> Result<Self> {
        let config = &checkpoint.config;
        let embedding = Arc::new(hold("model.embed_tokens.weight")?);
        let head = if config.tied_embeddings { embedding.clone() } else { Arc::new(hold("lm_head.weight")?) };
        Ok(Self {
            embedding,
            embedding_scale: config.embedding_scale as f32,
            norm: vector(checkpoint, "model.norm.weight")?,
            eps: config.norm_eps as f32,
            plus_one: config.norm_plus_one,
            head,
            softcap: config.logit_softcap.map(|c| c as f32),
        })
    }

    /// Width of the residual stream.
    pub(crate) fn d(&self) -> usize {
        self.norm.len()
    }
}

fn vector(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    Ok(checkpoint.tensor(name)?.flatten_all()?.to_vec1()?)
}
