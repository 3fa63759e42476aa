//! The results of a study: several methods, on several bases, settings and seeds, on the same items.
//!
//! [`Answers`] is what was answered, item by item; [`summarise`] turns it into the numbers of the tables; [`page`],
//! [`latex`], [`csv`] and [`figures`] write them.

mod figure;
mod output;
mod paper;
mod png;
mod summary;

pub use figure::{Figure, figures};
pub use output::{csv, items_csv, latex, page};
pub use summary::{Cell, Contrast, Row, Summary, summarise};

use serde::{Deserialize, Serialize};

use crate::report::MethodKind;

/// What one row of the table answered in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Rows of one group share a base and settings; comparisons are made within a group. Empty where there is one group only.
    pub group: String,
    /// The method as configurations name it; the experts have `expert DOMAIN`.
    pub method: String,
    /// What it is.
    pub kind: MethodKind,
    /// The run's seed.
    pub seed: u64,
    /// The answers to each domain's items.
    pub domains: Vec<DomainAnswers>,
}

/// Answers to one domain's items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainAnswers {
    /// The domain.
    pub domain: String,
    /// Files with the full rows, relative to the study directory.
    pub files: Vec<String>,
    /// Item ids and whether the answer was right.
    pub items: Vec<(String, bool)>,
}

/// Which expert the tokens of each domain's responses got in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRouting {
    /// As in [`Answers`].
    pub group: String,
    /// The run's seed.
    pub seed: u64,
    /// The experts in order.
    pub experts: Vec<String>,
    /// Shares by domain.
    pub rows: Vec<crate::report::RoutingRow>,
}

/// How many rows a domain's expert was trained on in one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunData {
    /// As in [`Answers`].
    pub group: String,
    /// The run's seed.
    pub seed: u64,
    /// Domain and the rows that its expert was trained on.
    pub rows: Vec<(String, usize)>,
}

/// Everything that a study has found so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// What the study is called.
    pub title: String,
    /// What it asks.
    pub about: String,
    /// Domains in the order of the columns.
    pub domains: Vec<String>,
    /// Runs that are finished, and all.
    pub runs: (usize, usize),
    /// Answers, in the order of the table.
    pub answers: Vec<Answers>,
    /// Routing of the runs that have it.
    pub routing: Vec<RunRouting>,
    /// Training data of the runs.
    pub data: Vec<RunData>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests;
