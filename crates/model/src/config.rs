//! What a base model is: the sizes and switches by which the architectures differ.
//!
//! The seven supported architectures are values of [`ModelConfig`]; the decoder has no code of its own for any of them.

mod gguf;
mod gguf_keys;
mod hf;
mod hf_keys;
mod hf_write;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, keys};

/// More blocks than any known model has; bounds what a damaged file can ask for.
const MAX_BLOCKS: usize = 4096;
/// Larger than any size of a known model; the product of two sizes still fits in 64 bits.
const MAX_SIZE: usize = 1 << 28;

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

impl Architecture {
    /// The architectures that can be read, for error messages.
    const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, gemma, gemma2 and gemma3 are";

    fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }
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

impl Rope {
    /// `base^(-2i / head_dim)` for i in 0..head_dim/2, stretched; `factors` are [`ModelConfig::rope_factors`].
    pub(crate) fn inverse_frequencies(&self, head_dim: usize, factors: &[f32]) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                // The reference computes these in f32; so do we, to agree at long positions.
                let frequency = 1.0 / (self.base as f32).powf((2 * i) as f32 / head_dim as f32);
                match self.scaling {
                    RopeScaling::None => frequency,
                    RopeScaling::Linear { factor } => frequency / factor as f32,
                    RopeScaling::Factors { .. } => frequency / factors.get(i).copied().unwrap_or(1.0),
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                        let context = original_context as f32;
                        let wavelength = 2.0 * std::f32::consts::PI / frequency;
                        let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                        if wavelength > context / low {
                            frequency / factor as f32
                        } else if wavelength < context / high {
                            frequency
                        } else {
                            let smooth = (context / wavelength - low) / (high - low);
                            (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                        }
                    }
                }
            })
            .collect()
    }
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

impl ModelConfig {
    /// Reads the `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    /// The file is missing or malformed, a key is missing or has the wrong type, or the model needs something that the
    /// decoder does not have.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        Ok(hf::read(&directory.join("config.json"))?.config)
    }

    /// As [`ModelConfig::from_directory`], and whether the model has a vision part beside the text model.
    pub(crate) fn with_vision_part(directory: &Path) -> Result<(Self, bool)> {
        let read = hf::read(&directory.join("config.json"))?;
        Ok((read.config, read.has_vision))
    }

    /// The configuration as the content of a `config.json`.
    ///
    /// # Errors
    /// What Hugging Face's class of the architecture has no key for.
    pub fn to_hugging_face(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        hf_write::write(self)
            .map_err(|what| Error::Unsupported(format!("config.json cannot say what this model is: {what}")))
    }

    pub(crate) fn from_gguf(file: &crate::weights::Gguf) -> Result<Self> {
        gguf::read(file)
    }

    /// The tensors that a model of this configuration has, by their Hugging Face names, with their shapes.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let q = self.num_heads * self.head_dim;
        let kv = self.num_kv_heads * self.head_dim;
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for block in 0..self.blocks.len() {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{block}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[d]);
            for (name, out, bias) in [
                ("q_proj", q, self.qkv_bias),
                ("k_proj", kv, self.qkv_bias),
                ("v_proj", kv, self.qkv_bias),
                ("o_proj", d, self.output_bias),
            ] {
                add(&format!("self_attn.{name}.weight"), &[out, if name == "o_proj" { q } else { d }]);
                if bias {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", &[self.head_dim]);
                add("self_attn.k_norm.weight", &[self.head_dim]);
            }
            add("post_attention_layernorm.weight", &[d]);
            if self.post_norms {
                add("pre_feedforward_layernorm.weight", &[d]);
                add("post_feedforward_layernorm.weight", &[d]);
            }
            add("mlp.gate_proj.weight", &[self.intermediate_size, d]);
            add("mlp.up_proj.weight", &[self.intermediate_size, d]);
            add("mlp.down_proj.weight", &[d, self.intermediate_size]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tied_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        tensors
    }

    /// Refuses what no decoder could run.
    fn validated(self, path: &Path) -> Result<Self> {
        let fail = |what: String| Err(Error::invalid(path, what));
        for (name, size) in [
            ("vocabulary", self.vocab_size),
            ("hidden size", self.hidden_size),
            ("MLP width", self.intermediate_size),
            ("number of heads", self.num_heads),
            ("number of key and value heads", self.num_kv_heads),
            ("head width", self.head_dim),
            ("context length", self.context_length),
            ("number of blocks", self.blocks.len()),
        ] {
            if size == 0 || size > MAX_SIZE {
                return fail(format!("the {name} is {size}, which cannot be right"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return fail(format!(
                "{} query heads cannot share {} key and value heads evenly",
                self.num_heads, self.num_kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "the head width is {}; the rotary embedding needs an even one",
                self.head_dim
            ));
        }
        if self.blocks.iter().any(|block| block.window == Some(0)) {
            return fail("the sliding window is 0".to_owned());
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let bases = self.blocks.iter().map(|block| ("rope base", block.rope.base));
        let factors = self.blocks.iter().filter_map(|block| match block.rope.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } => {
                Some(("rope factor", factor))
            }
            RopeScaling::None | RopeScaling::Factors { .. } => None,
        });
        let caps = [("attention soft cap", self.attention_softcap), ("logit soft cap", self.logit_softcap)];
        let caps = caps.into_iter().filter_map(|(name, cap)| Some((name, cap?)));
        let single = [
            ("norm epsilon", self.norm_eps),
            ("attention scale", self.attention_scale),
            ("embedding scale", self.embedding_scale),
        ];
        match bases.chain(factors).chain(caps).chain(single).find(|&(_, x)| !positive(x)) {
            Some((name, x)) => fail(format!("the {name} is {x}; it must be a positive number")),
            None => Ok(self),
        }
    }
}

/// What is done with the keys of a `config.json`, for the documentation.
pub(crate) fn hugging_face_documentation() -> String {
    use Architecture::{Gemma, Gemma2, Gemma3, Llama, Mistral, Qwen2, Qwen3};
    let mut out = String::from("### All architectures\n\n");
    keys::markdown(&[hf_keys::COMMON], &mut out);
    for (name, architecture) in [
        ("llama", Llama),
        ("mistral", Mistral),
        ("qwen2", Qwen2),
        ("qwen3", Qwen3),
        ("gemma", Gemma),
        ("gemma2", Gemma2),
        ("gemma3_text", Gemma3),
    ] {
        out.push_str(&format!("### {name}\n\n"));
        keys::markdown(&[hf_keys::of(architecture)], &mut out);
    }
    out.push_str("### gemma3 (with a vision part; only the text model is read)\n\n");
    keys::markdown(&[hf_keys::VISION], &mut out);
    out.push_str("### Inside `rope_parameters` and `rope_scaling`\n\n");
    keys::markdown(&[hf_keys::ROPE], &mut out);
    out.push_str(
        "Kinds of rope: `default`, `linear` and `llama3`; others are refused. A key that is in no list is one that\n\
         transformers does not read either: it is ignored, which is said where it has a value.\n",
    );
    out
}

/// What is done with the metadata of a GGUF file, for the documentation.
pub(crate) fn gguf_documentation() -> String {
    let mut out = String::from("### Under the architecture's prefix (`llama.block_count`)\n\n");
    keys::markdown(&[gguf_keys::MODEL], &mut out);
    out.push_str("### Of the file\n\n");
    keys::markdown(&[gguf_keys::FILE], &mut out);
    out.push_str(
        "Other keys under the prefix are ignored, which is said where they have a value; `general.…` and `quantize.…`\n\
         describe the file. A model in several files is opened by its first one.\n",
    );
    out
}

/// A number of blocks that may be allocated for.
fn checked_block_count(path: &Path, count: usize) -> Result<usize> {
    if count > MAX_BLOCKS {
        return Err(Error::invalid(path, format!("has {count} blocks; at most {MAX_BLOCKS} are supported")));
    }
    Ok(count)
}
