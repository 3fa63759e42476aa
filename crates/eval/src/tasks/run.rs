//! Evaluates models on tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use mixse_model::{language::LanguageModel, tokenizer::MarkedText};

use super::{
    ask::{Ask, Draw, What, ask},
    builtin::BenchData,
    cache::{Answer, Cache},
    judge,
    task::{Chat, Fewshot, Kind, Task},
    user,
};
use crate::{Error, Result, sandbox::Sandbox};

/// What is evaluated, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names of benchmarks, groups and tasks, or paths of the user's own task files (`….toml`).
    pub tasks: Vec<String>,
    /// The directory of the benchmarks' files; not needed for one's own tasks.
    pub bench_data: Option<PathBuf>,
    /// Worked examples; `None` leaves it to the task.
    pub num_fewshot: Option<usize>,
    /// Seed of the draw of worked examples; the harness's default is 1234.
    pub fewshot_seed: u64,
    /// How many rows of each task.
    pub limit: Limit,
    /// Indices of the rows of these tasks, in any order; tasks without any are left out. Excludes `limit`.
    pub samples: Option<BTreeMap<String, Vec<usize>>>,
    /// Use the model's chat template.
    pub chat: Option<Chat>,
    /// Attempts at each item of tasks whose code is run.
    pub attempts: Attempts,
    /// Where answers are kept for the next time.
    pub cache: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            bench_data: None,
            num_fewshot: None,
            fewshot_seed: 1234,
            limit: Limit::All,
            samples: None,
            chat: None,
            attempts: Attempts::default(),
            cache: None,
        }
    }
}

/// How many rows of a task are used, from its beginning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Every row.
    All,
    /// At most so many.
    Rows(usize),
    /// This share, rounded up.
    Share(f64),
}

impl Limit {
    fn of(self, rows: usize) -> usize {
        match self {
            Self::All => rows,
            Self::Rows(n) => n.min(rows),
            Self::Share(share) => ((rows as f64 * share).ceil() as usize).min(rows),
        }
    }
}

/// Attempts at code: one greedy one, or several drawn ones, from which `pass@k` is estimated.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempts {
    /// How many; 1 is greedy.
    pub count: usize,
    /// The `k` of `pass@k`, each at most `count`.
    pub pass_at: Vec<usize>,
    /// Temperature of drawn attempts.
    pub temperature: f32,
    /// Nucleus of drawn attempts.
    pub top_p: f32,
    /// Seed of drawn attempts.
    pub seed: u64,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { count: 1, pass_at: vec![1], temperature: 0.8, top_p: 0.95, seed: 0 }
    }
}

/// A model that takes part.
pub struct Contender<'a> {
    /// Its name in tables and file names.
    pub name: String,
    /// Everything that decides about its answers (weights, experts, router, precision), for the cache.
    pub identity: String,
    /// The model.
    pub model: &'a dyn LanguageModel,
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The model at work.
    pub contender: &'a str,
    /// Requests answered.
    pub done: usize,
    /// Requests of this model.
    pub total: usize,
}

/// The results of one model.
#[derive(Debug, Clone)]
pub struct Evaluated {
    /// Its name.
    pub contender: String,
    /// A result per task.
    pub tasks: Vec<TaskResult>,
    /// Tasks that were left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Prompts that lost their beginning because they were too long.
    pub truncated: usize,
    /// Seconds from the first request to the last verdict.
    pub seconds: f64,
}

/// The result of a task.
#[derive(Debug, Clone)]
pub struct TaskResult {
    /// The task.
    pub task: std::sync::Arc<Task>,
    /// Worked examples used.
    pub num_fewshot: usize,
    /// Rows, filter by filter.
    pub samples: Vec<Sample>,
}

/// One row under one filter.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Index of the row in the task.
    pub doc_id: usize,
    /// The filter's name.
    pub filter: String,
    /// The prompt; with a choice or with the settings of the generation.
    pub arguments: Vec<(String, Argument)>,
    /// What the model said to each argument (to each attempt).
    pub responses: Vec<Answer>,
    /// What the filter made of the responses.
    pub answers: Vec<String>,
    /// Name and value of each measure.
    pub metrics: Vec<(String, f64)>,
}

/// The second half of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// A choice.
    Continuation(String),
    /// Settings of a generation.
    Generation {
        /// Stop strings.
        until: Vec<String>,
        /// Limit in tokens.
        max_tokens: usize,
    },
}

/// The tasks that the settings name, with the rows that are used.
///
/// # Errors
/// A task is unknown, a file is missing or malformed, or the settings contradict each other.
pub fn load(settings: &Settings) -> Result<Vec<Planned>> {
    if settings.samples.is_some() && settings.limit != Limit::All {
        return Err(Error::Invalid("--limit and --samples exclude each other".into()));
    }
    let mut planned: Vec<Planned> = Vec::new();
    for name in &settings.tasks {
        let tasks = if name.ends_with(".toml") {
            vec![user::read(std::path::Path::new(name))?]
        } else {
            let directory = settings.bench_data.as_deref().ok_or_else(|| {
                Error::Invalid(format!("{name}: --bench-data must name the directory of the benchmark files"))
            })?;
            BenchData::open(directory)?.tasks(name)?
        };
        for task in tasks {
            if planned.iter().any(|p| p.task.name == task.name) {
                continue;
            }
            planned.extend(plan(task, settings)?);
        }
    }
    let unplanned = |name: &&String| !planned.iter().any(|p| p.task.name == **name);
    let mut wanted =
        settings.samples.iter().flatten().filter(|(_, rows)| !rows.is_empty()).map(|(name, _)| name);
    if let Some(name) = wanted.find(unplanned) {
        return Err(Error::Invalid(format!(
            "rows of {name:?} are asked for, which is none of the tasks to evaluate (a group's rows go by its tasks, such as \
             mmlu_anatomy)"
        )));
    }
    if planned.is_empty() {
        return Err(Error::Invalid("no tasks are left to evaluate".into()));
    }
    Ok(planned)
}

/// A task with the rows and the number of worked examples that are used.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The task.
    pub task: std::sync::Arc<Task>,
    /// Indices of its rows.
    pub rows: Vec<usize>,
    /// Worked examples.
    pub fewshot: Fewshot,
}

fn plan(task: Task, settings: &Settings) -> Result<Option<Planned>> {
    let rows: Vec<usize> = match &settings.samples {
        None => (0..settings.limit.of(task.items.len())).collect(),
        // In the file's order and each once, as the harness takes them: drawn examples depend on it.
        Some(samples) => {
            let wanted: BTreeSet<usize> = samples.get(&task.name).into_iter().flatten().copied().collect();
            wanted.into_iter().collect()
        }
    };
    if rows.is_empty() {
        return Ok(None);
    }
    if let Some(row) = rows.iter().find(|r| **r >= task.items.len()) {
        return Err(Error::Invalid(format!(
            "{}: row {row} is asked for, there are {} (counted from 0)",
            task.name,
            task.items.len()
        )));
    }
    let count = settings.num_fewshot.unwrap_or(task.default_shots);
    let fewshot = Fewshot { count, seed: settings.fewshot_seed };
    Ok(Some(Planned { task: task.into(), rows, fewshot }))
}

impl Planned {
    /// The requests of every row: the prompt and its second half, in the harness's order.
    ///
    /// # Errors
    /// As [`Task::prompts`].
    pub fn arguments(
        &self,
        chat: Option<(&Chat, &mixse_model::tokenizer::Tokenizer)>,
    ) -> Result<Vec<Vec<(String, Argument)>>> {
        let prompts = self.task.prompts(&self.rows, self.fewshot, chat)?;
        Ok(self.arguments_of(&prompts, chat.is_some()))
    }

    fn arguments_of(&self, prompts: &[MarkedText], chat: bool) -> Vec<Vec<(String, Argument)>> {
        let texts = prompts.iter().map(|prompt| prompt.as_str().to_owned());
        let of = |(&row, prompt): (&usize, String)| match &self.task.kind {
            Kind::Choice(_) => {
                let delimiter = self.task.choice_delimiter(chat);
                let choices = self.task.items[row].choices.iter();
                choices.map(|c| (prompt.clone(), Argument::Continuation(format!("{delimiter}{c}")))).collect()
            }
            Kind::Generate(g) => {
                vec![(prompt, Argument::Generation { until: g.until.clone(), max_tokens: g.max_tokens })]
            }
        };
        self.rows.iter().zip(texts).map(of).collect()
    }

    /// Whether the model's code is run, which needs a sandbox.
    pub fn runs_code(&self) -> bool {
        judge::runs_code(&self.task)
    }

    fn attempts(&self, settings: &Attempts) -> usize {
        if self.runs_code() { settings.count.max(1) } else { 1 }
    }
}

/// Evaluates each contender on every task. Without a sandbox, tasks whose code must be run are left out.
///
/// # Errors
/// As [`load`]; or a model, the sandbox or the cache fails. Answers so far are in the cache.
pub fn evaluate(
    settings: &Settings,
    contenders: &[Contender<'_>],
    sandbox: Option<&Sandbox>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Evaluated>> {
    let planned = load(settings)?;
    if let Some(k) = settings.attempts.pass_at.iter().find(|k| **k > settings.attempts.count || **k == 0) {
        return Err(Error::Invalid(format!(
            "pass@{k} needs at least {k} attempts; there are {}",
            settings.attempts.count
        )));
    }
    let (planned, skipped): (Vec<_>, Vec<_>) =
        planned.into_iter().partition(|p| sandbox.is_some() || !p.runs_code());
    if let (true, Some(first)) = (planned.is_empty(), skipped.first()) {
        return Err(Error::Sandbox(format!("{}: generated code cannot be run here", first.task.name)));
    }
    let skipped: Vec<(String, String)> = skipped
        .iter()
        .map(|p| (p.task.name.clone(), "generated code cannot be run here".to_string()))
        .collect();
    let mut cache = Cache::open(settings.cache.clone())?;
    contenders
        .iter()
        .map(|contender| {
            let started = std::time::Instant::now();
            let (tasks, truncated) = one(settings, contender, &planned, sandbox, &mut cache, progress)?;
            let seconds = started.elapsed().as_secs_f64();
            Ok(Evaluated {
                contender: contender.name.clone(),
                tasks,
                skipped: skipped.clone(),
                truncated,
                seconds,
            })
        })
        .collect()
}

fn one(
    settings: &Settings,
    contender: &Contender<'_>,
    planned: &[Planned],
    sandbox: Option<&Sandbox>,
    cache: &mut Cache,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(Vec<TaskResult>, usize)> {
    let chat = settings.chat.as_ref().map(|chat| (chat, contender.model.tokenizer()));
    if let Some((_, tokenizer)) = chat {
        let checked = tokenizer.check_chat_template();
        checked.map_err(|e| Error::Invalid(format!("{}: {e}", contender.name)))?;
    }
    let mut asks = Vec::new();
    let mut arguments = Vec::new();
    for (group, plan) in planned.iter().enumerate() {
        let prompts = plan.task.prompts(&plan.rows, plan.fewshot, chat)?;
        let of_plan = plan.arguments_of(&prompts, chat.is_some());
        for ((row, prompt), of_row) in plan.rows.iter().zip(&prompts).zip(&of_plan) {
            for (_, argument) in of_row {
                for attempt in 0..plan.attempts(&settings.attempts) {
                    let what = what(argument, plan, *row, attempt, &settings.attempts);
                    asks.push(Ask { group, context: prompt.clone(), what });
                }
            }
        }
        arguments.push(of_plan);
    }
    let total = asks.len();
    let mut report = |done| progress(Progress { contender: &contender.name, done, total });
    let answered = ask(contender.model, &contender.identity, &asks, cache, &mut report)?;
    let mut answers = answered.answers.into_iter();
    let mut results = Vec::new();
    for (plan, arguments) in planned.iter().zip(arguments) {
        let attempts = plan.attempts(&settings.attempts);
        let responses: Vec<Vec<Answer>> =
            arguments.iter().map(|a| answers.by_ref().take(a.len() * attempts).collect()).collect();
        let samples =
            judge::judge(&plan.task, &plan.rows, arguments, responses, &settings.attempts, sandbox)?;
        results.push(TaskResult { task: plan.task.clone(), num_fewshot: plan.fewshot.count, samples });
    }
    Ok((results, answered.truncated))
}

fn what(argument: &Argument, plan: &Planned, row: usize, attempt: usize, attempts: &Attempts) -> What {
    match argument {
        Argument::Continuation(continuation) => What::Score { continuation: continuation.clone() },
        Argument::Generation { until, max_tokens } => What::Generate {
            until: until.clone(),
            max_tokens: *max_tokens,
            draw: (plan.attempts(attempts) > 1).then(|| Draw {
                temperature: attempts.temperature,
                top_p: attempts.top_p,
                stream: stream(&plan.task.name, row, attempt, attempts.seed),
            }),
        },
    }
}

/// Names the random numbers of an attempt by what it is, not by when it is made.
fn stream(task: &str, row: usize, attempt: usize, seed: u64) -> u64 {
    let key = crate::rows::key(&[task, &row.to_string(), &attempt.to_string(), &seed.to_string()]);
    u64::from_str_radix(&key, 16).unwrap_or(seed)
}
