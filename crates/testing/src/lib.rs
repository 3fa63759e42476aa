//! Small model files, written by the tests that need them: a GGUF writer, a tiny random model of every architecture, tiny
//! vocabularies, a model that writes words, and a limit for processes that may hang.
//!
//! For tests alone: a fault here is a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault in a test's own support is a panic")]

pub mod generated;
pub mod gguf;
pub mod process;
pub mod speaker;
pub mod tiny;
pub mod vocabulary;
