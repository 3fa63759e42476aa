//! `mixse run`

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use mixse_selfmoe::plan::{Change, Event, Plan, Reason, Status};
use serde::Serialize;

use crate::{
    args::RunArgs,
    config::{Config, Preset, load},
    output::{note, print},
    pipeline::{Pipeline, RunDirectory},
    pull::Cache,
};

pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let directory = directory(args);
    let config = config(args, &directory)?;
    RunDirectory::check(&directory, &config)?;
    let mut pipeline = Pipeline::new(config.clone())?;
    if args.list {
        let run = RunDirectory::look(&directory);
        return print(args.json.format(), &TaskList::new(&pipeline.plan(&run)?)?);
    }
    pipeline.open_base(&Cache::locate(args.cache.cache.as_deref())?)?;
    let run = RunDirectory::open(&directory, &config)?;
    let plan = pipeline.plan(&run)?;
    let mut observe = |event: Event<'_>| {
        tell(&event);
        if let Event::Finished(..) = event
            && let Err(e) = run.summarise(&plan)
        {
            note(format_args!("{e:#}"));
        }
    };
    match &args.task {
        Some(id) => plan.run_task(id, &mut observe)?,
        None => plan.run(&mut observe)?,
    }
    run.summarise(&plan)?;
    print(args.json.format(), &Done::new(&run, &plan, args.task.as_deref()))
}

fn directory(args: &RunArgs) -> PathBuf {
    let preset = args.preset.unwrap_or(Preset::Quick);
    args.out.clone().unwrap_or_else(|| Path::new("runs").join(preset.name()))
}

/// The configuration asked for; a directory that is a run already gives what was not said.
fn config(args: &RunArgs, directory: &Path) -> anyhow::Result<Config> {
    let adjust = |config: &mut Config| {
        if let Some(base) = &args.base {
            config.base.clone_from(base);
        }
        args.compute.adjust(config);
        for method in &args.methods {
            if !config.methods.contains(method) {
                config.methods.push(method.clone());
            }
        }
    };
    match RunDirectory::stored_config(directory)? {
        Some(_) if args.config.is_none() && args.preset.is_none() => {
            load(Some(&RunDirectory::config_file(directory)), None, adjust)
        }
        _ => load(args.config.as_deref(), args.preset, adjust),
    }
}

/// Says on standard error what a plan is doing.
pub(super) fn tell(event: &Event<'_>) {
    match event {
        Event::Skipped(id) => note(format_args!("{id}: done before")),
        Event::Started(id, reason) => note(format_args!("{id} …{}", why(reason))),
        Event::Finished(id, time) => note(format_args!("{id}: done in {:.1} s", time.as_secs_f64())),
        Event::Reused(id) => note(format_args!("{id}: made before by another run")),
        Event::Waiting(id, holder) => {
            note(format_args!("{id}: waiting for process {} on {}", holder.pid, holder.host));
        }
    }
}

fn why(reason: &Reason) -> String {
    match reason {
        Reason::New => String::new(),
        Reason::Inputs(changes) => {
            format!(" (again, because this changed: {})", few(&shown(changes)))
        }
        Reason::Elsewhere(changes) => {
            format!(" (done elsewhere, and refused here: {})", few(&shown(changes)))
        }
        Reason::Unversioned => " (done by an earlier version of mixse, and refused by this one)".to_owned(),
        Reason::Outputs(names) => {
            format!(" (again, because these are missing or changed: {})", few(names))
        }
        Reason::State(what) => format!(" (again, because its state file is damaged: {what})"),
    }
}

fn shown(changes: &[Change]) -> Vec<String> {
    changes.iter().map(Change::to_string).collect()
}

#[derive(Serialize)]
struct TaskList {
    tasks: Vec<TaskEntry>,
}

#[derive(Serialize)]
struct TaskEntry {
    id: String,
    state: &'static str,
    /// Who runs it, or why it is to run again.
    detail: String,
    /// The tasks that have to be done before.
    waits_for: Vec<String>,
}

impl TaskList {
    fn new(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let entry = |(id, status): (&str, Status)| {
            let (state, detail, waits_for) = match status {
                Status::Done => ("done", String::new(), vec![]),
                Status::Ready(reason) => ("ready", why(&reason).trim().to_owned(), vec![]),
                Status::Waiting(missing) => ("waiting", String::new(), missing),
                Status::Running(holder) => {
                    ("running", format!("in process {} on {}", holder.pid, holder.host), vec![])
                }
            };
            TaskEntry { id: id.to_owned(), state, detail, waits_for }
        };
        Ok(Self { tasks: plan.status()?.into_iter().map(entry).collect() })
    }
}

impl fmt::Display for TaskList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.tasks.iter().map(|task| task.id.len()).max().unwrap_or(0);
        for task in &self.tasks {
            let waits_for = match &*task.waits_for {
                [] => String::new(),
                ids => format!("for {}", few(ids)),
            };
            let line = format!("{:width$}  {:8} {}{waits_for}", task.id, task.state, task.detail);
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Names in a line that stays readable: the report waits for everything.
fn few(names: &[String]) -> String {
    match names {
        [first, second, rest @ ..] if rest.len() > 1 => format!("{first}, {second} and {} more", rest.len()),
        _ => names.join(", "),
    }
}

/// What a call did.
#[derive(Serialize)]
struct Done {
    run: PathBuf,
    /// The report, if the run is complete.
    report: Option<PathBuf>,
    /// The one task that was asked for.
    task: Option<String>,
    /// Seconds that the tasks took, whenever they ran.
    seconds: f64,
}

impl Done {
    fn new(run: &RunDirectory, plan: &Plan<'_>, task: Option<&str>) -> Self {
        let report = run.path().join("report.html");
        let states = plan.tasks().iter().filter_map(|task| plan.state(task.id()).ok().flatten());
        Self {
            run: run.path().to_owned(),
            report: (task.is_none() || task == Some("report")).then_some(report),
            task: task.map(str::to_owned),
            seconds: states.map(|state| state.seconds).sum(),
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.report, &self.task) {
            (Some(report), _) => {
                let time = humantime::format_duration(Duration::from_secs(self.seconds as u64));
                writeln!(f, "report: {} (the tasks took {time})", report.display())
            }
            (None, Some(task)) => writeln!(f, "{task}: done"),
            (None, None) => Ok(()),
        }
    }
}
