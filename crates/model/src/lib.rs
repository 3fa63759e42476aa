//! Base models, tokenizers, LoRA experts, the router and everything that runs a forward pass.
//!
//! One decoder ([`config::ModelConfig`] configures it) serves training, generation, evaluation and serving.
//! Start reading at [`config`] (what a model is), then `decoder.rs` (the forward pass) over `backend/mod.rs` (what computes it),
//! [`engine`] (what other crates know of both) and [`language`] (what they ask of a model that writes).

mod backend;
mod cache;
mod chat;
pub mod compatibility;
pub mod config;
mod decoder;
pub mod engine;
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
pub mod peft;
pub mod random;
#[cfg(feature = "reference")]
mod reference;
pub mod router;
pub mod router_files;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
