//! The rows of a batch: they join, are continued a token at a time, and leave, each on its own.

use std::{borrow::Borrow, collections::VecDeque};

use super::Runner;
use crate::{
    Result,
    engine::{Ask, Choice, Draw, SequenceId, Session},
    language::{Completion, Finish, LanguageModel, Request, Sampling},
};

/// Keeps the random numbers of sampling apart from others with the same stream.
const SAMPLING: u64 = 0x5a4d_504c;

/// Requests that are continued side by side. They join and leave between two steps; a row's result depends on its request
/// alone. `R` is a [`Request`] or something that holds one.
pub struct Batch<'a, R> {
    runner: Runner<'a>,
    pub(super) session: Box<dyn Session + 'a>,
    rows: Vec<Row<R>>,
    parts: Parts,
}

/// Whether tokens are told with the experts' parts in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    Untold,
    Told,
}

/// What happened to a row in a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The row has a new token.
    Token {
        /// The row's number, as given to [`Batch::add`].
        row: usize,
        /// The token.
        id: u32,
        /// Each expert's part in it, averaged over the blocks: it is decided when the token is read, a step after it was
        /// chosen. Empty where it is not told, and for a last token that was never read.
        parts: Vec<f32>,
    },
    /// The row has left.
    Done {
        /// The row's number.
        row: usize,
        /// What was written.
        completion: Completion,
    },
}

/// A request in the batch.
struct Row<R> {
    number: usize,
    request: R,
    sequence: SequenceId,
    /// Tokens that the model has not seen yet.
    pending: VecDeque<u32>,
    generated: Vec<u32>,
    /// Most tokens that may be generated.
    limit: usize,
}

impl<R: Borrow<Request>> Row<R> {
    /// How its next token is chosen.
    fn draw(&self) -> Draw {
        match self.request.borrow().sampling {
            Sampling::Greedy => Draw::Greedy,
            Sampling::TopP { temperature, top_p, stream } => {
                let uniform = crate::random::uniform(stream, SAMPLING, self.generated.len() as u64);
                Draw::TopP { temperature, top_p, uniform }
            }
        }
    }
}

impl<'a, R: Borrow<Request>> Batch<'a, R> {
    /// A batch without rows.
    ///
    /// # Errors
    /// The model cannot be used.
    pub fn new(runner: Runner<'a>) -> Result<Self> {
        let session = runner.engine.session(runner.mixture)?;
        Ok(Self { runner, session, rows: Vec::new(), parts: Parts::Untold })
    }

    /// The same, telling each token with the experts' parts in it.
    ///
    /// # Errors
    /// As [`Batch::new`].
    pub fn telling_parts(runner: Runner<'a>) -> Result<Self> {
        Ok(Self { parts: Parts::Told, ..Self::new(runner)? })
    }

    /// Rows in the batch.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row. `number` names it in events; it should be unique among the rows that are in.
    ///
    /// # Errors
    /// The prompt is empty or longer than the context; nothing is added then.
    pub fn add(&mut self, number: usize, request: R) -> Result<()> {
        let asked = request.borrow();
        let tokens: Vec<u32> = asked.prefix.iter().chain(&asked.prompt).copied().collect();
        self.runner.check_length(number, tokens.len())?;
        let sequence = self.session.start();
        self.session.set_prompt(sequence, tokens.len());
        self.join(number, request, sequence, &tokens);
        Ok(())
    }

    /// Adds a row that continues `sequence`, which holds everything before `prompt`.
    pub(super) fn join(&mut self, number: usize, request: R, sequence: SequenceId, prompt: &[u32]) {
        let room = self.runner.context_length().saturating_sub(self.session.len(sequence) + prompt.len());
        self.rows.push(Row {
            number,
            sequence,
            pending: prompt.iter().copied().collect(),
            generated: Vec::new(),
            limit: request.borrow().max_new_tokens.min(room),
            request,
        });
    }

    /// Takes a row out before it is finished; nothing more is told of it.
    pub fn remove(&mut self, number: usize) {
        if let Some(at) = self.rows.iter().position(|row| row.number == number) {
            let row = self.rows.remove(at);
            self.session.release(row.sequence);
        }
    }

    /// One forward pass over what the rows have pending, within the token limit, and what came of it.
    ///
    /// # Errors
    /// The model fails; the batch is of no use afterwards.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let next = self.advance(&mut events)?;
        let mut kept = Vec::with_capacity(self.rows.len());
        for (mut row, token) in std::mem::take(&mut self.rows).into_iter().zip(next) {
            let finished = match token {
                None if row.limit == 0 && row.pending.is_empty() => Some(Finish::Length),
                None => None,
                Some(token) => self.take(&mut row, token, &mut events)?,
            };
            match finished {
                None => kept.push(row),
                Some(finish) => {
                    self.session.release(row.sequence);
                    if self.parts == Parts::Told
                        && let Some(&id) = row.pending.front()
                    {
                        events.push(Event::Token { row: row.number, id, parts: Vec::new() });
                    }
                    let completion = self.completion(row.generated, finish, row.request.borrow())?;
                    events.push(Event::Done { row: row.number, completion });
                }
            }
        }
        self.rows = kept;
        Ok(events)
    }

    /// The forward pass. Returns a next token for each row whose prompt is complete.
    fn advance(&mut self, events: &mut Vec<Event>) -> Result<Vec<Option<u32>>> {
        let mut budget = self.runner.limits.tokens.max(1);
        let whole_prompts = self.runner.needs_whole_prompts();
        let mut work: Vec<(SequenceId, Vec<u32>)> = Vec::with_capacity(self.rows.len());
        // Rows that read a generated token, with its place in the pass.
        let mut reading = Vec::new();
        let mut predicting = Vec::new();
        let mut choices = Vec::new();
        let mut total = 0;
        for (at, row) in self.rows.iter_mut().enumerate() {
            // A prompt that must stay whole may go over the limit, but not when there is nothing left of it.
            let whole = whole_prompts && row.generated.is_empty() && budget > 0;
            let count = if whole { row.pending.len() } else { row.pending.len().min(budget) };
            if count == 0 {
                continue;
            }
            budget = budget.saturating_sub(count);
            if !row.generated.is_empty() {
                reading.push((row.number, row.pending[0], total));
            }
            total += count;
            work.push((row.sequence, row.pending.drain(..count).collect()));
            if row.pending.is_empty() && row.limit > 0 {
                predicting.push(at);
                choices.push(Choice { row: total - 1, draw: row.draw() });
            }
        }
        let steps: Vec<(SequenceId, &[u32])> = work.iter().map(|(id, ids)| (*id, &ids[..])).collect();
        let ask = Ask { choices: &choices, gates: self.parts == Parts::Told, ..Ask::default() };
        let found = self.session.step(&steps, &ask)?;
        if self.parts == Parts::Told {
            let experts = self.runner.mixture.map_or(0, |mixture| mixture.experts.len());
            events.extend(reading.into_iter().map(|(row, id, at)| Event::Token {
                row,
                id,
                parts: parts(&found.gates, at, experts),
            }));
        }
        let mut next = vec![None; self.rows.len()];
        for (&at, token) in predicting.iter().zip(found.chosen) {
            next[at] = Some(token);
        }
        Ok(next)
    }

    /// Adds a token to a row; says why the row is finished, if it is.
    fn take(&self, row: &mut Row<R>, token: u32, events: &mut Vec<Event>) -> Result<Option<Finish>> {
        if self.runner.tokenizer.eos().contains(&token) {
            return Ok(Some(Finish::Eos));
        }
        row.generated.push(token);
        row.pending.push_back(token);
        if self.parts == Parts::Untold {
            events.push(Event::Token { row: row.number, id: token, parts: Vec::new() });
        }
        if let Some(stop) = self.stop_in(&row.generated, row.request.borrow())? {
            return Ok(Some(Finish::Stop(stop)));
        }
        Ok((row.generated.len() >= row.limit).then_some(Finish::Length))
    }

    /// The stop string that appears first in the text of `ids`. The last tokens alone are looked at first; only they can
    /// have completed one.
    fn stop_in(&self, ids: &[u32], request: &Request) -> Result<Option<usize>> {
        let Some(longest) = request.stop.iter().map(String::len).max() else { return Ok(None) };
        // A token has at least one byte, except for special tokens, which have no text: leave room for some.
        let tail = ids.len().saturating_sub(longest + 16);
        let text = self.runner.tokenizer.decode(&ids[tail..])?;
        Ok(earliest_stop(&text, &request.stop).map(|(stop, _)| stop))
    }

    fn completion(&self, ids: Vec<u32>, finish: Finish, request: &Request) -> Result<Completion> {
        let mut text = self.runner.tokenizer.decode(&ids)?;
        if let Some((_, at)) = earliest_stop(&text, &request.stop) {
            text.truncate(at);
        }
        Ok(Completion { ids, text, finish })
    }
}

/// Each expert's part in the row `at` of a pass: its share of the gates, averaged over the blocks.
fn parts(gates: &[Vec<f32>], at: usize, experts: usize) -> Vec<f32> {
    let mut parts = vec![0.0; experts];
    for block in gates {
        let gates = &block[at * experts..(at + 1) * experts];
        let sum: f32 = gates.iter().sum();
        if sum > 0.0 {
            parts.iter_mut().zip(gates).for_each(|(part, gate)| *part += gate / sum);
        }
    }
    let blocks = gates.len().max(1) as f32;
    parts.iter_mut().for_each(|part| *part /= blocks);
    parts
}

/// Index and place of the stop string that appears first in `text`.
fn earliest_stop(text: &str, stops: &[String]) -> Option<(usize, usize)> {
    stops
        .iter()
        .enumerate()
        .filter(|(_, stop)| !stop.is_empty())
        .filter_map(|(index, stop)| text.find(stop.as_str()).map(|at| (index, at)))
        .min_by_key(|&(index, at)| (at, index))
}
