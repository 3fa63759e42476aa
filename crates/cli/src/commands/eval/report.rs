//! What `mixse eval` prints.

use std::{fmt, path::PathBuf};

use mixse_eval::{
    stats::mean,
    tasks::{compare::Comparison, run::Evaluated, summary},
};
use serde::Serialize;

/// Everything, for one or several draws of worked examples.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// A result for each model and draw.
    pub(super) models: Vec<ModelReport>,
    /// Mean and deviation over the draws, where there are several.
    pub(super) over_seeds: Vec<Spread>,
    /// Any two models, with the same worked examples.
    pub(super) comparisons: Vec<OfSeed>,
    pub(super) files: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
pub(super) struct ModelReport {
    model: String,
    /// Of the draw of worked examples.
    seed: u64,
    results: Vec<Line>,
    skipped: Vec<(String, String)>,
    truncated_prompts: usize,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Line {
    task: String,
    metric: String,
    filter: String,
    rows: usize,
    value: f64,
    stderr: Option<f64>,
}

/// A measure over several draws of worked examples.
#[derive(Debug, Serialize)]
pub(super) struct Spread {
    model: String,
    task: String,
    metric: String,
    filter: String,
    seeds: usize,
    mean: f64,
    /// Of the draws' values: how much the choice of examples moves the score.
    standard_deviation: f64,
}

/// A comparison and the draw of worked examples that it was made with.
#[derive(Debug, Serialize)]
pub(super) struct OfSeed {
    pub(super) seed: u64,
    #[serde(flatten)]
    pub(super) comparison: Comparison,
}

impl ModelReport {
    pub(super) fn new(evaluated: &Evaluated, seed: u64) -> Self {
        let tasks = evaluated.tasks.iter().map(summary::task).chain(summary::groups(&evaluated.tasks));
        let results = tasks
            .flat_map(|summary| {
                let (name, rows) = (summary.name, summary.rows);
                summary.measures.into_iter().map(move |measure| Line {
                    task: name.clone(),
                    metric: measure.metric,
                    filter: measure.filter,
                    rows,
                    value: measure.value.mean,
                    stderr: measure.value.stderr.filter(|e| e.is_finite()),
                })
            })
            .collect();
        Self {
            model: evaluated.contender.clone(),
            seed,
            results,
            skipped: evaluated.skipped.clone(),
            truncated_prompts: evaluated.truncated,
            seconds: (evaluated.seconds * 10.0).round() / 10.0,
        }
    }
}

/// What the draws of worked examples do to each measure of each model; nothing where there is one draw.
pub(super) fn over_seeds(models: &[ModelReport]) -> Vec<Spread> {
    let Some(first) = models.first() else { return Vec::new() };
    let one_draw = models.iter().filter(|m| m.seed == first.seed);
    let spread = |model: &ModelReport, line: &Line| {
        let same = |l: &&Line| (&l.task, &l.metric, &l.filter) == (&line.task, &line.metric, &line.filter);
        let of_model = models.iter().filter(|m| m.model == model.model);
        let values: Vec<f64> =
            of_model.filter_map(|m| m.results.iter().find(same)).map(|l| l.value).collect();
        let mean = mean(&values).filter(|_| values.len() > 1)?;
        Some(Spread {
            model: model.model.clone(),
            task: line.task.clone(),
            metric: line.metric.clone(),
            filter: line.filter.clone(),
            seeds: values.len(),
            mean: mean.mean,
            standard_deviation: mean.stderr? * (values.len() as f64).sqrt(),
        })
    };
    one_draw.flat_map(|model| model.results.iter().filter_map(move |line| spread(model, line))).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = !self.over_seeds.is_empty();
        for model in &self.models {
            write!(f, "{}", model.model)?;
            if several {
                write!(f, ", worked examples of seed {}", model.seed)?;
            }
            writeln!(f, " ({:.1} s)", model.seconds)?;
            for line in &model.results {
                write!(
                    f,
                    "  {:32} {:>5} rows  {},{}: {:.4}",
                    line.task, line.rows, line.metric, line.filter, line.value
                )?;
                match line.stderr {
                    Some(stderr) => writeln!(f, " ± {stderr:.4}")?,
                    None => writeln!(f)?,
                }
            }
            for (task, why) in &model.skipped {
                writeln!(f, "  {task}: left out: {why}")?;
            }
            if model.truncated_prompts > 0 {
                writeln!(
                    f,
                    "  {} prompts lost their beginning: too long for the model",
                    model.truncated_prompts
                )?;
            }
        }
        for s in &self.over_seeds {
            writeln!(
                f,
                "{}, {} draws: {} {},{}: mean {:.4}, deviation {:.4}",
                s.model, s.seeds, s.task, s.metric, s.filter, s.mean, s.standard_deviation
            )?;
        }
        for OfSeed { seed, comparison: c } in &self.comparisons {
            write!(
                f,
                "{} {},{}: {} − {} = {:+.4} ({:+.4} to {:+.4}; {} p = {:.4}, {:.4} after Holm's correction, {} rows",
                c.task,
                c.metric,
                c.filter,
                c.first,
                c.second,
                c.difference.difference,
                c.difference.interval.low,
                c.difference.interval.high,
                c.difference.test.name(),
                c.difference.p,
                c.adjusted,
                c.rows
            )?;
            writeln!(f, "{})", if several { format!(", seed {seed}") } else { String::new() })?;
        }
        Ok(())
    }
}
