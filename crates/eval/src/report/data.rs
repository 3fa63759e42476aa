//! What the report shows, read from and written as JSON.

use std::collections::BTreeMap;

use mixse_selfmoe::quality::DomainQuality;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    stats::{Interval, wilson},
};

/// Everything on the page. Parts that a run does not have are empty and left out of the page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// Name of the run.
    pub run: String,
    /// Name of the base model.
    pub base: String,
    /// When the page was made, as text.
    pub made: String,
    /// Domains in their order.
    pub domains: Vec<String>,
    /// Experts in the order of the router's rows.
    pub experts: Vec<String>,
    /// What was evaluated, in the order of the table.
    pub methods: Vec<Method>,
    /// The mixture against the base on the same items.
    pub comparison: Option<Comparison>,
    /// Which expert the tokens of which domain got.
    pub routing: Option<Routing>,
    /// Training losses.
    pub curves: Vec<Curve>,
    /// What became of the generated data.
    pub funnels: Vec<Funnel>,
    /// How varied the rows are, by domain.
    pub quality: Vec<DomainQuality>,
    /// Responses of the mixture.
    pub samples: Vec<Sample>,
    /// Tasks of the plan with their times.
    pub tasks: Vec<TaskTime>,
    /// Speed, memory and the like.
    pub totals: Vec<Fact>,
    /// The machine.
    pub machine: Vec<Fact>,
    /// The full configuration as TOML.
    pub configuration: String,
    /// Files of the run, relative to the page.
    pub files: Vec<FileLink>,
    /// What a reader must know: tasks that were skipped, defences that were missing.
    pub notes: Vec<String>,
}

/// What a row of the results table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
    /// The base model alone.
    Base,
    /// One expert for everything.
    Expert,
    /// All experts, each token given to one at random.
    Random,
    /// All experts with the router.
    Mixture,
    /// Anything else that was evaluated beside them.
    Baseline,
}

/// Something evaluated on the check sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: MethodKind,
    /// Counts by domain; a domain that was not evaluated is absent.
    pub counts: BTreeMap<String, Count>,
}

impl Method {
    /// All domains together.
    pub fn overall(&self) -> Count {
        self.counts.values().fold(Count::default(), |sum, count| Count {
            correct: sum.correct + count.correct,
            total: sum.total + count.total,
        })
    }
}

/// Right answers among items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Right ones.
    pub correct: usize,
    /// All that were asked.
    pub total: usize,
}

impl Count {
    /// Share of right answers, 0 to 1; 0 if nothing was asked.
    pub fn share(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.correct as f64 / self.total as f64 }
    }

    /// 95 % interval of the share.
    pub fn interval(self) -> Interval {
        wilson(self.correct, self.total)
    }
}

/// Two methods on the same items.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Difference of the shares of right answers, mixture minus base.
    pub difference: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Two-sided p-value of no difference (exact McNemar test).
    pub p: f64,
    /// McNemar's mid-p, which is told beside it and decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mid_p: Option<f64>,
}

/// Which expert tokens got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// A row a domain.
    pub rows: Vec<RoutingRow>,
}

/// Tokens of one domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoutingRow {
    /// The domain.
    pub domain: String,
    /// Tokens that were counted.
    pub tokens: u64,
    /// Share of decisions for each expert, 0 to 1, in the order of [`ReportData::experts`].
    pub shares: Vec<f64>,
}

/// Losses of a training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What was trained.
    pub name: String,
    /// Mean loss of each step, from the first.
    pub losses: Vec<f64>,
    /// Steps done and mean loss of the rows that were held out; empty without any.
    #[serde(default)]
    pub validation: Vec<(usize, f64)>,
    /// Steps after which the parameters were those that were kept, where rows were held out.
    #[serde(default)]
    pub kept_step: Option<usize>,
}

/// What became of a domain's generated data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Funnel {
    /// The domain.
    pub domain: String,
    /// Brainstorming prompts.
    pub prompts: usize,
    /// Instructions found in what the model wrote.
    pub parsed: usize,
    /// Instructions that were answered.
    pub answered: usize,
    /// Rows that were kept.
    pub accepted: usize,
    /// Rejected rows by reason.
    pub rejected: BTreeMap<String, usize>,
}

/// A response of the mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The check item's id.
    pub id: String,
    /// Its domain.
    pub domain: String,
    /// What was asked.
    pub prompt: String,
    /// Whether the response was right.
    pub correct: Option<bool>,
    /// The response.
    pub tokens: Vec<Token>,
}

/// A token of a response and how it was routed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// Each expert's part in the token's decisions, 0 to 1, averaged over the blocks, in the order of
    /// [`ReportData::experts`]; the largest one gives the colour. Empty if it was not routed.
    pub probabilities: Vec<f32>,
}

/// A task of the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskTime {
    /// Its id.
    pub id: String,
    /// Machine that ran it.
    pub host: String,
    /// How long it took.
    pub seconds: f64,
    /// What it recorded: tokens, steps and the like.
    pub figures: BTreeMap<String, f64>,
}

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The name.
    pub name: String,
    /// The value with its unit.
    pub value: String,
}

impl Fact {
    /// A fact.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// A file of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLink {
    /// Path relative to the page.
    pub path: String,
    /// What is in it.
    pub what: String,
    /// Its size.
    pub bytes: u64,
}

impl ReportData {
    /// Refuses parts that do not fit together.
    ///
    /// # Errors
    /// Names the part.
    pub(super) fn validate(&self) -> Result<()> {
        let experts = self.experts.len();
        let wrong = |what: String| Err(Error::Invalid(format!("report data: {what}")));
        for row in self.routing.iter().flat_map(|routing| &routing.rows) {
            if row.shares.len() != experts {
                return wrong(format!(
                    "routing of {}: {} shares for {experts} experts",
                    row.domain,
                    row.shares.len()
                ));
            }
            if row.shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
                return wrong(format!("routing of {}: a share is not between 0 and 1", row.domain));
            }
        }
        for sample in &self.samples {
            if sample.tokens.iter().any(|token| ![0, experts].contains(&token.probabilities.len())) {
                return wrong(format!(
                    "sample {}: a token has not one probability for each expert",
                    sample.id
                ));
            }
        }
        for method in &self.methods {
            if let Some((domain, count)) = method.counts.iter().find(|(_, count)| count.correct > count.total)
            {
                return wrong(format!(
                    "{} on {domain}: {} of {} are right",
                    method.name, count.correct, count.total
                ));
            }
        }
        Ok(())
    }
}
