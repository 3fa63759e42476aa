//! Serving a model: an [`engine`] that continues many requests side by side, and an HTTP API like OpenAI's over it.
//!
//! Start reading at [`engine`] (one thread owns the model; requests join and leave its batch), then [`api`] (what can be
//! asked), then [`prompt`] (how a conversation becomes a prompt).

pub mod api;
pub mod engine;
pub mod error;
mod metrics;
pub mod prompt;
mod text;

pub use error::{Error, Result};
