//! The report's data, from the files of a run, finished or not.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use mixse_eval::{
    checks::Row,
    report::{
        Comparison, Count, Curve, Fact, FileLink, Funnel, Method as MethodRow, MethodKind, ReportData,
        TaskTime, render,
    },
    sandbox::Python,
    stats::compare_paired,
};
use mixse_files::files_below;
use mixse_selfmoe::{
    jsonl,
    plan::{State, Work},
    quality::DomainQuality,
    record::SyntheticRow,
    select,
};
use serde::de::DeserializeOwned;

use super::{
    Outline, PEAK_MEMORY, Pipeline, RunDirectory, evaluate::Evaluated, files, quality::benchmark_overlaps,
    routing::RoutingFile, train::LossFile, write, write_json,
};
use crate::{config::Method, machine::Machine, output::bytes};

/// A run's page, made from its files as they are now.
pub(crate) struct Remade {
    /// The page.
    pub(crate) html: String,
    /// What the run does not have yet.
    pub(crate) missing: Vec<String>,
}

impl Pipeline {
    pub(super) fn write_report(&self, run: &RunDirectory, work: &Work<'_>) -> anyhow::Result<()> {
        // Everything is there: the task depends on all others.
        let (data, _) = self.outline().report_data(run, machine_here(), None)?;
        write_json(&work.output("report.json")?, &data)?;
        write(&work.output("report.html")?, render(&data)?.as_bytes())
    }
}

impl Outline<'_> {
    /// The page of a run, finished or not. Neither the model nor its tokenizer is needed.
    ///
    /// `bench_data`: a directory of benchmark files in which the rows' text is looked for.
    pub(crate) fn remake_report(
        self,
        run: &RunDirectory,
        bench_data: Option<&Path>,
    ) -> anyhow::Result<Remade> {
        let (mut data, missing) = self.report_data(run, machine_of(run)?, bench_data)?;
        if !missing.is_empty() {
            data.notes.insert(
                0,
                format!(
                    "This run is not finished. Not there when this page was made: {}.",
                    missing.join("; ")
                ),
            );
        }
        Ok(Remade { html: render(&data)?, missing })
    }

    /// The report's data and what is missing in it.
    fn report_data(
        self,
        run: &RunDirectory,
        machine: Vec<Fact>,
        bench_data: Option<&Path>,
    ) -> anyhow::Result<(ReportData, Vec<String>)> {
        let mut missing = Vec::new();
        let mut notes = Vec::new();
        let funnels = self.funnels(run.path(), &mut missing)?;
        let quality = self.quality(run.path(), bench_data, &mut missing)?;
        let curves = self.curves(run.path(), &mut missing)?;
        let results = self.results(run.path(), &mut notes, &mut missing)?;
        let routing: Option<RoutingFile> = read_json(&run.path().join(files::routing()))?;
        if routing.is_none() && self.evaluates_mixture() {
            missing.push("the routing".into());
        }
        let (routing, samples) = routing.map_or((None, Vec::new()), |r| (Some(r.routing), r.samples));
        let tasks = states(run.path())?;
        let data = ReportData {
            run: run.path().display().to_string(),
            base: self.config.base.clone(),
            made: humantime::format_rfc3339_seconds(SystemTime::now())
                .to_string()
                .replace('T', " ")
                .replace('Z', " UTC"),
            domains: self.domains.iter().map(|domain| domain.name().to_owned()).collect(),
            experts: self.names(),
            comparison: self.comparison(&results),
            methods: results.iter().map(|(row, answers)| method_row(row, answers)).collect(),
            routing,
            samples,
            curves,
            funnels,
            quality,
            totals: totals(&tasks),
            tasks: tasks.into_iter().map(task_time).collect(),
            machine,
            configuration: run.config_text()?,
            files: result_files(run.path())?,
            notes,
        };
        Ok((data, missing))
    }

    fn results(
        self,
        run: &Path,
        notes: &mut Vec<String>,
        missing: &mut Vec<String>,
    ) -> anyhow::Result<Vec<(Evaluated, DomainRows)>> {
        let mut results = Vec::new();
        for method in self.evaluated() {
            if !self.is_evaluated(run, &method) {
                missing.push(format!("evaluation of {}", method.title()));
                continue;
            }
            let mut rows = DomainRows::new();
            for domain in self.domains {
                let found = self.check_rows(run, &method, domain)?;
                let skipped = self.check_items(domain).len().saturating_sub(found.len());
                if skipped > 0 && method.kind() == MethodKind::Base {
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
    fn comparison(self, results: &[(Evaluated, DomainRows)]) -> Option<Comparison> {
        let scores = |wanted: MethodKind| -> Option<Vec<f64>> {
            let answers = &results.iter().find(|(row, _)| row.kind() == wanted)?.1;
            Some(answers.values().flatten().map(|row| f64::from(u8::from(row.correct))).collect())
        };
        let mixture = scores(MethodKind::Mixture)?;
        let found = compare_paired(&mixture, &scores(MethodKind::Base)?)?;
        let interval = found.interval;
        Some(Comparison {
            difference: found.difference,
            low: interval.low,
            high: interval.high,
            p: found.p,
            mid_p: found.mid_p,
        })
    }

    fn curves(self, run: &Path, missing: &mut Vec<String>) -> anyhow::Result<Vec<Curve>> {
        let mut trainings: Vec<(String, String)> = match self.uses_data() {
            true => self.names().into_iter().map(|name| (format!("expert {name}"), name)).collect(),
            false => Vec::new(),
        };
        for method in &self.config.methods {
            let id = method.id();
            match method {
                Method::Mixture(values) if values.is_empty() => {
                    trainings.push(("router".into(), "router".into()))
                }
                Method::Mixture(_) => trainings.push((format!("router of {method}"), id)),
                Method::InstanceMerging | Method::Joint => trainings.push((method.to_string(), id)),
                _ => {}
            }
        }
        let mut curves = Vec::new();
        for (name, training) in trainings {
            match read_json::<LossFile>(&run.join(files::losses(&training)))? {
                // A router in closed form has no losses.
                Some(LossFile::Steps(losses)) if losses.is_empty() => {}
                Some(found) => curves.push(curve(name, found)),
                None => missing.push(format!("training of {name}")),
            }
        }
        Ok(curves)
    }

    fn quality(
        self,
        run: &Path,
        bench_data: Option<&Path>,
        missing: &mut Vec<String>,
    ) -> anyhow::Result<Vec<DomainQuality>> {
        let mut all = Vec::new();
        if !self.uses_data() {
            return Ok(all);
        }
        for domain in self.names() {
            let Some(mut found) = read_json::<DomainQuality>(&run.join(files::quality(&domain)))? else {
                missing.push(format!("quality of {domain}"));
                continue;
            };
            if let Some(directory) = bench_data {
                let rows: Vec<SyntheticRow> = jsonl::read(&run.join(files::rows(&domain)))?;
                found.overlaps.extend(benchmark_overlaps(&rows, directory)?);
            }
            all.push(found);
        }
        Ok(all)
    }

    fn funnels(self, run: &Path, missing: &mut Vec<String>) -> anyhow::Result<Vec<Funnel>> {
        let mut funnels = Vec::new();
        if !self.uses_data() {
            return Ok(funnels);
        }
        for domain in self.names() {
            match read_json::<select::Funnel>(&run.join(files::funnel(&domain)))? {
                Some(found) => funnels.push(funnel(domain, &found)),
                None => missing.push(format!("data of {domain}")),
            }
        }
        Ok(funnels)
    }
}

fn curve(name: String, found: LossFile) -> Curve {
    let all = |losses: Vec<f32>| losses.into_iter().map(f64::from).collect();
    match found {
        LossFile::Steps(losses) => Curve { name, losses: all(losses), ..Curve::default() },
        LossFile::Validated { losses, validation, kept_step } => Curve {
            name,
            losses: all(losses),
            validation: validation.iter().map(|look| (look.step, f64::from(look.loss))).collect(),
            kept_step: Some(kept_step),
        },
    }
}

fn funnel(domain: String, found: &select::Funnel) -> Funnel {
    Funnel {
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
    }
}

/// Rows of a method by domain.
type DomainRows = BTreeMap<String, Vec<Row>>;

fn method_row(method: &Evaluated, rows: &DomainRows) -> MethodRow {
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
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut states = Vec::new();
    for file in files_below(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        states.extend(read_json::<State>(&directory.join(file))?);
    }
    states.sort_by(|a, b| a.started.total_cmp(&b.started));
    Ok(states)
}

fn task_time(state: State) -> TaskTime {
    TaskTime { id: state.task, host: state.host, seconds: state.seconds, figures: state.figures }
}

fn totals(tasks: &[State]) -> Vec<Fact> {
    if tasks.is_empty() {
        return Vec::new();
    }
    let of = |kinds: &[&str]| -> Vec<&State> {
        tasks.iter().filter(|task| kinds.iter().any(|kind| task.task.starts_with(kind))).collect()
    };
    let speed = |kinds: &[&str]| {
        let tasks: Vec<&State> = of(kinds).into_iter().filter(|task| !task.reused).collect();
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
        Fact::new("expert training", speed(&["expert/", "baseline/instance-merging"])),
        Fact::new("router training", speed(&["router"])),
        Fact::new("evaluation", speed(&["eval/"])),
    ];
    let peak = tasks.iter().filter_map(|task| task.figures.get(PEAK_MEMORY).copied()).reduce(f64::max);
    totals.extend(peak.map(|peak| Fact::new("peak memory", bytes(peak as u64))));
    totals
}

/// This machine, and this program.
fn machine_here() -> Vec<Fact> {
    let mut facts = machine_facts(&Machine::detect());
    facts.extend(Python::find().ok().map(|python| Fact::new("python", python.version)));
    facts.push(Fact::new("mixse", env!("CARGO_PKG_VERSION")));
    facts
}

/// The machine that finished the last task of a run; nothing before the first one.
fn machine_of(run: &RunDirectory) -> anyhow::Result<Vec<Fact>> {
    let Some(summary) = run.summary()? else { return Ok(Vec::new()) };
    let mut facts = machine_facts(&summary.machine);
    facts.push(Fact::new("mixse", summary.version));
    Ok(facts)
}

fn machine_facts(machine: &Machine) -> Vec<Fact> {
    let mut facts = vec![
        Fact::new("processor", format!("{}, {} threads", machine.processor, machine.cores)),
        Fact::new("features", machine.features.join(" ")),
        Fact::new("system", format!("{}, {}", machine.system, machine.architecture)),
    ];
    facts.extend(machine.memory.map(|memory| Fact::new("memory", bytes(memory))));
    facts
}

/// The files that a reader may want, with what is in them.
fn result_files(run: &Path) -> anyhow::Result<Vec<FileLink>> {
    let what = |path: &str| match path {
        "mixse.toml" => Some("the full configuration"),
        _ if path.ends_with(".rejected.jsonl") => Some("rejected tasks and responses with the reason"),
        _ if path.starts_with("data/shards/") => None,
        _ if path.starts_with("data/") && path.ends_with(".jsonl") => Some("accepted rows"),
        _ if path.ends_with(".quality.json") => {
            Some("how varied the rows are, and overlap with evaluation files")
        }
        _ if path.ends_with("adapter_model.safetensors") => Some("an expert's weights, in PEFT's format"),
        _ if path.starts_with("router/") && path.ends_with(".safetensors") => Some("the router's weights"),
        "eval/routing.json" => Some("routing and samples"),
        _ if path.starts_with("baselines/") && path.ends_with("/router.safetensors") => {
            Some("a baseline's router")
        }
        _ if path.ends_with("merge.json") => Some("how experts were merged"),
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

/// A JSON file, if it is there.
fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        _ => super::read_json(path).map(Some),
    }
}
