//! Model files: GGUF and Hugging Face directories behind one view.

use std::path::Path;

use candle_core::Tensor;

use crate::{Result, config::ModelConfig, tokenizer::Tokenizer};

/// An opened base model: its configuration, its tokenizer and its tensors by their Hugging Face names
/// (`model.embed_tokens.weight`, `model.layers.0.self_attn.q_proj.weight`, …, `model.norm.weight`, `lm_head.weight`).
#[derive(Debug)]
pub struct Checkpoint {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
}

impl Checkpoint {
    /// Opens a `.gguf` file or a Hugging Face directory and checks that every tensor the configuration needs is
    /// there with the right shape and inside the file; reads no tensor data.
    pub fn open(_path: &Path) -> Result<Self> {
        Err(crate::Error::Unsupported("not built yet".into()))
    }

    /// One tensor, f32 on the CPU, `[out, in]` for a projection, in Hugging Face's conventions (q and k rows not
    /// permuted, Gemma norms without the added one).
    pub fn tensor(&self, _name: &str) -> Result<Tensor> {
        Err(crate::Error::Unsupported("not built yet".into()))
    }

    /// SHA-256 (lower-case hex) over the model's files: the identity that adapters and runs record.
    pub fn hash(&self) -> Result<String> {
        Err(crate::Error::Unsupported("not built yet".into()))
    }
}
