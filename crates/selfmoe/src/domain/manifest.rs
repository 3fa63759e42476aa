//! `domain.toml`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RowFormat;
use crate::error::{Error, Fault, Result};

/// What responses of a domain look like; decides which validators are on by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// A number at the end of the response.
    Number,
    /// One of the lettered options in the input.
    Choice,
    /// Words.
    Text,
    /// Python code.
    Code,
    /// Any of these; each task is judged by what it looks like.
    Mixed,
}

/// The content of `domain.toml`; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Lower-case letters, digits, `-` and `_`: names the expert's folder.
    pub name: String,
    /// A few words for tables.
    pub title: String,
    /// A sentence for the report.
    pub description: String,
    /// What responses look like.
    pub answer: AnswerKind,
    /// Shown above the seeds when new instructions are asked for.
    pub requirements: String,
    /// Shown above the demonstrations when a response is asked for.
    pub role: String,
    /// The file of seeds, relative to the folder.
    #[serde(default = "default_seeds")]
    pub seeds: PathBuf,
    /// The file of held-out tasks, relative to the folder.
    #[serde(default = "default_check")]
    pub check: PathBuf,
    /// The format of `seeds`.
    #[serde(default)]
    pub seed_format: RowFormat,
    /// The format of `check`.
    #[serde(default)]
    pub check_format: RowFormat,
    /// Sizes of tasks and responses.
    #[serde(default)]
    pub limits: Limits,
    /// Validators; what is not named follows `answer`.
    #[serde(default)]
    pub filters: Filters,
}

fn default_seeds() -> PathBuf {
    "seeds.jsonl".into()
}

fn default_check() -> PathBuf {
    "check.jsonl".into()
}

/// Sizes that a generated row must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Instruction and input together, in tokens of the model.
    pub max_instruction_tokens: usize,
    /// The response, in tokens of the model; generation ends there.
    pub max_response_tokens: usize,
    /// Instruction and input together, in words (runs of letters and digits).
    pub min_instruction_words: usize,
    /// Likewise.
    pub max_instruction_words: usize,
    /// The response, in words.
    pub min_response_words: usize,
    /// Likewise.
    pub max_response_words: usize,
    /// New instructions that one brainstorm record may give.
    pub instructions_per_record: usize,
    /// The most ROUGE-L to a seed or an accepted row.
    pub max_similarity: f64,
    /// The most share of a text's word 4-grams that repeat an earlier one.
    pub max_repetition: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_instruction_tokens: 256,
            max_response_tokens: 256,
            min_instruction_words: 4,
            max_instruction_words: 400,
            min_response_words: 1,
            max_response_words: 400,
            instructions_per_record: 2,
            max_similarity: 0.7,
            max_repetition: 0.3,
        }
    }
}

/// Switches of the validators. Absent: on where [`AnswerKind`] calls for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filters {
    /// A task states at least one number.
    pub number_in_task: Option<bool>,
    /// A response ends with a number.
    pub number_in_response: Option<bool>,
    /// A task has lettered options, at least two, all different.
    pub options_in_task: Option<bool>,
    /// A response picks one of the task's options, and repeats its text if any.
    pub option_in_response: Option<bool>,
    /// A response defines a function, the one that the task names if it names one, in balanced Python.
    pub function_in_response: Option<bool>,
    /// A task must have an input. Absent: on if every seed has one.
    pub input_in_task: Option<bool>,
    /// A response states its answer after the words "answer is". Absent: on if every seed's output does.
    pub stated_answer: Option<bool>,
    /// A response writes no equation between numbers that is false, such as `3 * 4 = 13`. Absent: off, as the paper
    /// checks nothing of this kind.
    pub true_equations: Option<bool>,
}

impl Manifest {
    /// Parses and validates the file's text; `path` is named in faults.
    ///
    /// # Errors
    /// A key is unknown, missing, of the wrong type or out of its range.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let manifest: Self = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            Error::Faults(vec![Fault { path: path.into(), line, what: e.message().to_owned() }])
        })?;
        manifest.validate(path, text)?;
        Ok(manifest)
    }

    /// Whether the check file's name was left to its default, so that the file may be absent.
    pub(super) fn check_is_default(&self) -> bool {
        self.check == default_check()
    }

    fn validate(&self, path: &Path, text: &str) -> Result<()> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, what: String| {
            faults.push(Fault {
                path: path.into(),
                line: line_of(text, key),
                what: format!("`{key}` {what}"),
            });
        };
        let name_is_plain =
            self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if self.name.is_empty() || self.name.len() > 64 || !name_is_plain {
            fault("name", "must be 1 to 64 lower-case letters, digits, `-` or `_`".into());
        }
        for (key, value) in [
            ("title", &self.title),
            ("description", &self.description),
            ("requirements", &self.requirements),
            ("role", &self.role),
        ] {
            if value.trim().is_empty() {
                fault(key, "is empty".into());
            }
            if value.len() > super::MAX_FIELD_BYTES {
                fault(key, format!("has more than {} bytes", super::MAX_FIELD_BYTES));
            }
        }
        let l = &self.limits;
        for (key, value, range) in [
            ("max_instruction_tokens", l.max_instruction_tokens, 8..=8192),
            ("max_response_tokens", l.max_response_tokens, 4..=32768),
            ("max_instruction_words", l.max_instruction_words, 1..=8192),
            ("max_response_words", l.max_response_words, 1..=32768),
            ("min_instruction_words", l.min_instruction_words, 1..=l.max_instruction_words),
            ("min_response_words", l.min_response_words, 1..=l.max_response_words),
            ("instructions_per_record", l.instructions_per_record, 1..=20),
        ] {
            if !range.contains(&value) {
                fault(key, format!("is {value}, it must be {} to {}", range.start(), range.end()));
            }
        }
        for (key, value) in [("max_similarity", l.max_similarity), ("max_repetition", l.max_repetition)] {
            if !(0.0..=1.0).contains(&value) {
                fault(key, format!("is {value}, it must be between 0 and 1"));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::Faults(faults)) }
    }
}

/// The first line that sets `key`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    text.lines()
        .position(|line| line.trim_start().strip_prefix(key).is_some_and(|r| r.trim_start().starts_with('=')))
        .map(|i| i + 1)
}
