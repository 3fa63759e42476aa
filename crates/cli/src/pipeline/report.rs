//! The report's data, from the files of a run.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use mixse_eval::{
    checks::Row,
    report::{
        Comparison, Count, Curve, Fact, FileLink, Funnel, Method as MethodRow, ReportData, TaskTime, render,
    },
    sandbox::Python,
    stats::paired_bootstrap,
};
use mixse_selfmoe::{
    plan::{State, Work, files::files_below},
    select,
};
use serde::de::DeserializeOwned;

use super::{PEAK_MEMORY, Pipeline, RunDirectory, evaluate::Method, files};
use crate::{machine::Machine, output::bytes};

/// Resamples of the paired bootstrap.
const RESAMPLES: usize = 10_000;

impl Pipeline {
    pub(super) fn write_report(&self, run: &RunDirectory, work: &Work<'_>) -> anyhow::Result<()> {
        let data = self.report_data(run)?;
        fs::write(work.output("report.json")?, serde_json::to_vec(&data)?)?;
        Ok(fs::write(work.output("report.html")?, render(&data)?)?)
    }

    fn report_data(&self, run: &RunDirectory) -> anyhow::Result<ReportData> {
        let routing = self.read_routing(run.path())?;
        let tasks = states(run.path())?;
        let mut notes = Vec::new();
        let results = self.results(run.path(), &mut notes)?;
        Ok(ReportData {
            run: run.path().display().to_string(),
            base: self.models.name().to_owned(),
            made: humantime::format_rfc3339_seconds(SystemTime::now())
                .to_string()
                .replace('T', " ")
                .replace('Z', " UTC"),
            domains: self.names(),
            experts: self.names(),
            comparison: self.comparison(&results),
            methods: results.iter().map(|(method, rows)| method_row(method, rows)).collect(),
            routing: Some(routing.routing),
            samples: routing.samples,
            curves: self.curves(run.path())?,
            funnels: self.funnels(run.path())?,
            totals: totals(&tasks),
            tasks: tasks.into_iter().map(task_time).collect(),
            machine: machine_facts(),
            configuration: run.config_text()?,
            files: result_files(run.path())?,
            notes,
        })
    }

    fn results(&self, run: &Path, notes: &mut Vec<String>) -> anyhow::Result<Vec<(Method, DomainRows)>> {
        let mut results = Vec::new();
        for method in self.methods() {
            let mut rows = DomainRows::new();
            for domain in &self.domains {
                let found = self.check_rows(run, &method, domain)?;
                let skipped = self.check_items(domain).len().saturating_sub(found.len());
                if skipped > 0 && method == Method::Base {
                    notes.push(format!(
                        "{skipped} items of {} were skipped, because generated code could not be run: see `mixse doctor`.",
                        domain.name()
                    ));
                }
                rows.insert(domain.name().to_owned(), found);
            }
            results.push((method, rows));
        }
        Ok(results)
    }

    /// The mixture against the base, item by item.
    fn comparison(&self, results: &[(Method, DomainRows)]) -> Option<Comparison> {
        let scores = |wanted: &Method| -> Option<Vec<f64>> {
            let rows = &results.iter().find(|(method, _)| method == wanted)?.1;
            Some(rows.values().flatten().map(|row| f64::from(u8::from(row.correct))).collect())
        };
        let found = paired_bootstrap(
            &scores(&Method::Mixture)?,
            &scores(&Method::Base)?,
            RESAMPLES,
            self.config.seed,
        )?;
        let interval = found.interval;
        Some(Comparison { difference: found.difference, low: interval.low, high: interval.high, p: found.p })
    }

    fn curves(&self, run: &Path) -> anyhow::Result<Vec<Curve>> {
        let mut curves = Vec::new();
        for name in self.names() {
            let losses = read_json(&run.join(files::expert_losses(&name)))?;
            curves.push(Curve { name: format!("expert {name}"), losses });
        }
        curves.push(Curve { name: "router".into(), losses: read_json(&run.join(files::router_losses()))? });
        Ok(curves)
    }

    fn funnels(&self, run: &Path) -> anyhow::Result<Vec<Funnel>> {
        let funnel = |domain: String| {
            let found: select::Funnel = read_json(&run.join(files::funnel(&domain)))?;
            Ok(Funnel {
                domain,
                prompts: found.asked as usize,
                parsed: found.parsed as usize,
                answered: found.tasks as usize,
                accepted: found.accepted as usize,
                rejected: found
                    .rejected
                    .iter()
                    .map(|(reason, &count)| (reason.to_string(), count as usize))
                    .collect(),
            })
        };
        self.names().into_iter().map(funnel).collect()
    }
}

/// Rows of a method by domain.
type DomainRows = BTreeMap<String, Vec<Row>>;

fn method_row(method: &Method, rows: &DomainRows) -> MethodRow {
    let count =
        |rows: &Vec<Row>| Count { correct: rows.iter().filter(|row| row.correct).count(), total: rows.len() };
    MethodRow {
        name: method.title(),
        kind: method.kind(),
        counts: rows
            .iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(domain, rows)| (domain.clone(), count(rows)))
            .collect(),
    }
}

/// States of all tasks that are done, in the order in which they started.
fn states(run: &Path) -> anyhow::Result<Vec<State>> {
    let directory = run.join("tasks/state");
    let mut states: Vec<State> = files_below(&directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .iter()
        .map(|file| read_json(&directory.join(file)))
        .collect::<anyhow::Result<_>>()?;
    states.sort_by(|a, b| a.started.total_cmp(&b.started));
    Ok(states)
}

fn task_time(state: State) -> TaskTime {
    TaskTime { id: state.task, host: state.host, seconds: state.seconds, figures: state.figures }
}

fn totals(tasks: &[State]) -> Vec<Fact> {
    let of = |kinds: &[&str]| -> Vec<&State> {
        tasks.iter().filter(|task| kinds.iter().any(|kind| task.task.starts_with(kind))).collect()
    };
    let speed = |kinds: &[&str]| {
        let tasks = of(kinds);
        let tokens: f64 = tasks.iter().filter_map(|task| task.figures.get("tokens")).sum();
        let seconds: f64 = tasks.iter().map(|task| task.seconds).sum();
        format!("{:.0} tokens/s", if seconds > 0.0 { tokens / seconds } else { 0.0 })
    };
    let seconds: f64 = tasks.iter().map(|task| task.seconds).sum();
    let mut totals = vec![
        Fact::new(
            "time of all tasks",
            humantime::format_duration(std::time::Duration::from_secs(seconds as u64)).to_string(),
        ),
        Fact::new("generation", speed(&["brainstorm/", "respond/"])),
        Fact::new("expert training", speed(&["expert/"])),
        Fact::new("router training", speed(&["router"])),
        Fact::new("evaluation", speed(&["eval/"])),
    ];
    let peak = tasks.iter().filter_map(|task| task.figures.get(PEAK_MEMORY).copied()).reduce(f64::max);
    totals.extend(peak.map(|peak| Fact::new("peak memory", bytes(peak as u64))));
    totals
}

fn machine_facts() -> Vec<Fact> {
    let machine = Machine::detect();
    let mut facts = vec![
        Fact::new("processor", format!("{}, {} threads", machine.processor, machine.cores)),
        Fact::new("features", machine.features.join(" ")),
        Fact::new("system", format!("{}, {}", machine.system, machine.architecture)),
    ];
    facts.extend(machine.memory.map(|memory| Fact::new("memory", bytes(memory))));
    facts.extend(Python::find().ok().map(|python| Fact::new("python", python.version)));
    facts.push(Fact::new("mixse", env!("CARGO_PKG_VERSION")));
    facts
}

/// The files that a reader may want, with what is in them.
fn result_files(run: &Path) -> anyhow::Result<Vec<FileLink>> {
    let what = |path: &str| match path {
        "mixse.toml" => Some("the full configuration"),
        _ if path.ends_with(".rejected.jsonl") => Some("rejected tasks and responses with the reason"),
        _ if path.starts_with("data/shards/") => None,
        _ if path.starts_with("data/") && path.ends_with(".jsonl") => Some("accepted rows"),
        _ if path.ends_with("adapter_model.safetensors") => Some("an expert's weights, in PEFT's format"),
        _ if path.starts_with("router/") && path.ends_with(".safetensors") => Some("the router's weights"),
        "eval/routing.json" => Some("routing and samples"),
        _ if path.starts_with("eval/mixture/") => Some("the mixture's responses"),
        _ => None,
    };
    let mut links = Vec::new();
    for file in files_below(run)? {
        let path = PathBuf::from(&file).display().to_string();
        if let Some(what) = what(&path) {
            links.push(FileLink { bytes: fs::metadata(run.join(&file))?.len(), path, what: what.to_owned() });
        }
    }
    Ok(links)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}
