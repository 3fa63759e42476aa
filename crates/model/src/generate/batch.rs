//! The rows of a batch: they join, are continued a token at a time, and leave, each on its own.

use std::{borrow::Borrow, collections::VecDeque};

use mixse_kernels::sample;

use super::Runner;
use crate::{
    Result,
    engine::{Ask, Choice, Draw, LogitChanges, SequenceId, Session, Target, TokenScore},
    language::{Completion, Finish, LanguageModel, LogProbs, Request, Sampling},
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
        /// How likely it was, where the request asks for it.
        log_probs: Option<LogProbs>,
    },
    /// More of a row's prompt was read, and this is how likely its tokens were: all but the first, in order, where the request
    /// asks for it.
    Prompt {
        /// The row's number.
        row: usize,
        /// The tokens.
        tokens: Vec<LogProbs>,
    },
    /// The row has left.
    Done {
        /// The row's number.
        row: usize,
        /// What was written.
        completion: Completion,
        /// How likely the token was that ended it and is left out of it, where the request asks for it.
        end: Option<LogProbs>,
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
    /// How likely the last token was, until it is told.
    told: Option<LogProbs>,
    /// A stop string spells a special token, so stop strings are looked for in a text that spells them too.
    spelled: bool,
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
        let tokenizer = self.runner.tokenizer;
        self.rows.push(Row {
            number,
            told: None,
            spelled: request.borrow().stop.iter().any(|stop| tokenizer.spells_special(stop)),
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
                Some((token, log_probs)) => {
                    row.told = log_probs;
                    self.take(&mut row, token, &mut events)?
                }
            };
            match finished {
                None => kept.push(row),
                Some(finish) => {
                    self.session.release(row.sequence);
                    if self.parts == Parts::Told
                        && let Some(&id) = row.pending.front()
                    {
                        let log_probs = row.told.take();
                        events.push(Event::Token { row: row.number, id, parts: Vec::new(), log_probs });
                    }
                    // The last token was not written, so what is known of it has not been told.
                    let end = if finish == Finish::Eos { row.told.take() } else { None };
                    let completion = self.completion(&row, finish)?;
                    events.push(Event::Done { row: row.number, completion, end });
                }
            }
        }
        self.rows = kept;
        Ok(events)
    }

    /// The forward pass. Returns a next token for each row whose prompt is complete.
    fn advance(&mut self, events: &mut Vec<Event>) -> Result<Vec<Option<Chosen>>> {
        let counts = self.shares();
        let mut work: Vec<(SequenceId, Vec<u32>)> = Vec::with_capacity(self.rows.len());
        // Rows that read a generated token, with its place in the pass.
        let mut reading = Vec::new();
        let mut predicting = Vec::new();
        // Targets are the prompts' tokens whose log-probabilities are told: so many of each of these rows.
        let (mut targets, mut prompts) = (Vec::new(), Vec::new());
        let mut total = 0;
        for (at, (row, count)) in self.rows.iter_mut().zip(counts).enumerate() {
            if count == 0 {
                continue;
            }
            if !row.generated.is_empty() {
                reading.push((row.number, row.pending[0], total, row.told.take()));
            } else if row.request.borrow().controls.prompt_log_probs {
                let before = targets.len();
                let next = row.pending.iter().skip(1).take(count);
                targets.extend(next.enumerate().map(|(i, &token)| Target { row: total + i, token }));
                prompts.push((at, targets.len() - before));
            }
            total += count;
            work.push((row.sequence, row.pending.drain(..count).collect()));
            if row.pending.is_empty() && row.limit > 0 {
                predicting.push((at, total - 1));
            }
        }
        let steps: Vec<(SequenceId, &[u32])> = work.iter().map(|(id, ids)| (*id, &ids[..])).collect();
        let choices: Vec<Choice> =
            predicting.iter().map(|&(at, last)| self.choice(&self.rows[at], last)).collect();
        let top = |at: usize| self.rows[at].request.borrow().controls.log_probs.unwrap_or(0);
        let ask = Ask {
            choices: &choices,
            targets: &targets,
            top: prompts.iter().map(|&(at, _)| top(at)).max().unwrap_or(0),
            gates: self.parts == Parts::Told,
            ..Ask::default()
        };
        let found = self.session.step(&steps, &ask)?;
        if self.parts == Parts::Told {
            let experts = self.runner.mixture.map_or(0, |mixture| mixture.experts.len());
            events.extend(reading.into_iter().map(|(row, id, at, log_probs)| Event::Token {
                row,
                id,
                parts: parts(&found.gates, at, experts),
                log_probs,
            }));
        }
        let mut scored = targets.iter().map(|target| target.token).zip(found.scores);
        for (at, count) in prompts {
            let tokens =
                scored.by_ref().take(count).map(|(id, score)| log_probs(id, score, top(at))).collect();
            events.push(Event::Prompt { row: self.rows[at].number, tokens });
        }
        let mut next = vec![None; self.rows.len()];
        for ((at, _), chosen) in predicting.into_iter().zip(found.chosen) {
            let id = chosen.token;
            next[at] = Some((id, chosen.score.map(|score| log_probs(id, score, top(at)))));
        }
        Ok(next)
    }

    /// How many tokens each row reads in this pass. Rows that are being continued come first, so that a long prompt does not
    /// hold them up; of what is left the oldest prompt gets half and short ones the rest, so that neither waits for the other.
    fn shares(&self) -> Vec<usize> {
        let mut budget = self.runner.limits.tokens.max(1);
        let mut counts = vec![0; self.rows.len()];
        let is_prompt = |at: usize| self.rows[at].generated.is_empty();
        let (mut prompts, continued): (Vec<usize>, Vec<usize>) =
            (0..self.rows.len()).partition(|&at| is_prompt(at));
        for at in continued {
            counts[at] = self.rows[at].pending.len().min(budget);
            budget -= counts[at];
        }
        if self.runner.needs_whole_prompts() {
            // A prompt that must stay whole may go over the limit, but not when there is nothing left of it.
            for at in prompts {
                counts[at] = if budget > 0 { self.rows[at].pending.len() } else { 0 };
                budget = budget.saturating_sub(counts[at]);
            }
            return counts;
        }
        if let Some(&oldest) = prompts.first() {
            counts[oldest] = self.rows[oldest].pending.len().min(budget.div_ceil(2));
            budget -= counts[oldest];
        }
        prompts.sort_by_key(|&at| self.rows[at].pending.len());
        for at in prompts {
            let more = (self.rows[at].pending.len() - counts[at]).min(budget);
            counts[at] += more;
            budget -= more;
        }
        counts
    }

    /// How the next token of a row is chosen, by the row `last` of the pass.
    fn choice(&self, row: &Row<R>, last: usize) -> Choice {
        let request = row.request.borrow();
        let controls = &request.controls;
        let draw = match request.sampling {
            Sampling::Greedy => Draw::Greedy,
            Sampling::TopP { temperature, top_p, stream } => {
                let (top_k, min_p) = (controls.top_k, controls.min_p);
                let uniform = crate::random::uniform(stream, SAMPLING, row.generated.len() as u64);
                Draw::Sample { sampling: sample::Sampling { temperature, top_p, top_k, min_p }, uniform }
            }
        };
        let mut barred = Vec::new();
        if row.generated.len() < controls.min_new_tokens {
            barred.extend_from_slice(self.runner.tokenizer.eos());
            barred.extend_from_slice(&controls.stop_ids);
        }
        let penalties = controls.penalties;
        let changed = !barred.is_empty() || penalties != Default::default() || !controls.bias.is_empty();
        let changes = changed.then(|| {
            Box::new(LogitChanges {
                penalties,
                // Only a repetition penalty looks at the prompt.
                prompt: match penalties.repetition {
                    1.0 => Vec::new(),
                    _ => request.prefix.iter().chain(&request.prompt).copied().collect(),
                },
                answer: row.generated.clone(),
                bias: controls.bias.clone(),
                barred,
            })
        });
        Choice { row: last, draw, changes, top: controls.log_probs }
    }

    /// Adds a token to a row; says why the row is finished, if it is.
    fn take(&self, row: &mut Row<R>, token: u32, events: &mut Vec<Event>) -> Result<Option<Finish>> {
        let controls = &row.request.borrow().controls;
        let ends = !controls.ignore_eos && self.runner.tokenizer.eos().contains(&token);
        if ends || controls.stop_ids.contains(&token) {
            return Ok(Some(Finish::Eos));
        }
        row.generated.push(token);
        row.pending.push_back(token);
        if self.parts == Parts::Untold {
            let log_probs = row.told.take();
            events.push(Event::Token { row: row.number, id: token, parts: Vec::new(), log_probs });
        }
        if let Some(stop) = self.stop_in(row)? {
            return Ok(Some(Finish::Stop(stop)));
        }
        Ok((row.generated.len() >= row.limit).then_some(Finish::Length))
    }

    /// The stop string that appears first in the text of `ids`. The last tokens alone are looked at first; only they can
    /// have completed one.
    fn stop_in(&self, row: &Row<R>) -> Result<Option<usize>> {
        let (ids, stops) = (&row.generated, &row.request.borrow().stop);
        let Some(longest) = stops.iter().map(String::len).max() else { return Ok(None) };
        // A token has at least one byte, except for special tokens, which have no text: leave room for some.
        let tail = &ids[ids.len().saturating_sub(longest + 16)..];
        let tokenizer = self.runner.tokenizer;
        let text = if row.spelled { tokenizer.decode_spelled(tail)? } else { tokenizer.decode(tail)? };
        Ok(earliest_stop(&text, stops).map(|(stop, _)| stop))
    }

    fn completion(&self, row: &Row<R>, finish: Finish) -> Result<Completion> {
        let (ids, stops) = (&row.generated, &row.request.borrow().stop);
        let tokenizer = self.runner.tokenizer;
        let text = if row.spelled {
            self.cut_spelled(ids, stops)?
        } else {
            let mut text = tokenizer.decode(ids)?;
            if let Some((_, at)) = earliest_stop(&text, stops) {
                text.truncate(at);
            }
            text
        };
        Ok(Completion { ids: ids.clone(), text, finish })
    }

    /// The text of `ids` without special tokens, up to the first stop string of the text with them.
    fn cut_spelled(&self, ids: &[u32], stops: &[String]) -> Result<String> {
        let tokenizer = self.runner.tokenizer;
        let spelled = tokenizer.decode_spelled(ids)?;
        let Some((_, at)) = earliest_stop(&spelled, stops) else { return tokenizer.decode(ids) };
        // The last of `ids[..count]` is the token in which the stop string begins, or the first one behind it.
        let mut count = ids.len();
        let mut before = tokenizer.decode_spelled(&ids[..count.saturating_sub(1)])?;
        while count > 1 && before.len() > at {
            count -= 1;
            before = tokenizer.decode_spelled(&ids[..count - 1])?;
        }
        if before.len() >= at || ids.get(count - 1).is_some_and(|&id| tokenizer.is_special(id)) {
            return tokenizer.decode(&ids[..count - 1]);
        }
        let beyond = tokenizer.decode_spelled(&ids[..count])?.len().saturating_sub(at);
        let mut text = tokenizer.decode(&ids[..count])?;
        let end = text.len().saturating_sub(beyond);
        text.truncate((0..=end).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0));
        Ok(text)
    }
}

/// A token and how likely it was, where that is asked for.
type Chosen = (u32, Option<LogProbs>);

/// What is told of a token: its score with the `top` likeliest, of which a pass may have been asked for more.
fn log_probs(id: u32, mut score: TokenScore, top: usize) -> LogProbs {
    score.top.truncate(top);
    LogProbs { id, log_prob: score.log_prob, top: score.top }
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
