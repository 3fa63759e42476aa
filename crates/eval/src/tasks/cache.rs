//! Answers of models that need not be asked for again.

use std::{collections::HashMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, rows};

/// What a model said to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// The log-likelihood of a continuation.
    Score {
        /// Natural logarithm.
        log_likelihood: f64,
        /// Every token of it was the most likely one.
        greedy: bool,
    },
    /// A text.
    Text {
        /// Without its stop string.
        text: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    answer: Answer,
}

/// Answers by the hash of model, request and settings; with a file, they outlive the process.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<String, Answer>,
    file: Option<PathBuf>,
}

impl Cache {
    pub(super) fn open(file: Option<PathBuf>) -> Result<Self> {
        let lines: Vec<Line> = match file.as_deref().map_or_else(|| Ok(Vec::new()), rows::read) {
            Err(Error::Row { path, line, what }) => {
                let what =
                    format!("{what}: remove this line, or the file; its answers are only asked for again");
                return Err(Error::Row { path, line, what });
            }
            other => other?,
        };
        Ok(Self { answers: lines.into_iter().map(|l| (l.key, l.answer)).collect(), file })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// Where new answers go.
    pub(super) fn writer(&self) -> Result<Writer> {
        let file = self.file.as_deref().map(rows::Appender::open).transpose()?;
        Ok(Writer { file })
    }

    pub(super) fn extend(&mut self, answers: impl IntoIterator<Item = (String, Answer)>) {
        self.answers.extend(answers);
    }
}

/// Appends answers to the cache's file.
pub(super) struct Writer {
    file: Option<rows::Appender>,
}

impl Writer {
    pub(super) fn append(&mut self, key: &str, answer: &Answer) -> Result<()> {
        match &mut self.file {
            Some(file) => file.append(&Line { key: key.into(), answer: answer.clone() }),
            None => Ok(()),
        }
    }
}
