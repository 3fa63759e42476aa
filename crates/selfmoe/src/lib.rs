//! Self-specialisation: domains, the base model's own training data, expert and router training, merging.
//!
//! Start reading at [`record`]: the rows that everything else makes, filters, trains on or checks. Data is made in
//! four steps: [`brainstorm`] (the model writes tasks), [`select::select`] (which of them are kept), [`respond`] (the
//! model answers them) and [`select::assemble`] (which rows are kept). The first and the third run in shards; the
//! others are pure functions of the shards' rows. [`confirm`] can then keep those rows alone that something else confirms. [`quality`] describes the result, [`merge`] joins trained experts
//! without a router.

pub mod answer;
pub mod arrow;
pub mod brainstorm;
pub mod confirm;
pub mod domain;
pub mod error;
pub mod execute;
pub mod filter;
pub mod follow_up;
pub mod jsonl;
pub mod merge;
pub mod parse;
pub mod plan;
mod prompt;
pub mod quality;
pub mod recipe;
pub mod record;
pub mod respond;
pub mod rouge;
pub mod select;
pub mod shard;
pub mod template;
pub mod train;
pub mod verify;

// Records draw from the same streams as the model's own random numbers.
pub use mixse_model::random;

pub use error::{Error, Result};
