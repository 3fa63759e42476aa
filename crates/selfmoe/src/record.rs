//! The rows of a domain: seeds, check items and synthetic examples share one format.

use serde::{Deserialize, Serialize};

/// One instruction with its response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Unique within its file.
    pub id: String,
    /// What is asked.
    pub instruction: String,
    /// What it is asked about; often empty.
    #[serde(default)]
    pub input: String,
    /// The response.
    pub output: String,
    /// How a response is checked; required for check items, optional for seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// What makes a response right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Answer {
    /// The final number of the response equals `value`.
    Number {
        /// A decimal number, a fraction `a/b` or a percentage without its sign.
        value: String,
        /// Arithmetic from which a test recomputes `value` (`+ - * / ^ %` and parentheses).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expression: Option<String>,
    },
    /// The response chooses the option with this letter; the options stand in the input as `A. …`, one a line.
    Choice {
        /// `A` to `Z`.
        letter: char,
    },
    /// The final answer is one of these, compared without case, articles and punctuation.
    Text {
        /// Accepted answers, the usual one first.
        accept: Vec<String>,
    },
    /// The response is Python code that passes every test.
    Code {
        /// The function that the tests call.
        entry_point: String,
        /// `assert` statements.
        tests: Vec<String>,
    },
}
