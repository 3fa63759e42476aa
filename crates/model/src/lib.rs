//! Base models, tokenizers, LoRA experts, the router and everything that runs a forward pass.
//!
//! One decoder ([`config::ModelConfig`] configures it) serves training, generation, evaluation and serving.
//! Start reading at [`config`] (what a model is), then [`decoder`] (the forward pass) and [`language`] (what the
//! other crates ask of a model).

pub mod cache;
mod chat;
pub mod compatibility;
pub mod config;
pub mod decoder;
pub mod error;
pub mod expert;
pub mod expert_set;
pub mod export;
pub mod files;
pub mod finite;
pub mod generate;
mod keys;
pub mod language;
pub mod memory;
pub mod mixture;
mod notices;
mod ops;
pub mod peft;
pub mod random;
pub mod router;
pub mod router_files;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
