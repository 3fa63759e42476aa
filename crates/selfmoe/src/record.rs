//! The rows of a domain: seeds, check items and synthetic examples share one format.

use mixse_model::tokenizer::ContentTokens;
use serde::{Deserialize, Serialize};

use crate::execute::Confirmation;

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

/// A row that the base model wrote and the filters accepted: what experts are trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyntheticRow {
    /// `DOMAIN-RECORD-ITEM`: the brainstorm record and the place of the instruction in it.
    pub id: String,
    /// The domain's name.
    pub domain: String,
    /// What is asked.
    pub instruction: String,
    /// What it is asked about; often empty.
    pub input: String,
    /// The model's own response.
    pub output: String,
    /// How the row came about.
    pub origin: Origin,
    /// What the checks measured.
    pub checks: Checks,
}

/// How a synthetic row came about; enough to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Seeds shown while brainstorming, in order.
    pub seeds: Vec<String>,
    /// Seeds shown as demonstrations while responding, in order.
    pub demonstrations: Vec<String>,
    /// How the instruction was sampled; the response is greedy.
    pub sampling: SamplingRecord,
    /// SHA-256 over the templates and the domain's texts.
    pub prompt: String,
    /// SHA-256 of the base, and in later rounds `+` and the fingerprint of the expert that responded.
    pub model: String,
    /// What became of special tokens that seeds and tasks spell; rows from before this was recorded say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<ContentTokens>,
}

/// The settings of a sampled completion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplingRecord {
    /// The run's seed.
    pub seed: u64,
    /// The brainstorm record.
    pub record: u64,
    /// Divisor of the logits.
    pub temperature: f32,
    /// Nucleus probability.
    pub top_p: f32,
}

/// What the checks of an accepted row measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// Highest ROUGE-L to a seed.
    pub seed_similarity: f64,
    /// Highest ROUGE-L to a row accepted before.
    pub row_similarity: f64,
    /// The final answer that was found in the response, where the domain has such answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The share of samples with this answer, or of tests or samples that confirm the code, 0 to 1, where they were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// The code ran to its end, where it was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed: Option<bool>,
    /// What confirmed the code, where it was tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Confirmation>,
    /// ROUGE-L of the task and the one that the model made again from the response, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<f64>,
}

impl Checks {
    /// Nothing but the similarities and the answer.
    pub fn new(seed_similarity: f64, row_similarity: f64, answer: Option<String>) -> Self {
        Self {
            seed_similarity,
            row_similarity,
            answer,
            agreement: None,
            executed: None,
            confirmed: None,
            round_trip: None,
        }
    }
}
