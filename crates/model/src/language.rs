//! What the other crates ask of a model: to continue prompts and to score continuations.
//!
//! [`LanguageModel`] is implemented by the real thing (a base model with or without experts and a router) and by
//! scripted fakes in tests.

use std::{ops::ControlFlow, sync::Arc};

pub use mixse_kernels::sample::Penalties;

use crate::{Result, tokenizer::Tokenizer};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The most likely token; the lowest id among equals.
    Greedy,
    /// Nucleus sampling. The random numbers depend on `stream` and the position only, so that a request gives the same
    /// tokens in any batch, on any number of threads and after any restart.
    TopP {
        /// Divides the logits.
        temperature: f32,
        /// The smallest set of most likely tokens with at least this probability is kept.
        top_p: f32,
        /// Names the request's stream of random numbers.
        stream: u64,
    },
}

/// A prompt to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Tokens shared with other requests, computed once and kept (may be empty).
    pub prefix: Arc<[u32]>,
    /// The rest of the prompt; `prefix` and `prompt` together are at least one token.
    pub prompt: Vec<u32>,
    /// At most so many tokens are generated.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Generation ends when the text holds one of these; the text is cut before it. One that spells a special token is looked
    /// for in the text with special tokens spelled out.
    pub stop: Vec<String>,
    /// Everything else.
    pub controls: Controls,
}

/// How an answer is steered and what is told of it, beyond the usual. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Controls {
    /// So many most likely tokens are drawn from, before `top_p`; 0: all.
    pub top_k: usize,
    /// Tokens with less than this share of the greatest probability are not drawn.
    pub min_p: f32,
    /// What tokens lose that have been there before.
    pub penalties: Penalties,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that end the answer beside the model's own; they are left out of it.
    pub stop_ids: Vec<u32>,
    /// No token ends the answer before so many were written.
    pub min_new_tokens: usize,
    /// The model's own end does not end the answer.
    pub ignore_eos: bool,
    /// The log-probability of each token is told, beside those of so many most likely ones.
    pub log_probs: Option<usize>,
    /// The same for the prompt's tokens.
    pub prompt_log_probs: bool,
}

/// A token and how likely it was, before any [`Controls`] and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    /// The token.
    pub id: u32,
    /// Its natural-log probability.
    pub log_prob: f32,
    /// The most likely tokens with theirs, the likeliest first, the lower id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Why a completion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop string appeared: its index in [`Request::stop`].
    Stop(usize),
    /// `max_new_tokens` or the context length was reached: the text may be unfinished.
    Length,
}

/// What the model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Generated tokens, the end-of-sequence token left out, those of a stop string included.
    pub ids: Vec<u32>,
    /// Their text, cut before the stop string.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// A continuation whose probability is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreRequest {
    /// Tokens shared with other requests, computed once and kept (may be empty).
    pub prefix: Arc<[u32]>,
    /// The rest of the context; `prefix` and `context` together are at least one token.
    pub context: Vec<u32>,
    /// The tokens that are scored.
    pub continuation: Vec<u32>,
}

/// Log-probability of a continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Natural-log probability of each token of the continuation, given what stands before it.
    pub token_log_probs: Vec<f32>,
    /// Every token of the continuation is the most likely one at its place.
    pub greedy: bool,
}

impl Score {
    /// Natural-log probability of the whole continuation.
    pub fn log_likelihood(&self) -> f64 {
        self.token_log_probs.iter().map(|&p| f64::from(p)).sum()
    }
}

/// A model that can write and judge text.
pub trait LanguageModel {
    /// Its tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// Prompt and completion together may have so many tokens.
    fn context_length(&self) -> usize;

    /// Continues every request, batched, and hands each completion to `done` with the request's index as soon as it is
    /// finished (in any order). `ControlFlow::Break` stops the work early without an error.
    ///
    /// # Errors
    /// A prompt is empty or longer than the context; nothing is generated in that case.
    fn generate(
        &self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Completion) -> ControlFlow<()>,
    ) -> Result<()>;

    /// Scores every request, batched, handing out results as they come (in any order).
    ///
    /// # Errors
    /// As [`LanguageModel::generate`].
    fn score(
        &self,
        requests: &[ScoreRequest],
        done: &mut dyn FnMut(usize, Score) -> ControlFlow<()>,
    ) -> Result<()>;
}
