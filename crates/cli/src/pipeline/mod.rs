//! The whole method as a plan of tasks over a run directory.
//!
//! ```text
//! brainstorm/D/K → select/D → respond/D/K → assemble/D → quality/D, expert/D → [statistics/KIND/D] → router → baseline/METHOD → eval/METHOD/K → routing → report
//! ```

mod baselines;
mod data;
mod evaluate;
mod files;
mod findings;
mod models;
mod outline;
mod quality;
mod report;
mod router;
mod routing;
mod run_directory;
mod train;
mod versions;

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::Context;
use mixse_eval::checks::Shard;
use mixse_model::memory;
use mixse_selfmoe::{
    domain::Domain,
    plan::{Input, Plan, Task, TaskError, Work},
    recipe::Recipe,
    template::InstructionTemplate,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    config::Config,
    identity::Arithmetic,
    machine::{peak_memory, reset_peak_memory},
    output::usage_error,
    progress::Progress,
    pull::Cache,
};
pub(crate) use evaluate::{launcher_main, sandbox_launcher};
pub(crate) use findings::RunPlace;
pub(crate) use models::{Models, misfits};
pub(crate) use outline::{Outline, find_domains, open_domains};
pub(crate) use run_directory::RunDirectory;

/// Everything that tasks work with: the configuration and what it names.
pub(crate) struct Pipeline {
    config: Config,
    /// Those of the experts, then those that are only evaluated.
    domains: Vec<Domain>,
    recipe: Recipe,
    template: InstructionTemplate,
    models: Rc<Models>,
    /// The Python that runs generated code here; none where code cannot be run. Found when it is asked for.
    python: OnceCell<Option<String>>,
}

/// The most bytes of a JSON file of a run: tasks and samples of a domain, never tensors.
const MAX_JSON: u64 = 1 << 30;

/// The figure under which tasks record the most memory that their process has held, in bytes.
const PEAK_MEMORY: &str = "peak_memory";

/// Files of one domain's data, below the run directory.
pub(crate) struct DataFiles {
    pub(crate) domain: String,
    pub(crate) rows: PathBuf,
    pub(crate) rejected: PathBuf,
    pub(crate) funnel: PathBuf,
    pub(crate) quality: PathBuf,
}

type TaskResult = Result<(), TaskError>;

impl Pipeline {
    /// Opens domains and templates and checks that they fit together. Nothing is written.
    pub(crate) fn new(config: Config) -> anyhow::Result<Self> {
        let domains = open_domains(&config)?;
        let recipe = Recipe::built_in(config.recipe_settings())?;
        let template = InstructionTemplate::built_in()?;
        let models = Rc::new(Models::named(&config));
        Ok(Self { config, domains, recipe, template, models, python: OnceCell::new() })
    }

    /// Finds (and pulls) the base model and checks its files; without it the plan can only be looked at.
    pub(crate) fn open_base(&mut self, cache: &Cache) -> anyhow::Result<()> {
        self.models = Rc::new(Models::open(&self.config, cache)?);
        let misfits = misfits(&self.config, self.models.checkpoint()?);
        if misfits.is_empty() { Ok(()) } else { Err(usage_error(misfits.join("\n"))) }
    }

    /// Uses a base model that another pipeline with the same base, precision and device has opened.
    pub(crate) fn share_base(&mut self, models: Rc<Models>) {
        self.models = models;
    }

    /// The run has experts of its own, trained on what the base writes.
    pub(crate) fn has_own_experts(&self) -> bool {
        self.outline().uses_data()
    }

    /// The plan over a run directory.
    pub(crate) fn plan<'a>(&'a self, run: &'a RunDirectory) -> anyhow::Result<Plan<'a>> {
        let mut tasks = Vec::new();
        if self.outline().uses_data() {
            tasks.extend(self.all_data_tasks()?);
            tasks.extend(self.own_domains().iter().map(|domain| self.expert_task(domain)));
            tasks.extend(self.statistics_tasks()?);
        }
        if self.outline().evaluates_mixture() {
            tasks.push(self.router_task());
        }
        for method in &self.config.methods {
            tasks.extend(self.baseline_tasks(method)?);
        }
        tasks.extend(self.evaluation_tasks());
        if self.outline().evaluates_mixture() {
            tasks.push(self.routing_task());
        }
        let everything = tasks.iter().map(|task| Input::Task(task.id().to_owned())).collect();
        let report = vec!["report.html".into(), "report.json".into()];
        let write = move |work: &Work<'_>| Ok(self.write_report(run, work)?);
        tasks.push(Task::new("report", everything, report, write).of_this_run());
        self.plan_of(run, tasks)
    }

    /// The part of the plan that makes the domains' rows.
    pub(crate) fn data_plan<'a>(&'a self, run: &'a RunDirectory) -> anyhow::Result<Plan<'a>> {
        self.plan_of(run, self.all_data_tasks()?)
    }

    /// A plan of tasks that name the version of the code that makes them and, where numbers of the model decide what they make, how those are
    /// computed.
    fn plan_of<'a>(&self, run: &RunDirectory, tasks: Vec<Task<'a>>) -> anyhow::Result<Plan<'a>> {
        let arithmetic = Arithmetic { device: self.config.device, portable: self.config.portable }.value();
        let complete = |task: Task<'a>| {
            let version = versions::version(task.id());
            let task = task.with_version(version);
            match task.reads_value(MODEL) {
                true => task.with_input(Input::fixed("arithmetic", arithmetic.clone())),
                false => task,
            }
        };
        Ok(Plan::new(run.path(), tasks.into_iter().map(complete).collect())?)
    }

    fn all_data_tasks(&self) -> anyhow::Result<Vec<Task<'_>>> {
        let mut tasks = Vec::new();
        for domain in self.own_domains() {
            tasks.extend(self.data_tasks(domain)?);
            tasks.push(self.quality_task(domain));
        }
        Ok(tasks)
    }

    /// Where the plan puts each domain's rows, below the run directory.
    pub(crate) fn data_files(&self) -> Vec<DataFiles> {
        let of = |domain: String| DataFiles {
            rows: files::rows(&domain),
            rejected: files::rejected(&domain),
            funnel: files::funnel(&domain),
            quality: files::quality(&domain),
            domain,
        };
        self.names().into_iter().map(of).collect()
    }

    /// What follows from the configuration and the domains alone.
    fn outline(&self) -> Outline<'_> {
        Outline { config: &self.config, domains: &self.domains }
    }

    fn own_domains(&self) -> &[Domain] {
        self.outline().own_domains()
    }

    fn names(&self) -> Vec<String> {
        self.outline().names()
    }

    /// The base model and how it is run: an input of every task that uses it.
    fn model_input(&self) -> Input {
        let Ok(hash) = self.models.hash() else { return Input::Unknown(MODEL.into()) };
        let Ok(texts) = self.models.text_hash() else { return Input::Unknown(MODEL.into()) };
        let precision = self.config.precision;
        Input::value(MODEL, serde_json::json!({ "hash": hash, "texts": texts, "precision": precision }))
    }

    /// What runs generated code, as an input of tasks that do.
    fn python_input(&self) -> Input {
        let find = || evaluate::open_sandbox().ok().map(|sandbox| sandbox.python().version.clone());
        Input::fixed("python", self.python.get_or_init(find).clone().into())
    }
}

/// The name of the input that says which model is used.
const MODEL: &str = "model";

/// Writes a file of a run.
pub(crate) fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    mixse_files::write_atomic(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a JSON file for programs.
fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write(path, &serde_json::to_vec(value)?)
}

/// Writes a JSON file for people.
fn write_pretty(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write(path, &serde_json::to_vec_pretty(value)?)
}

/// Reads a JSON file of a run.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        mixse_files::read_text(path, MAX_JSON).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// A part of the configuration as an input.
fn value_input(name: &str, value: &impl Serialize) -> Input {
    // Configuration types are plain data; one that could not be written would be a new input every time.
    Input::value(name, serde_json::to_value(value).unwrap_or_default())
}

/// Shard `index` of `count` of the numbers below `total`.
fn share(total: usize, shard: Shard) -> std::ops::Range<u64> {
    let bound = |i: usize| (total * i / shard.count) as u64;
    bound(shard.index)..bound(shard.index + 1)
}

fn shards(count: usize) -> impl Iterator<Item = Shard> {
    (0..count).map(move |index| Shard { index, count })
}

/// Shows the progress of a task and stops it when another process has taken it over.
struct Watch<'a> {
    work: &'a Work<'a>,
    progress: Progress,
    tokens: u64,
    lost: bool,
}

impl<'a> Watch<'a> {
    fn new(work: &'a Work<'a>, label: &str, unit: &str, total: usize) -> Self {
        // What the task before kept for itself is not this one's.
        memory::release();
        reset_peak_memory();
        Self { work, progress: Progress::new(label, unit, total as u64), tokens: 0, lost: false }
    }

    /// `done` counts from the task's start, earlier attempts included; `tokens` are new ones.
    fn at(&mut self, done: usize, tokens: u64) -> std::ops::ControlFlow<()> {
        self.progress.set(done as u64, tokens);
        self.tokens += tokens;
        self.lost = self.work.check().is_err();
        if self.lost { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    }

    /// Records tokens and their rate; fails if the task was lost.
    fn finish(self) -> anyhow::Result<()> {
        if self.lost {
            self.work.check().context("stopped")?;
        }
        self.work.record("tokens", self.tokens as f64);
        self.work.record("tokens_per_s", self.progress.tokens_per_second());
        if let Some(peak) = peak_memory() {
            // Where the system cannot count anew, of the process so far.
            self.work.record(PEAK_MEMORY, peak as f64);
        }
        self.progress.finish();
        Ok(())
    }
}
