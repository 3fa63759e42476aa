//! Evaluation: what a model's answers are worth.
//!
//! [`checks`] scores a domain's own check set, [`answers`] says what counts as right, [`sandbox`] runs generated code,
//! [`stats`] says how much a difference means.

pub mod error;
pub mod sandbox;

pub use error::{Error, Result};
