//! Model files of every kind, made by the tests themselves: what is read from them, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helper functions too")]

mod blocks;
mod directories;
mod gguf;
mod hostile;
mod real_logits;
mod real_models;
mod special_tokens;
mod tokenizers;
