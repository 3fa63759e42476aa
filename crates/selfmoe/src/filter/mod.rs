//! What is kept of the model's tasks and responses, and why the rest is not.

mod response;
mod task;

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

pub use response::{AcceptedResponse, ResponseFilter};
pub use task::{Similarity, TaskFilter};

use crate::{
    answer::{choice, text::stated},
    domain::{AnswerKind, Domain},
    rouge,
};

/// Why something was rejected. The names are part of the file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The text does not have the list's form.
    Unparsable,
    /// Nothing was written.
    Empty,
    /// The limit of tokens cut it off.
    Unfinished,
    /// Fewer words than the domain asks for.
    TooShort,
    /// More tokens or words than the domain allows.
    TooLong,
    /// Parts of the prompt's form stand in the text.
    PromptLeak,
    /// The same word sequences come again and again.
    RepeatedNgrams,
    /// A shown seed was copied.
    CopiedDemonstration,
    /// ROUGE-L to a seed is above the limit.
    SimilarToSeed,
    /// ROUGE-L to a row accepted before is above the limit.
    SimilarToRow,
    /// Every seed has an input, this task has none.
    NoInput,
    /// No number where the domain needs one.
    NoNumber,
    /// A multiple-choice task without at least two options.
    NoOptions,
    /// Two options say the same.
    RepeatedOptions,
    /// The response states no final answer in the form of the seeds.
    NoAnswer,
    /// The response picks no option of the task, or gives another option's text.
    WrongOption,
    /// The response defines no function.
    NoFunction,
    /// The response defines another function than the task names, or not where its code is.
    WrongFunction,
    /// The code cannot be Python.
    InvalidCode,
    /// The response writes an equation between numbers that is false.
    FalseEquation,
    /// Too few of the sampled answers agree.
    NoMajority,
    /// The code does not run to its end.
    FailedExecution,
    /// The code passes none of the usable tests.
    FailedTests,
    /// Neither tests nor other solutions confirm the code.
    Unconfirmed,
    /// The task that was made again from the response is another one.
    FailedRoundTrip,
}

impl fmt::Display for Reason {
    /// The name as in files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A rejection and what exactly was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The kind.
    pub reason: Reason,
    /// For a reader; may be empty.
    pub detail: String,
}

impl Rejection {
    /// A rejection with a detail.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The validators of a domain: its switches, the rest decided by its kind of answer and its seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rules {
    input_in_task: bool,
    number_in_task: bool,
    options_in_task: bool,
    number_in_response: bool,
    option_in_response: bool,
    function_in_response: bool,
    stated_answer: bool,
    true_equations: bool,
}

impl Rules {
    fn of(domain: &Domain) -> Self {
        let kind = domain.manifest.answer;
        let filters = &domain.manifest.filters;
        let all_seeds = |test: fn(&crate::record::Example) -> bool| domain.seeds.iter().all(test);
        Self {
            input_in_task: filters.input_in_task.unwrap_or(all_seeds(|s| !s.input.trim().is_empty())),
            number_in_task: filters.number_in_task.unwrap_or(kind == AnswerKind::Number),
            options_in_task: filters.options_in_task.unwrap_or(kind == AnswerKind::Choice),
            number_in_response: filters.number_in_response.unwrap_or(kind == AnswerKind::Number),
            option_in_response: filters
                .option_in_response
                .unwrap_or(matches!(kind, AnswerKind::Choice | AnswerKind::Mixed)),
            function_in_response: filters.function_in_response.unwrap_or(kind == AnswerKind::Code),
            true_equations: filters.true_equations.unwrap_or(false),
            stated_answer: filters.stated_answer.unwrap_or(all_seeds(|s| stated(&s.output).is_some())),
        }
    }
}

/// The share of a text's word n-grams (n = 4) that occurred before in it; 0 below 12 words, where it means nothing.
fn repetition(text: &str) -> f64 {
    const N: usize = 4;
    let words: Vec<String> = rouge::words(text).collect();
    if words.len() < 3 * N {
        return 0.0;
    }
    let all = words.len() + 1 - N;
    let distinct = words.windows(N).collect::<std::collections::HashSet<_>>().len();
    (all - distinct) as f64 / all as f64
}

/// A line that belongs to the prompt's form, not to a task or a response.
fn prompt_leak(text: &str) -> Option<&str> {
    text.lines().find(|line| {
        let line = line.trim_start();
        line.starts_with("###") || line.starts_with("Instruction:") || line.starts_with("<|")
    })
}

fn check_common(text: &str, allowed: RangeInclusive<usize>, max_repetition: f64) -> Result<(), Rejection> {
    if text.trim().is_empty() {
        return Err(Rejection::new(Reason::Empty, ""));
    }
    if let Some(line) = prompt_leak(text) {
        return Err(Rejection::new(Reason::PromptLeak, line.trim()));
    }
    let words = rouge::words(text).count();
    if !allowed.contains(&words) {
        let reason = if words < *allowed.start() { Reason::TooShort } else { Reason::TooLong };
        let what = format!("{words} words instead of {} to {}", allowed.start(), allowed.end());
        return Err(Rejection::new(reason, what));
    }
    let repeated = repetition(text);
    if repeated > max_repetition {
        return Err(Rejection::new(
            Reason::RepeatedNgrams,
            format!("{:.0} % of its 4-grams, at most {:.0} %", 100.0 * repeated, 100.0 * max_repetition),
        ));
    }
    Ok(())
}

/// The options of a task, refused if they are not usable. Empty if the task has none.
fn usable_options(input: &str) -> Result<Vec<choice::Choice<'_>>, Rejection> {
    let options = choice::options(input);
    if options.len() == 1 {
        return Err(Rejection::new(Reason::NoOptions, "a single option"));
    }
    for (i, (letter, text)) in options.iter().enumerate() {
        if text.is_empty() || options[..i].iter().any(|(_, other)| other.eq_ignore_ascii_case(text)) {
            let what = format!("option {letter} is empty or repeats another one");
            return Err(Rejection::new(Reason::RepeatedOptions, what));
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests;
