//! The configuration of a run: what `mixse.toml` holds.
//!
//! A file names only what differs from a preset ([`presets`]); [`load`] joins the two, checks everything and reports all
//! faults at once. The full resolved configuration is kept in the run directory.

mod adapter;
mod expert;
mod load;
mod memory;
mod method;
mod presets;
mod validate;

use std::{fmt, num::NonZeroUsize, str::FromStr};

use clap::ValueEnum;
use mixse_model::{
    engine::Precision,
    router::{RouterConfig, Score},
    weights::Unused,
};
use mixse_selfmoe::{
    arrow, recipe,
    template::Style,
    train::{RidgeConfig, TrainConfig},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, de::DeserializeOwned};

pub(crate) use adapter::AdapterSource;
pub(crate) use expert::ExpertSection;
pub(crate) use load::{MAX_CONFIG, check, compare, load, read_resolved, resolve};
pub(crate) use memory::MemoryLimit;
pub(crate) use method::{Form, Merging, Method};

/// Everything that decides what a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Base model: a name that `mixse pull` knows, a `.gguf` file or a Hugging Face directory.
    pub(crate) base: String,
    /// Built-in domains by name, own ones by the path of their folder.
    pub(crate) domains: Vec<String>,
    /// Domains whose expert was made elsewhere and is taken from a PEFT directory: `NAME=PATH`.
    pub(crate) adapters: Vec<AdapterSource>,
    /// Every random choice follows from it.
    pub(crate) seed: u64,
    pub(crate) device: Device,
    /// Run the portable operations, the slow reference of the tests; needs a build with the feature `reference`.
    pub(crate) portable: bool,
    /// Tensors of the base that nothing reads are left out, instead of refusing it.
    pub(crate) ignore_unused: bool,
    pub(crate) precision: Precision,
    pub(crate) threads: Threads,
    /// Training that would need more runs blocks again instead of keeping what lies between; results are the same.
    pub(crate) memory_limit: MemoryLimit,
    /// How a task is put to the model in training and evaluation.
    pub(crate) style: Style,
    /// Special tokens that seeds, rows and items spell count as such; otherwise they are text like any other.
    pub(crate) parse_special: bool,
    /// What is computed and evaluated, in the order of the table; more may be named when a run is continued.
    pub(crate) methods: Vec<Method>,
    pub(crate) generation: Generation,
    pub(crate) expert: ExpertSection,
    pub(crate) router: RouterSection,
    pub(crate) evaluation: Evaluation,
}

/// Brainstorming and responding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Generation {
    /// Brainstorming prompts per domain; each asks for several tasks.
    pub(crate) prompts: usize,
    /// New tasks that are answered per domain, at most.
    pub(crate) tasks: usize,
    /// Divisor of the logits while brainstorming.
    pub(crate) temperature: f64,
    /// Nucleus probability while brainstorming.
    pub(crate) top_p: f64,
    /// Seeds shown while brainstorming.
    pub(crate) shown_seeds: usize,
    /// Seeds shown with their outputs while responding.
    pub(crate) demonstrations: usize,
    /// What must confirm a row besides the filters.
    pub(crate) verify: Verify,
    /// Further responses a task, on which a vote is taken (`verify = "majority"` or `"both"`) or with which code is compared
    /// (`"execute"` or `"both"`).
    pub(crate) samples: usize,
    /// Divisor of their logits.
    pub(crate) sample_temperature: f64,
    /// Smallest share of all answers that the winning one must have, or of solutions that must return what the code does.
    pub(crate) min_agreement: f64,
    /// Responses must give their answer in the domain's form: a stated answer, a number, one of the options.
    pub(crate) answer_format: bool,
    /// The model makes each task again from its response; how near it comes is recorded.
    pub(crate) round_trip: bool,
    /// Smallest ROUGE-L of the two tasks for which a row is kept; 0: all are.
    pub(crate) min_round_trip: f64,
    /// Rows go round the quarters of agreement, so that the first ones are spread evenly over easy and hard tasks.
    pub(crate) balance: bool,
    /// Rounds of responses: from the second on, each domain's expert of the round before responds to the same tasks.
    pub(crate) iterations: usize,
    /// Accepted rows that are trained on per domain, at most: the first ones.
    pub(crate) rows: usize,
    /// Each domain's seeds are trained on beside its accepted rows (the paper's experts see the accepted rows alone).
    pub(crate) with_seeds: bool,
    /// Parts that can be made by different processes.
    pub(crate) shards: usize,
}

/// What must confirm a row besides the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verify {
    /// Nothing (the paper).
    None,
    /// Code runs to its end.
    Runs,
    /// Code runs and is confirmed by tests that the model writes, or by other solutions that return the same.
    Execute,
    /// Most samples agree on the answer.
    Majority,
    /// Whichever of the two suits the domain.
    Both,
}

impl Verify {
    /// Code is run.
    pub(crate) fn executes(self) -> bool {
        matches!(self, Self::Runs | Self::Execute | Self::Both)
    }

    /// Votes are taken.
    pub(crate) fn votes(self) -> bool {
        matches!(self, Self::Majority | Self::Both)
    }
}

/// The router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouterSection {
    #[serde(flatten)]
    pub(crate) router: RouterConfig,
    /// How R comes about.
    pub(crate) fit: Fit,
    /// Weight of the router's cross-entropy against the rows' domains, beside the language-model loss.
    pub(crate) domain_loss: f64,
    pub(crate) ridge: RidgeConfig,
    pub(crate) training: TrainConfig,
}

/// How a router's R comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fit {
    /// Gradients of the language-model loss, from a random start (the paper).
    LmLoss,
    /// Ridge regression from the frozen base's hidden states to the domain, in closed form.
    Ridge,
    /// The same as the start of `LmLoss`.
    RidgeThenLmLoss,
    /// The experts' own directions, without data or training (Arrow).
    Arrow,
}

impl Fit {
    /// A ridge regression is solved.
    pub(crate) fn uses_ridge(self) -> bool {
        matches!(self, Self::Ridge | Self::RidgeThenLmLoss)
    }

    /// Gradients move R.
    pub(crate) fn trains(self) -> bool {
        matches!(self, Self::LmLoss | Self::RidgeThenLmLoss)
    }
}

impl RouterSection {
    /// Everything that is wrong with it for so many experts.
    pub(crate) fn faults(&self, experts: usize) -> Vec<String> {
        let mut faults =
            [self.router.faults(experts), self.ridge.faults(experts), self.training.faults()].concat();
        if !(self.domain_loss.is_finite() && self.domain_loss >= 0.0) {
            faults.push(format!("router.domain_loss = {} must be 0 or above", self.domain_loss));
        }
        if self.domain_loss > 0.0 && !self.fit.trains() {
            faults.push("router.domain_loss has no effect where router.fit trains nothing: use \"lm_loss\" or \"ridge_then_lm_loss\"".into());
        }
        match (self.fit, self.router.gate.score) {
            (Fit::Arrow, _) => faults.extend(arrow::faults(&self.router)),
            (_, Score::Absolute) => {
                faults.push("router.score = \"absolute\" is for router.fit = \"arrow\"".into())
            }
            _ => {}
        }
        faults
    }
}

/// The check sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    /// Check items per domain, at most.
    pub(crate) items: usize,
    /// Check items left out at the start of each domain's file: those on which something was chosen.
    pub(crate) skip: usize,
    /// Seeds shown with their outputs in front of each check item.
    pub(crate) shots: usize,
    /// Which of all drawn lists of such seeds, the same for every run.
    pub(crate) shot_list: u64,
    /// Domains that are evaluated although no expert is trained for them.
    pub(crate) unseen_domains: Vec<String>,
    /// Parts that can be made by different processes.
    pub(crate) shards: usize,
    /// Responses of the mixture that the report shows, per domain.
    pub(crate) samples: usize,
}

impl Config {
    /// What becomes of tensors of the base that nothing reads.
    pub(crate) fn unused(&self) -> Unused {
        if self.ignore_unused { Unused::Ignore } else { Unused::Refuse }
    }

    /// The router's section with other values for some of its keys. `top_k = all` is the number of experts.
    ///
    /// # Errors
    /// Everything that is wrong with the values.
    pub(crate) fn router_with(&self, values: &[(String, String)]) -> Result<RouterSection, Vec<String>> {
        let mut table = toml::Table::try_from(&self.router).map_err(|e| vec![e.to_string()])?;
        let mut faults = Vec::new();
        for (key, value) in values {
            let value = match (key.as_str(), value.as_str()) {
                ("top_k", "all") => toml::Value::Integer(self.domains.len() as i64),
                (_, text) => text.parse().unwrap_or_else(|_| toml::Value::String(text.to_owned())),
            };
            faults.extend(
                load::set::<RouterSection>(&mut table, key, &value)
                    .err()
                    .map(|fault| format!("{}: {}", fault.key, fault.what)),
            );
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let section: RouterSection = table.try_into().map_err(|e: toml::de::Error| vec![e.to_string()])?;
        let faults = section.faults(self.domains.len());
        if faults.is_empty() { Ok(section) } else { Err(faults) }
    }

    /// The router that a method makes for itself; `None`: it makes none.
    pub(crate) fn router_of(&self, method: &Method) -> Option<Result<RouterSection, Vec<String>>> {
        Some(self.router_with(&method.router_values()?))
    }

    /// What generation needs to know.
    pub(crate) fn recipe_settings(&self) -> recipe::Settings {
        recipe::Settings {
            seed: self.seed,
            temperature: self.generation.temperature as f32,
            top_p: self.generation.top_p as f32,
            shown_seeds: self.generation.shown_seeds,
            demonstrations: self.generation.demonstrations,
            parse_special: self.parse_special,
        }
    }
}

/// A set of starting values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Preset {
    /// Small sizes: minutes on two cores.
    Quick,
    /// As quick, with what has measured best: seeds beside the rows, router in closed form.
    Tuned,
    /// The sizes of the Self-MoE paper.
    Paper,
}

impl Preset {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Tuned => "tuned",
            Self::Paper => "paper",
        }
    }
}

/// Where a model is held and computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Device {
    /// The processor.
    Cpu,
    /// NVIDIA (to come).
    Cuda,
    /// Apple (to come).
    Metal,
}

/// For the command line: a value by the name that it has in files.
pub(crate) fn parse_name<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    T::deserialize(de::value::StrDeserializer::<de::value::Error>::new(name)).map_err(|e| e.to_string())
}

/// How many threads work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// One per core.
    All,
    /// That many.
    Count(NonZeroUsize),
}

impl Threads {
    /// The number on this machine.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::All => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            Self::Count(count) => count.get(),
        }
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl FromStr for Threads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => {
                text.parse().map(Self::Count).map_err(|_| "expected `all` or a number above zero".to_owned())
            }
        }
    }
}

impl Serialize for Threads {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Count(count) => count.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Word(String),
            Number(u64),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Word(word) => word,
            Written::Number(number) => number.to_string(),
        };
        text.parse().map_err(de::Error::custom)
    }
}
