//! `mixse study`: many runs, one set of tables.

mod definition;
mod growth;

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::Context;
use clap::Args;
use mixse_eval::study::{
    Figure, Findings, RunData, RunRouting, csv, figures, items_csv, latex, page, summarise,
};
use mixse_selfmoe::plan::{Event, Plan, Status, Store};
use serde::Serialize;

use crate::{
    args::{CacheFlag, ComputeFlags, JsonFlag},
    commands::run::tell,
    config::Config,
    output::{note, print, usage_error},
    output_directory,
    pipeline::{Models, Pipeline, RunDirectory, RunPlace, write},
    pull::Cache,
};
use definition::{Cell, Study, base_faults, ready_made_names};
use growth::Growth;

/// The study in its directory, written before anything else.
const DEFINITION: &str = "study.toml";

/// Compare methods, settings and bases over several seeds, with intervals and tests.
///
/// A study is a set of runs (one for every base, setting and seed) that share what they have in common: the same data, expert
/// or evaluation is made once. It can be stopped at any moment and continued by the same call; methods, settings and seeds that
/// are added later are computed alone.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct StudyArgs {
    /// A ready-made study or a TOML file.
    #[arg(value_name = "STUDY")]
    study: String,
    /// Study directory [default: studies/STUDY].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Base models instead of the study's, separated by commas.
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    base: Vec<String>,
    /// Seeds instead of the study's, separated by commas.
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Evaluate this as well; repeatable.
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Another value for a key of the runs' configuration; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    values: Vec<String>,
    /// For a study of the number of experts (`experts`): every choice of so many domains instead of the first ones, which
    /// gives the means over all orders.
    #[arg(long)]
    every_order: bool,
    /// Print the study as TOML and run nothing.
    #[arg(long)]
    show: bool,
    /// List the runs and how far they are, and run nothing.
    #[arg(long, conflicts_with = "show")]
    list: bool,
    #[command(flatten)]
    compute: ComputeFlags,
    #[command(flatten)]
    cache: CacheFlag,
    #[command(flatten)]
    json: JsonFlag,
}

fn after_help() -> String {
    format!(
        "\
Ready-made studies:
  {}

Examples:
  mixse study main --out studies/main             the paper's main comparison, three seeds
  mixse study main --out studies/main --list      its runs and how far they are
  mixse study main --seeds 0 --set generation.tasks=40 --set evaluation.items=20   smaller
  mixse study experts --every-order               one to four experts, every choice of domains
  mixse study router --show > my.toml             a file to change
  mixse study my.toml --out studies/mine          own study

Results in the directory: study.html, study.csv, items.csv, study.json, study.tex, figures as SVG and PNG, and the runs themselves.",
        ready_made_names()
    )
}

pub(super) fn run(args: &StudyArgs) -> anyhow::Result<()> {
    let (mut study, text) = Study::find(&args.study)?;
    let mut faults = adjust(&mut study, args);
    if args.show {
        refuse(&faults)?;
        // The file's own comments are kept where nothing was changed.
        let changed = study != Study::find(&args.study)?.0;
        let text = if changed { toml::to_string(&study)? } else { text };
        return print(args.json.format(), &Shown { study: text });
    }
    let (mut cells, found) = study.cells();
    cells.iter_mut().for_each(|cell| args.compute.adjust(&mut cell.config));
    faults.extend(found);
    let cache = Cache::locate(args.cache.cache.as_deref())?;
    faults.extend(base_faults(&cells, &cache));
    refuse(&faults)?;
    let directory = args.out.clone().unwrap_or_else(|| {
        let name = Path::new(&args.study).file_stem().unwrap_or_default();
        Path::new("studies").join(name)
    });
    if !args.list {
        let is_ours = directory.join(DEFINITION).is_file();
        output_directory::check_resumable(&directory, &[Path::new(&args.study)], is_ours, false)?;
    }
    for cell in &cells {
        RunDirectory::check(&directory.join(&cell.path), &cell.config)?;
    }
    let mut bases = Bases { cache, opened: HashMap::new() };
    let progress = Comparison { study: &study, directory: &directory, cells: &cells };
    if args.list {
        return print(args.json.format(), &progress.list(&mut bases)?);
    }
    let definition = directory.join(DEFINITION);
    // A file that says the same already keeps its comments: it may be the one that this call was given.
    let is_there =
        definition.to_str().and_then(|path| Study::find(path).ok()).is_some_and(|(there, _)| there == study);
    if !is_there {
        write(&definition, toml::to_string(&study)?.as_bytes())?;
    }
    for (index, cell) in cells.iter().enumerate() {
        note(format_args!("run {} of {}: {}", index + 1, cells.len(), cell.path.display()));
        progress.run_cell(cell, &mut bases)?;
        progress.write_results(index + 1, &mut bases)?;
    }
    print(args.json.format(), &Done { page: directory.join("study.html"), runs: cells.len() })
}

fn refuse(faults: &[String]) -> anyhow::Result<()> {
    match faults {
        [] => Ok(()),
        _ => Err(usage_error(format!("wrong study, nothing was run:\n  {}", faults.join("\n  ")))),
    }
}

/// Lays the arguments over the study; returns what is wrong with them.
fn adjust(study: &mut Study, args: &StudyArgs) -> Vec<String> {
    if !args.base.is_empty() {
        study.bases.clone_from(&args.base);
    }
    if !args.seeds.is_empty() {
        study.seeds.clone_from(&args.seeds);
    }
    for method in &args.methods {
        let lists = study.settings.iter_mut().filter_map(|setting| setting.methods.as_mut());
        for list in lists.chain([&mut study.methods]) {
            if !list.contains(method) {
                list.push(method.clone());
            }
        }
    }
    let mut faults: Vec<String> = args.values.iter().filter_map(|value| study.set(value).err()).collect();
    if args.every_order {
        match &mut study.growth {
            Some(growth) => *growth = Growth::EveryOrder,
            None => faults.push("--every-order: is for studies with `growth`, such as experts".into()),
        }
    }
    faults
}

/// Bases that have been opened; runs of one base share it.
struct Bases {
    cache: Cache,
    opened: HashMap<String, Rc<Models>>,
}

impl Bases {
    fn pipeline(&mut self, config: &Config) -> anyhow::Result<Pipeline> {
        let mut pipeline = Pipeline::new(config.clone())?;
        pipeline.share_base(self.open(config)?);
        Ok(pipeline)
    }

    fn open(&mut self, config: &Config) -> anyhow::Result<Rc<Models>> {
        let key = format!("{} {:?} {:?} {}", config.base, config.precision, config.device, config.portable);
        if let Some(models) = self.opened.get(&key) {
            return Ok(models.clone());
        }
        let models = Rc::new(Models::open(config, &self.cache)?);
        self.opened.insert(key, models.clone());
        Ok(models)
    }
}

/// A study in its directory.
struct Comparison<'a> {
    study: &'a Study,
    directory: &'a Path,
    cells: &'a [Cell],
}

impl Comparison<'_> {
    fn store(&self) -> Store {
        Store::new(self.directory.join("store"))
    }

    fn run_cell(&self, cell: &Cell, bases: &mut Bases) -> anyhow::Result<()> {
        let pipeline = bases.pipeline(&cell.config)?;
        let run = RunDirectory::open(&self.directory.join(&cell.path), &cell.config)?;
        let plan = pipeline.plan(&run)?.with_store(self.store());
        plan.run(&mut |event| {
            if !matches!(event, Event::Skipped(_)) {
                tell(&event);
            }
        })?;
        run.summarise(&plan)
    }

    fn list(&self, bases: &mut Bases) -> anyhow::Result<List> {
        let mut runs = Vec::new();
        for cell in self.cells {
            let path = self.directory.join(&cell.path);
            let (mut done, mut all) = (0, 0);
            if path.exists() {
                let pipeline = bases.pipeline(&cell.config)?;
                let run = RunDirectory::look(&path);
                let plan: Plan<'_> = pipeline.plan(&run)?;
                let status = plan.status()?;
                all = status.len();
                done = status.iter().filter(|(_, status)| *status == Status::Done).count();
            }
            runs.push(ListedRun { run: cell.path.clone(), tasks_done: done, tasks: all });
        }
        Ok(List { runs })
    }

    /// Writes the tables of the first `finished` runs.
    fn write_results(&self, finished: usize, bases: &mut Bases) -> anyhow::Result<()> {
        let findings = self.findings(finished, bases)?;
        let summary = summarise(&findings);
        let drawn = figures(&findings, &summary);
        let at = |name: &str| self.directory.join(name);
        forget_figures(&at("figures"), &drawn)?;
        for figure in &drawn {
            let file = |ending: &str| at("figures").join(format!("{}.{ending}", figure.name));
            write(&file("svg"), figure.svg.as_bytes())?;
            write(&file("png"), &figure.png()?)?;
        }
        write(&at("items.csv"), items_csv(&findings).as_bytes())?;
        write(&at("study.csv"), csv(&findings, &summary).as_bytes())?;
        write(&at("study.tex"), latex(&findings, &summary).as_bytes())?;
        let json = serde_json::json!({ "study": self.study, "summary": summary, "findings": findings });
        write(&at("study.json"), &serde_json::to_vec(&json)?)?;
        let configuration = toml::to_string(self.study)?;
        write(&at("study.html"), page(&findings, &summary, &drawn, &configuration)?.as_bytes())
    }

    fn findings(&self, finished: usize, bases: &mut Bases) -> anyhow::Result<Findings> {
        let mut findings = Findings {
            title: self.study.title.clone(),
            about: self.study.about.clone(),
            domains: Vec::new(),
            runs: (finished, self.cells.len()),
            answers: Vec::new(),
            routing: Vec::new(),
            data: Vec::new(),
            notes: Vec::new(),
        };
        for cell in &self.cells[..finished] {
            let pipeline = bases.pipeline(&cell.config)?;
            let run = self.directory.join(&cell.path);
            let (group, seed) = (cell.group.clone(), cell.config.seed);
            for name in pipeline.checked_names() {
                if !findings.domains.contains(&name) {
                    findings.domains.push(name);
                }
            }
            let place = RunPlace { group: &cell.group, path: &cell.path };
            findings.answers.extend(pipeline.answers(&run, &place)?);
            if let Some(rows) = pipeline.routing_rows(&run)? {
                let experts = pipeline.expert_names();
                findings.routing.push(RunRouting { group: group.clone(), seed, experts, rows });
            }
            findings.data.push(RunData { group, seed, rows: pipeline.trained_rows(&run)? });
        }
        Ok(findings)
    }
}

/// Removes the figures of an earlier call that this one does not draw, so that none is taken for its own.
fn forget_figures(directory: &Path, drawn: &[Figure]) -> anyhow::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let told = || format!("cannot remove old figures from {}", directory.display());
    for entry in fs::read_dir(directory).with_context(told)? {
        let path = entry.with_context(told)?.path();
        let is_figure = path.extension().is_some_and(|ending| ending == "svg" || ending == "png");
        let name = path.file_stem().and_then(|name| name.to_str());
        if is_figure && !drawn.iter().any(|figure| name == Some(&figure.name)) {
            fs::remove_file(&path).with_context(told)?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Shown {
    study: String,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.study)
    }
}

#[derive(Serialize)]
struct List {
    runs: Vec<ListedRun>,
}

#[derive(Serialize)]
struct ListedRun {
    run: PathBuf,
    tasks_done: usize,
    /// 0: not begun.
    tasks: usize,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runs.iter().try_for_each(|run| match run.tasks {
            0 => writeln!(f, "{:48} not begun", run.run.display()),
            tasks => writeln!(f, "{:48} {} of {tasks} tasks", run.run.display(), run.tasks_done),
        })
    }
}

#[derive(Serialize)]
struct Done {
    page: PathBuf,
    runs: usize,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "study: {} ({} runs)", self.page.display(), self.runs)
    }
}
