//! `mixse eval`: benchmarks scored as lm-evaluation-harness scores them.

use std::{fmt, path::PathBuf, time::SystemTime};

use clap::Args;
use mixse_eval::{
    sandbox::{Limits, Policy, Sandbox},
    tasks::{
        compare::{Comparison, compare},
        output::{RunInfo, write},
        run::{Attempts, Contender, Evaluated, Limit, Settings, evaluate},
        summary,
    },
};
use mixse_model::mixture::Mixture;
use serde::Serialize;

use super::opened::{ExpertFlags, ModelFlags, single_experts};
use crate::{
    args::JsonFlag,
    output::{note, print},
    pipeline::sandbox_launcher,
};

/// Score benchmarks as lm-evaluation-harness does, with its result and sample files.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse eval --bench-data DIR --tasks mmlu,piqa --limit 100
  mixse eval --model runs/quick --with-base --bench-data DIR --tasks gsm8k_cot,bbh --out results
  mixse eval --model DIR --precision f32 --bench-data DIR --tasks humaneval --log-samples --out results
  mixse eval --tasks mine.toml --out results")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    experts: ExpertFlags,
    /// Tasks, groups (`mmlu`, `bbh`) or paths of own task files (`….toml`), separated by commas.
    #[arg(long, value_delimiter = ',', required = true, value_name = "TASK")]
    tasks: Vec<String>,
    /// Directory of the benchmarks' files.
    #[arg(long, value_name = "DIR")]
    bench_data: Option<PathBuf>,
    /// Only so many rows of each task, from its beginning.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Worked examples [default: each task's own].
    #[arg(long, value_name = "N")]
    num_fewshot: Option<usize>,
    /// Of the draw of worked examples.
    #[arg(long, default_value_t = 1234)]
    seed: u64,
    /// Attempts at each item of tasks whose code is run; above 1 they are drawn and pass@1 and pass@N estimated.
    #[arg(long, value_name = "N", default_value_t = 1)]
    attempts: usize,
    /// Score the base without experts as well, and compare.
    #[arg(long)]
    with_base: bool,
    /// Score every expert alone as well, and compare.
    #[arg(long)]
    with_experts: bool,
    /// Where the harness's files go; answers are kept there too, so that a second call continues.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write every sample.
    #[arg(long, requires = "out")]
    log_samples: bool,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Serialize)]
struct Report {
    models: Vec<ModelReport>,
    comparisons: Vec<Comparison>,
    files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct ModelReport {
    model: String,
    results: Vec<Line>,
    skipped: Vec<(String, String)>,
    truncated_prompts: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct Line {
    task: String,
    metric: String,
    filter: String,
    rows: usize,
    value: f64,
    stderr: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for model in &self.models {
            writeln!(f, "{} ({:.1} s)", model.model, model.seconds)?;
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
        for c in &self.comparisons {
            writeln!(
                f,
                "{} {},{}: {} − {} = {:+.4} (p = {:.4} after Holm's correction, {} rows)",
                c.task, c.metric, c.filter, c.first, c.second, c.bootstrap.difference, c.adjusted, c.rows
            )?;
        }
        Ok(())
    }
}

pub(super) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let settings = Settings {
        tasks: args.tasks.clone(),
        bench_data: args.bench_data.clone(),
        num_fewshot: args.num_fewshot,
        fewshot_seed: args.seed,
        limit: args.limit.map_or(Limit::All, Limit::Rows),
        attempts: Attempts {
            count: args.attempts.max(1),
            pass_at: if args.attempts > 1 { vec![1, args.attempts] } else { vec![1] },
            ..Attempts::default()
        },
        cache: args.out.as_ref().map(|out| out.join("cache.jsonl")),
        ..Settings::default()
    };
    let opened = args.model.open(&args.experts)?;
    let singles = match &opened.mixture {
        Some(mixture) if args.with_experts => single_experts(&mixture.experts),
        _ => Vec::new(),
    };
    let mut variants: Vec<(String, Option<&Mixture>)> = Vec::new();
    if args.with_base && opened.mixture.is_some() {
        variants.push(("base".into(), None));
    }
    variants.extend(singles.iter().map(|(name, mixture)| (format!("expert {name}"), Some(mixture))));
    variants.push((args.model.model.clone(), opened.mixture.as_ref()));
    let hash = opened.checkpoint.hash()?;
    let runners: Vec<_> = variants
        .iter()
        .map(|(_, mixture)| mixse_model::generate::Runner { mixture: *mixture, ..opened.runner() })
        .collect();
    let contenders = variants
        .iter()
        .zip(&runners)
        .map(|((name, mixture), runner)| {
            let mixture = mixture.map(Mixture::fingerprint).transpose()?;
            let identity = format!("{hash} {:?} {mixture:?}", args.model.precision);
            Ok(Contender { name: name.clone(), identity, model: runner })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let sandbox = sandbox_launcher()
        .and_then(|launcher| Sandbox::open(launcher, Limits::default(), Policy::RequireMinimum));
    let sandbox = sandbox.map_err(|e| note(format_args!("code cannot be run: {e}"))).ok();
    let mut shown = 0;
    let evaluated = evaluate(&settings, &contenders, sandbox.as_ref(), &mut |progress| {
        let tenth = progress.total.div_ceil(10).max(1);
        if progress.done < shown || progress.done >= shown + tenth {
            shown = progress.done;
            note(format_args!("{}: {} of {} requests", progress.contender, progress.done, progress.total));
        }
    })?;
    let mut files = Vec::new();
    if let Some(out) = &args.out {
        let now = SystemTime::now();
        let date = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        for model in &evaluated {
            let info = RunInfo {
                date_id: humantime::format_rfc3339_seconds(now)
                    .to_string()
                    .trim_end_matches('Z')
                    .replace(':', "-"),
                date,
                model_args: format!("{}, {:?}", args.model.model, args.model.precision),
                python: sandbox.as_ref().map(|s| s.python().version.clone()),
                ..RunInfo::default()
            };
            files.extend(write(&out.join(directory_name(&model.contender)), model, &info, args.log_samples)?);
        }
    }
    let comparisons = compare(&evaluated, 10_000, args.seed);
    print(
        args.json.format(),
        &Report { models: evaluated.iter().map(model_report).collect(), comparisons, files },
    )
}

/// A folder name for a model's files: everything but letters, digits, `.` and `-` becomes `_`.
fn directory_name(model: &str) -> String {
    model.chars().map(|c| if c.is_alphanumeric() || ".-".contains(c) { c } else { '_' }).collect()
}

fn model_report(evaluated: &Evaluated) -> ModelReport {
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
    ModelReport {
        model: evaluated.contender.clone(),
        results,
        skipped: evaluated.skipped.clone(),
        truncated_prompts: evaluated.truncated,
        seconds: (evaluated.seconds * 10.0).round() / 10.0,
    }
}
