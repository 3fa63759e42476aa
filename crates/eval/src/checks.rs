//! Scores a domain's own check set.
//!
//! [`run_shard`] asks the model, judges each response ([`crate::answers`]) and appends one [`Row`] per item to a file; a second call on the
//! same file continues where the first one was stopped. [`summarise`] counts the rows.

use std::{collections::HashMap, ops::ControlFlow, path::Path};

use mixse_model::language::{Completion, Finish, LanguageModel, Request};
use mixse_selfmoe::{
    answer,
    record::{Answer, Example},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    answers::{self, Verdict},
    rows,
    sandbox::{self, Outcome, Sandbox},
    stats::{Interval, wilson},
};

/// How an item becomes a request: the template, the shared prefix, the stop strings and the length.
/// Closures are prompt styles.
pub trait PromptStyle {
    /// The request for an item.
    ///
    /// # Errors
    /// The item cannot be put into the template (or tokens).
    fn request(&self, item: &Example) -> Result<Request>;
}

impl<F: Fn(&Example) -> Result<Request>> PromptStyle for F {
    fn request(&self, item: &Example) -> Result<Request> {
        self(item)
    }
}

/// Part `index` of `count` of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// At least 1.
    pub count: usize,
}

impl Shard {
    /// The whole list.
    pub const ALL: Self = Self { index: 0, count: 1 };

    /// Its share of `items`: contiguous, and as long as the others' by at most one.
    pub fn of<T>(self, items: &[T]) -> &[T] {
        let bound = |i: usize| items.len() * i.min(self.count) / self.count.max(1);
        &items[bound(self.index)..bound(self.index + 1)]
    }
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The item.
    pub id: String,
    /// Hash of the item and of everything that decides about the response; rows with another one are made anew.
    pub key: String,
    /// The response.
    pub response: String,
    /// The final answer that was found in it.
    pub extracted: Option<String>,
    /// The answer is right.
    pub correct: bool,
    /// How the code ran, for coding items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// Why the response ended.
    pub finish: Ending,
    /// Tokens generated.
    pub tokens: usize,
}

/// Why a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The model ended it.
    Eos,
    /// A stop string.
    Stop,
    /// It reached its greatest length.
    Length,
    /// The prompt did not fit into the context: nothing was asked, and the item counts as wrong.
    PromptTooLong,
}

/// The counts of a check set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Items that were asked.
    pub total: usize,
    /// Right answers.
    pub correct: usize,
    /// Responses in which no answer was found.
    pub without_answer: usize,
    /// Responses that were cut at their greatest length.
    pub unfinished: usize,
    /// Coding items that were left out because code cannot be run here.
    pub skipped: usize,
    /// 95 % interval of the accuracy.
    pub interval: Interval,
}

/// A check set with everything that decides about its rows.
pub struct CheckSet<'a> {
    /// The items.
    pub items: &'a [Example],
    /// How they are asked.
    pub style: &'a dyn PromptStyle,
    /// Names model, experts, router, template and decoding; rows of other settings are not reused.
    pub settings: &'a str,
    /// Runs the code of coding items; without it they are skipped.
    pub sandbox: Option<&'a Sandbox>,
}

impl CheckSet<'_> {
    fn key(&self, item: &Example) -> Result<String> {
        let text = serde_json::to_string(item).map_err(|e| Error::Invalid(format!("{}: {e}", item.id)))?;
        // What the response says and what its code does may come to be judged otherwise.
        let judging = format!("answers {}, programs {}", answer::VERSION, sandbox::VERSION);
        Ok(rows::key(&[self.settings, &text, &judging]))
    }

    fn can_ask(&self, item: &Example) -> bool {
        self.sandbox.is_some() || !matches!(item.answer, Some(Answer::Code { .. }))
    }
}

/// The rows that an earlier call has left. A file that is damaged by more than a torn last line is removed: its items are asked again.
fn kept(file: &Path) -> Result<Vec<Row>> {
    match rows::read(file) {
        Err(Error::Row { .. }) => {
            std::fs::remove_file(file).map_err(|e| Error::io(file, e))?;
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Asks the items of a shard that `file` has no row for yet, appending rows as they come, and leaves the file with
/// the shard's rows in the order of the items. Returns them. `made` sees each new row and may stop the work.
///
/// # Errors
/// The file cannot be read or written, a prompt cannot be made, the model or the sandbox fails, or `made` says stop. Rows
/// made so far are kept.
pub fn run_shard(
    model: &dyn LanguageModel,
    set: &CheckSet<'_>,
    shard: Shard,
    file: &Path,
    made: &mut dyn FnMut(&Row) -> ControlFlow<()>,
) -> Result<Vec<Row>> {
    let items = shard.of(set.items);
    let mut done: HashMap<String, Row> = kept(file)?.into_iter().map(|row| (row.key.clone(), row)).collect();
    let mut pending = Pending::default();
    let mut writer = rows::Appender::open(file)?;
    for item in items.iter().filter(|item| set.can_ask(item)) {
        let key = set.key(item)?;
        if done.contains_key(&key) {
            continue;
        }
        let mut request = set.style.request(item)?;
        let room = model.context_length().saturating_sub(request.prefix.len() + request.prompt.len());
        if room == 0 {
            let row = unasked(item, key);
            writer.append(&row)?;
            if made(&row).is_break() {
                return Err(Error::Stopped);
            }
            done.insert(row.key.clone(), row);
            continue;
        }
        request.max_new_tokens = request.max_new_tokens.min(room);
        pending.push(item, key, request);
    }
    let mut failure = None;
    model.generate(&pending.requests, &mut |i, completion| {
        let (item, key) = &pending.items[i];
        let judged =
            row(item, key, &completion, set.sandbox).and_then(|row| writer.append(&row).map(|()| row));
        match judged {
            Ok(row) => {
                let next = made(&row);
                done.insert(row.key.clone(), row);
                if next.is_break() {
                    failure = Some(Error::Stopped);
                }
                next
            }
            Err(e) => {
                failure = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(e) = failure {
        return Err(e);
    }
    drop(writer);
    let mut ordered = Vec::with_capacity(items.len());
    for item in items.iter().filter(|item| set.can_ask(item)) {
        let key = set.key(item)?;
        let row = done.remove(&key);
        ordered.push(row.ok_or_else(|| Error::Invalid(format!("{}: the model gave no response", item.id)))?);
    }
    rows::write(file, &ordered)?;
    Ok(ordered)
}

#[derive(Default)]
struct Pending<'a> {
    items: Vec<(&'a Example, String)>,
    requests: Vec<Request>,
}

impl<'a> Pending<'a> {
    fn push(&mut self, item: &'a Example, key: String, request: Request) {
        self.items.push((item, key));
        self.requests.push(request);
    }
}

fn unasked(item: &Example, key: String) -> Row {
    Row {
        id: item.id.clone(),
        key,
        response: String::new(),
        extracted: None,
        correct: false,
        execution: None,
        finish: Ending::PromptTooLong,
        tokens: 0,
    }
}

fn row(item: &Example, key: &str, completion: &Completion, sandbox: Option<&Sandbox>) -> Result<Row> {
    let (extracted, correct, execution) = match (answers::judge(item, &completion.text), sandbox) {
        (Verdict::Decided { extracted, correct }, _) => (extracted, correct, None),
        (Verdict::Run { extracted, program }, Some(sandbox)) => {
            let outcome = sandbox.run(&program)?;
            (Some(extracted), outcome == Outcome::Passed, Some(outcome.describe()))
        }
        (Verdict::Run { extracted, .. }, None) => (Some(extracted), false, None),
    };
    Ok(Row {
        id: item.id.clone(),
        key: key.into(),
        response: completion.text.clone(),
        extracted,
        correct,
        execution,
        finish: match completion.finish {
            Finish::Eos => Ending::Eos,
            Finish::Stop(_) => Ending::Stop,
            Finish::Length => Ending::Length,
        },
        tokens: completion.ids.len(),
    })
}

/// Counts the rows of all shards of a set of `items` items.
pub fn summarise(rows: &[Row], items: usize) -> Summary {
    let count = |is: fn(&Row) -> bool| rows.iter().filter(|r| is(r)).count();
    let correct = count(|r| r.correct);
    Summary {
        total: rows.len(),
        correct,
        without_answer: count(|r| r.extracted.is_none()),
        unfinished: count(|r| r.finish == Ending::Length),
        skipped: items.saturating_sub(rows.len()),
        interval: wilson(correct, rows.len()),
    }
}
