//! Benchmarks with the results of lm-evaluation-harness 0.4.13, sample by sample.
//!
//! [`builtin`] and [`user`] turn files into a [`task::Task`]; [`run::evaluate`] makes the prompts, asks the models and judges;
//! [`summary`] and [`mod@compare`] say what came out; [`output`] writes it in the harness's files.

mod ask;
pub mod builtin;
pub mod cache;
pub mod compare;
pub mod filter;
mod judge;
pub mod math;
pub mod metric;
pub mod output;
mod python_random;
pub mod run;
pub mod summary;
pub mod task;
mod text;
pub mod user;
