//! From prompts to tokens and from tokens to answers.
//!
//! Tokens are made as the harness makes them: context and continuation are encoded together after the white space at the
//! context's end has moved to the continuation, the continuation is what follows the context's own tokens; the
//! beginning-of-sequence token is the tokenizer's own policy, and is not doubled where a chat template has written it.
//! Special tokens are recognised where a chat template wrote them, in rows of benchmarks they are text.
//! What is too long loses its beginning.

use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

use mixse_model::{
    language::{Controls, LanguageModel, Request, Sampling, ScoreRequest},
    tokenizer::{Bos, MarkedText, Tokenizer},
};
use serde::Serialize;

use super::{
    cache::{Answer, Cache},
    text::is_space,
};
use crate::{Error, Result, rows};

/// A request to a model. Those of one `group` (a task) share a prefix.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub(super) group: usize,
    pub(super) context: MarkedText,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) enum What {
    Score { continuation: String },
    Generate { until: Vec<String>, max_tokens: usize, draw: Option<Draw> },
}

/// A sampled attempt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Draw {
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) stream: u64,
}

/// Raised whenever the same request to the same model comes to get another answer: how text becomes tokens, how answers end, how numbers are
/// computed. Kept answers of other versions are not used.
const CACHE_VERSION: &str = "3";

impl Ask {
    fn key(&self, identity: &str) -> Result<String> {
        let what = serde_json::to_string(&self.what).map_err(|e| Error::Invalid(e.to_string()))?;
        Ok(rows::key(&[CACHE_VERSION, identity, self.context.as_str(), &what]))
    }
}

/// The answers to all requests, in order, and how many prompts were cut.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) answers: Vec<Answer>,
    pub(super) truncated: usize,
}

/// Asks what the cache does not know; `progress` gets the number of answers so far.
pub(super) fn ask(
    model: &dyn LanguageModel,
    identity: &str,
    asks: &[Ask],
    cache: &mut Cache,
    progress: &mut dyn FnMut(usize),
) -> Result<Answers> {
    let keys: Vec<String> = asks.iter().map(|a| a.key(identity)).collect::<Result<_>>()?;
    let mut known: Vec<Option<Answer>> = keys.iter().map(|k| cache.get(k).cloned()).collect();
    let mut finished = known.iter().flatten().count();
    progress(finished);
    let prepared = prepare(model, asks, &known)?;
    let mut writer = cache.writer()?;
    let mut failure = None;
    let mut take = |i: usize, answer: Answer| {
        finished += 1;
        progress(finished);
        let written = writer.append(&keys[i], &answer);
        known[i] = Some(answer);
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failure = Some(e);
                ControlFlow::Break(())
            }
        }
    };
    let Prepared { scores, generations, truncated } = prepared;
    model.score(&scores.requests, &mut |at, score| {
        take(scores.of[at], Answer::Score { log_likelihood: score.log_likelihood(), greedy: score.greedy })
    })?;
    model.generate(&generations.requests, &mut |at, completion| {
        take(generations.of[at], Answer::Text { text: completion.text })
    })?;
    if let Some(e) = failure {
        return Err(e);
    }
    let answers: Option<Vec<Answer>> = known.into_iter().collect();
    let answers =
        answers.ok_or_else(|| Error::Invalid("the model left a request without an answer".into()))?;
    cache.extend(keys.into_iter().zip(answers.iter().cloned()));
    Ok(Answers { answers, truncated })
}

/// Requests with the index of the [`Ask`] that each belongs to.
struct Batch<R> {
    requests: Vec<R>,
    of: Vec<usize>,
}

struct Prepared {
    scores: Batch<ScoreRequest>,
    generations: Batch<Request>,
    truncated: usize,
}

/// The open requests in tokens. The others are looked at too, so that a continued run shares and counts as an unbroken one does.
fn prepare(model: &dyn LanguageModel, asks: &[Ask], known: &[Option<Answer>]) -> Result<Prepared> {
    let tokenizer = model.tokenizer();
    let length = model.context_length();
    let mut prepared = Prepared {
        scores: Batch { requests: Vec::new(), of: Vec::new() },
        generations: Batch { requests: Vec::new(), of: Vec::new() },
        truncated: 0,
    };
    let mut first = 0;
    for group in asks.chunk_by(|a, b| a.group == b.group) {
        let mut tokens = Vec::with_capacity(group.len());
        // The choices of a row and the attempts at it have one prompt.
        let mut truncated = BTreeSet::new();
        for ask in group {
            let (tokens_of, cut) = tokenise(tokenizer, ask, length)?;
            if cut {
                truncated.insert(ask.context.as_str());
            }
            tokens.push(tokens_of);
        }
        prepared.truncated += truncated.len();
        let shared = shared_prefix(tokens.iter().map(|t| &t.context[..]));
        for (i, Tokens { mut context, continuation }) in (first..).zip(tokens) {
            if known[i].is_some() {
                continue;
            }
            let own = context.split_off(shared.len());
            match &asks[i].what {
                What::Score { .. } => {
                    let prefix = Arc::clone(&shared);
                    prepared.scores.requests.push(ScoreRequest { prefix, context: own, continuation });
                    prepared.scores.of.push(i);
                }
                What::Generate { until, max_tokens, draw } => {
                    prepared.generations.requests.push(Request {
                        prefix: Arc::clone(&shared),
                        prompt: own,
                        max_new_tokens: *max_tokens,
                        sampling: draw.map_or(Sampling::Greedy, |d| Sampling::TopP {
                            temperature: d.temperature,
                            top_p: d.top_p,
                            stream: d.stream,
                        }),
                        stop: until.clone(),
                        controls: Controls::default(),
                    });
                    prepared.generations.of.push(i);
                }
            }
        }
        first += group.len();
    }
    Ok(prepared)
}

struct Tokens {
    context: Vec<u32>,
    continuation: Vec<u32>,
}

/// The tokens of a request, and whether its beginning was cut off.
fn tokenise(tokenizer: &Tokenizer, ask: &Ask, length: usize) -> Result<(Tokens, bool)> {
    match &ask.what {
        What::Score { continuation } => {
            let mut tokens = encode_pair(tokenizer, &ask.context, continuation)?;
            // The last token of the continuation is predicted, not read.
            let excess = (tokens.context.len() + tokens.continuation.len()).saturating_sub(length + 1);
            if tokens.continuation.len() > length {
                return Err(Error::Invalid(format!(
                    "a choice of {} tokens does not fit into the model's context of {length}",
                    tokens.continuation.len()
                )));
            }
            tokens.context.drain(..excess);
            Ok((tokens, excess > 0))
        }
        What::Generate { max_tokens, .. } => {
            let room = length.checked_sub(*max_tokens).filter(|room| *room > 0).ok_or_else(|| {
                Error::Invalid(format!(
                    "the task generates up to {max_tokens} tokens; the model's context of {length} leaves no room"
                ))
            })?;
            let mut context = tokenizer.encode_marked(&ask.context, Bos::Model)?;
            let excess = context.len().saturating_sub(room);
            context.drain(..excess);
            Ok((Tokens { context, continuation: Vec::new() }, excess > 0))
        }
    }
}

fn encode_pair(tokenizer: &Tokenizer, context: &MarkedText, continuation: &str) -> Result<Tokens> {
    if context.as_str().is_empty() {
        return without_context(tokenizer, continuation);
    }
    let mut kept = context.clone();
    kept.truncate(context.as_str().trim_end_matches(is_space).len());
    let mut whole = context.clone();
    whole.push_content(continuation);
    let whole = tokenizer.encode_marked(&whole, Bos::Model)?;
    let context = tokenizer.encode_marked(&kept, Bos::Model)?;
    let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
    if context.is_empty() || continuation.is_empty() {
        return Err(Error::Invalid(format!("a prompt or a choice has no tokens: {:?}", kept.as_str())));
    }
    Ok(Tokens { context, continuation })
}

/// The first token stands for the missing context: the model's own, or the continuation's where it is the same.
fn without_context(tokenizer: &Tokenizer, continuation: &str) -> Result<Tokens> {
    let mut tokens = tokenizer.encode(continuation, Bos::Never)?;
    let first = tokenizer.bos().or_else(|| tokenizer.eos().first().copied());
    match (first, tokens.first()) {
        (Some(first), Some(&own)) if first != own => {
            Ok(Tokens { context: vec![first], continuation: tokens })
        }
        (_, Some(_)) if tokens.len() > 1 => {
            let continuation = tokens.split_off(1);
            Ok(Tokens { context: tokens, continuation })
        }
        _ => Err(Error::Invalid("an empty prompt needs a model with a first token".into())),
    }
}

/// What all contexts start with, leaving each at least one token; nothing if it would not pay.
fn shared_prefix<'a>(mut contexts: impl Iterator<Item = &'a [u32]>) -> Arc<[u32]> {
    const WORTH_KEEPING: usize = 8;
    let Some(first) = contexts.next() else { return Arc::from([]) };
    let mut common = first.len().saturating_sub(1);
    let mut several = false;
    for context in contexts {
        several = true;
        let same = first.iter().zip(context).take_while(|(a, b)| a == b).count();
        common = common.min(same).min(context.len().saturating_sub(1));
    }
    if several && common >= WORTH_KEEPING { Arc::from(&first[..common]) } else { Arc::from([]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_shared() {
        let check = |contexts: &[Vec<u32>], expected: usize| {
            assert_eq!(shared_prefix(contexts.iter().map(|c| &c[..])).len(), expected, "{contexts:?}");
        };
        let with = |end: &[u32]| (0..10).chain(end.iter().copied()).collect::<Vec<u32>>();
        check(&[], 0);
        check(&[with(&[11])], 0);
        check(&[with(&[11]), with(&[12])], 10);
        check(&[with(&[11]), with(&[11])], 10);
        check(&[with(&[]), with(&[11])], 9);
        check(&[vec![1, 2], vec![1, 3]], 0);
    }
}
