//! Batched generation and scoring: rows join the batch as others finish, and a prefix that rows share is computed once.
//!
//! A row's result depends on nothing but its request: every kernel computes a row the same way whatever stands beside it,
//! and random numbers come from (stream, position). So batch size, order, threads and restarts change nothing.

mod batch;

use std::{collections::HashMap, ops::ControlFlow};

pub use batch::{Batch, Event};

use crate::{
    Error, Result,
    engine::{Ask, Engine, SequenceId, Session, Target, TokenScore},
    language::{Completion, LanguageModel, Request, Score, ScoreRequest},
    mixture::Mixture,
    tokenizer::Tokenizer,
};

/// How much is in flight at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Sequences that are continued side by side.
    pub rows: usize,
    /// New tokens of one forward pass: longer prompts are computed in pieces.
    pub tokens: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows: 64, tokens: 1024 }
    }
}

/// A base model, alone or with experts, as a [`LanguageModel`].
#[derive(Debug, Clone, Copy)]
pub struct Runner<'a> {
    /// The base.
    pub engine: &'a Engine,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Experts and their routing.
    pub mixture: Option<&'a Mixture>,
    /// How much is in flight at once; changes speed and memory, never a result.
    pub limits: BatchLimits,
}

impl<'a> Runner<'a> {
    /// A runner with the default limits.
    pub fn new(engine: &'a Engine, tokenizer: &'a Tokenizer, mixture: Option<&'a Mixture>) -> Self {
        Self { engine, tokenizer, mixture, limits: BatchLimits::default() }
    }

    /// The router looks at whole prompts, so each is computed by itself and in one piece.
    fn needs_whole_prompts(&self) -> bool {
        self.mixture.is_some_and(Mixture::decides_for_sequences)
    }

    /// Refuses a prompt of no tokens or of more than the context; `index` names the request.
    fn check_length(&self, index: usize, prompt: usize) -> Result<()> {
        let context = self.context_length();
        if prompt == 0 {
            return Err(Error::Unsupported(format!(
                "request {index} has an empty prompt: give at least one token"
            )));
        }
        if prompt > context {
            return Err(Error::Unsupported(format!(
                "the prompt of request {index} has {prompt} tokens, more than the model's context of {context}: shorten it"
            )));
        }
        Ok(())
    }
}

/// Shared prefixes and, once they have been computed, their sequences.
struct Prefixes<'r> {
    sequences: HashMap<&'r [u32], (SequenceId, usize)>,
}

impl<'r> Prefixes<'r> {
    /// `prefixes` holds each as often as it will be asked for; it is forgotten after the last time.
    fn new(prefixes: impl Iterator<Item = &'r [u32]>, session: &mut dyn Session) -> Self {
        let mut sequences = HashMap::new();
        for prefix in prefixes {
            sequences.entry(prefix).or_insert_with(|| (session.start(), 0)).1 += 1;
        }
        Self { sequences }
    }

    /// A new sequence that starts with `prefix`.
    fn fork(&mut self, prefix: &[u32], session: &mut dyn Session, limits: BatchLimits) -> Result<SequenceId> {
        let Some((id, uses)) = self.sequences.get_mut(prefix) else {
            return Err(Error::Unsupported("a prefix was asked for more often than announced".into()));
        };
        if session.len(*id) == 0 {
            for piece in prefix.chunks(limits.tokens.max(1)) {
                session.step(&[(*id, piece)], &Ask::default())?;
            }
        }
        *uses -= 1;
        if *uses > 0 {
            return session.fork(*id);
        }
        let id = *id;
        self.sequences.remove(prefix);
        Ok(id)
    }
}

/// The prefix of a request that can be shared, and the tokens after it, of which there is at least one.
fn split<'r>(prefix: &'r [u32], prompt: &'r [u32]) -> (&'r [u32], &'r [u32]) {
    if prompt.is_empty() { prefix.split_at(prefix.len() - 1) } else { (prefix, prompt) }
}

impl LanguageModel for Runner<'_> {
    fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer
    }

    fn context_length(&self) -> usize {
        self.engine.config.context_length
    }

    fn generate(
        &self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Completion) -> ControlFlow<()>,
    ) -> Result<()> {
        for (index, request) in requests.iter().enumerate() {
            self.check_length(index, request.prefix.len() + request.prompt.len())?;
        }
        let mut batch: Batch<'_, &Request> = Batch::new(*self)?;
        let shared = if self.needs_whole_prompts() { &[] } else { requests };
        let prefixes = shared.iter().map(|r| split(&r.prefix, &r.prompt).0);
        let mut prefixes = Prefixes::new(prefixes, &mut *batch.session);
        let mut waiting = requests.iter().enumerate();
        loop {
            while batch.len() < self.limits.rows.max(1)
                && let Some((index, request)) = waiting.next()
            {
                if self.needs_whole_prompts() {
                    batch.add(index, request)?;
                    continue;
                }
                let (prefix, prompt) = split(&request.prefix, &request.prompt);
                let sequence = prefixes.fork(prefix, &mut *batch.session, self.limits)?;
                batch.join(index, request, sequence, prompt);
            }
            if batch.is_empty() {
                return Ok(());
            }
            for event in batch.step()? {
                if let Event::Done { row, completion, .. } = event
                    && done(row, completion).is_break()
                {
                    return Ok(());
                }
            }
        }
    }

    fn score(
        &self,
        requests: &[ScoreRequest],
        done: &mut dyn FnMut(usize, Score) -> ControlFlow<()>,
    ) -> Result<()> {
        for (index, r) in requests.iter().enumerate() {
            self.check_length(index, r.prefix.len() + r.context.len())?;
            self.check_length(
                index,
                r.prefix.len() + r.context.len() + r.continuation.len().saturating_sub(1),
            )?;
        }
        if self.needs_whole_prompts() {
            return self.score_whole(requests, done);
        }
        let mut session = self.engine.session(self.mixture)?;
        // Requests that stand next to each other and differ in their continuation only share the context as well.
        let groups: Vec<&[ScoreRequest]> =
            requests.chunk_by(|a, b| a.prefix == b.prefix && a.context == b.context).collect();
        let prefixes = groups.iter().map(|group| split(&group[0].prefix, &group[0].context).0);
        let mut prefixes = Prefixes::new(prefixes, &mut *session);
        let mut index = 0;
        let mut batch: Vec<ScoreRow> = Vec::new();
        let mut tokens = 0;
        for group in groups {
            let (prefix, context) = split(&group[0].prefix, &group[0].context);
            let sequence = prefixes.fork(prefix, &mut *session, self.limits)?;
            let (last, seen) = (context[context.len() - 1], &context[..context.len() - 1]);
            if group.len() > 1 {
                for piece in seen.chunks(self.limits.tokens.max(1)) {
                    session.step(&[(sequence, piece)], &Ask::default())?;
                }
            }
            for (at, request) in group.iter().enumerate() {
                let own = if at + 1 < group.len() { session.fork(sequence)? } else { sequence };
                let mut ids = if group.len() > 1 { Vec::new() } else { seen.to_vec() };
                ids.push(last);
                let first = ids.len() - 1;
                ids.extend(request.continuation.iter().take(request.continuation.len().saturating_sub(1)));
                if !batch.is_empty() && tokens + ids.len() > self.limits.tokens {
                    if self.score_batch(&mut *session, &mut batch, requests, done)?.is_break() {
                        return Ok(());
                    }
                    tokens = 0;
                }
                tokens += ids.len();
                batch.push(ScoreRow { index, sequence: own, ids, first });
                index += 1;
            }
        }
        // A break at the very end has nothing left to stop.
        let _ = self.score_batch(&mut *session, &mut batch, requests, done)?;
        Ok(())
    }
}

/// A request in a scoring batch: `ids[first..]` predict the continuation.
struct ScoreRow {
    index: usize,
    sequence: SequenceId,
    ids: Vec<u32>,
    first: usize,
}

impl Runner<'_> {
    /// [`LanguageModel::score`] without shared parts: a decision over each whole prompt.
    fn score_whole(
        &self,
        requests: &[ScoreRequest],
        done: &mut dyn FnMut(usize, Score) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut session = self.engine.session(self.mixture)?;
        let mut batch: Vec<ScoreRow> = Vec::new();
        let mut tokens = 0;
        for (index, request) in requests.iter().enumerate() {
            let mut ids = [&request.prefix[..], &request.context[..]].concat();
            let prompt = ids.len();
            ids.extend(request.continuation.iter().take(request.continuation.len().saturating_sub(1)));
            if !batch.is_empty() && tokens + ids.len() > self.limits.tokens {
                if self.score_batch(&mut *session, &mut batch, requests, done)?.is_break() {
                    return Ok(());
                }
                tokens = 0;
            }
            tokens += ids.len();
            let sequence = session.start();
            session.set_prompt(sequence, prompt);
            batch.push(ScoreRow { index, sequence, ids, first: prompt - 1 });
        }
        let _ = self.score_batch(&mut *session, &mut batch, requests, done)?;
        Ok(())
    }
}

impl Runner<'_> {
    fn score_batch(
        &self,
        session: &mut dyn Session,
        batch: &mut Vec<ScoreRow>,
        requests: &[ScoreRequest],
        done: &mut dyn FnMut(usize, Score) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        if batch.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let steps: Vec<(SequenceId, &[u32])> = batch.iter().map(|row| (row.sequence, &row.ids[..])).collect();
        // Request after request.
        let mut targets = Vec::new();
        let mut start = 0;
        for row in batch.iter() {
            for (i, &token) in requests[row.index].continuation.iter().enumerate() {
                targets.push(Target { row: start + row.first + i, token });
            }
            start += row.ids.len();
        }
        let found = session.step(&steps, &Ask { targets: &targets, ..Ask::default() })?;
        let mut scored = found.scores.into_iter();
        for row in batch.drain(..) {
            session.release(row.sequence);
            let own: Vec<TokenScore> = scored.by_ref().take(requests[row.index].continuation.len()).collect();
            let score = Score {
                token_log_probs: own.iter().map(|s| s.log_prob).collect(),
                greedy: own.iter().all(|s| s.greedy),
            };
            if done(row.index, score).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
