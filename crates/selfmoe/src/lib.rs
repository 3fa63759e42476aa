//! Self-specialisation: domains, the base model's own training data, expert and router training, merging.
//!
//! Start reading at [`record`]: the rows that everything else makes, filters, trains on or checks.

pub mod plan;
pub mod answer;
pub mod domain;
pub mod error;
pub mod jsonl;
pub mod random;
pub mod record;
pub mod rouge;
pub mod template;

pub use error::{Error, Result};
