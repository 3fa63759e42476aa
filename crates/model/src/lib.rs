//! Base models, tokenizers, LoRA experts, the router and everything that runs a forward pass.
//!
//! One decoder ([`config::ModelConfig`] configures it) serves training, generation, evaluation and serving.
//! Start reading at [`config`] (what a model is), then `decoder` (the forward pass) and [`language`] (what the
//! other crates ask of a model).

mod chat;
pub mod config;
pub mod error;
pub mod language;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
