//! What a base model is: the sizes and switches by which the architectures differ.
//!
//! The seven supported architectures are values of [`ModelConfig`]; the decoder has no code of its own for any of them.

use serde::{Deserialize, Serialize};

/// The architectures that can be read. The decoder looks at the fields of [`ModelConfig`], never at this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama 1 to 3, SmolLM 1 and 2, and whatever else calls itself `llama`.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on q, k, v.
    Qwen2,
    /// Qwen 3: RMS norm on each head of q and k.
    Qwen3,
    /// Gemma 1.
    Gemma,
    /// Gemma 2: soft caps, alternating windows, norms after the attention and the MLP.
    Gemma2,
    /// Gemma 3 (text): two rope bases, q and k norms.
    Gemma3,
}

/// The gated MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's piecewise scaling by wavelength.
    Llama3 {
        /// The divisor for long wavelengths.
        factor: f64,
        /// Wavelengths above `original_context / low` are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high` stay.
        high_freq_factor: f64,
        /// The context length that the model was trained with before scaling.
        original_context: usize,
    },
    /// A divisor for each of the head_dim / 2 frequencies, as some GGUF files carry (`rope_freqs.weight`).
    Factors {
        /// Index into [`ModelConfig::rope_factors`] is the frequency's; kept there so that this type stays `Copy`.
        len: usize,
    },
}

/// Rotary position embedding of one kind of block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// The base of the frequencies (theta).
    pub base: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

/// What differs from block to block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// A token sees the last `window` tokens, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// The rotary embedding of this block.
    pub rope: Rope,
}

/// Sizes and switches of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Where the values below came from.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream (d).
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; q is `num_heads * head_dim` wide, which need not be `hidden_size`.
    pub head_dim: usize,
    /// The longest sequence that the model was made for.
    pub context_length: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Norms multiply by `1 + weight` (Gemma) instead of `weight`.
    pub norm_plus_one: bool,
    /// Activation of the gated MLP.
    pub activation: Activation,
    /// Scores are multiplied by this before the softmax (usually head_dim^-0.5).
    pub attention_scale: f64,
    /// `cap · tanh(score / cap)` on attention scores (Gemma 2).
    pub attention_softcap: Option<f64>,
    /// `cap · tanh(logit / cap)` on the output logits (Gemma 2).
    pub logit_softcap: Option<f64>,
    /// The embedding is multiplied by this (Gemma: sqrt(hidden_size), rounded to the weights' own precision by the reference).
    pub embedding_scale: f64,
    /// q, k and v projections have biases.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub output_bias: bool,
    /// RMS norm on each head of q and k before the rotary embedding.
    pub qk_norm: bool,
    /// Two more norms a block: after the attention and after the MLP, before they join the residual stream (Gemma 2 and 3).
    pub post_norms: bool,
    /// The output head is the embedding.
    pub tied_embeddings: bool,
    /// Divisors for [`RopeScaling::Factors`]; empty otherwise.
    pub rope_factors: Vec<f32>,
    /// One entry a block.
    pub blocks: Vec<BlockConfig>,
}
