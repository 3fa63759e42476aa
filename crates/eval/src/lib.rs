//! Evaluation: what a model's answers are worth.
//!
//! [`checks`] scores a domain's own check set, [`answers`] says what counts as right, [`sandbox`] runs generated code,
//! [`stats`] says how much a difference means, [`report`] and [`study`] write it down, [`tasks`] are the benchmarks.

pub mod answers;
pub mod checks;
pub mod error;
pub mod report;
pub mod rows;
pub mod sandbox;
pub mod stats;
pub mod study;
pub mod tasks;

pub use error::{Error, Result};
