//! `mixse eval`: benchmarks scored as lm-evaluation-harness scores them.

mod report;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context;
use clap::Args;
use mixse_eval::{
    sandbox::{Limits, Policy, Sandbox},
    tasks::{
        compare::{adjust, compare},
        output::{RunInfo, write},
        run::{Attempts, Contender, Evaluated, Limit, Planned, Settings, evaluate, load},
        task::Chat,
    },
};
use mixse_model::{generate::Runner, mixture::Mixture};

use self::report::{ModelReport, OfSeed, Report, over_seeds};
use super::opened::{ExpertFlags, ModelFlags, Opened, single_experts};
use crate::{
    args::JsonFlag,
    identity::text_hash,
    output::{note, print, usage_error},
    output_directory,
    pipeline::sandbox_launcher,
};

/// Score benchmarks as lm-evaluation-harness does, with its result and sample files.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse eval --bench-data DIR --tasks mmlu,piqa --limit 100
  mixse eval --model runs/quick --with-base --bench-data DIR --tasks gsm8k_cot,bbh --out results
  mixse eval --model runs/a --also runs/b --bench-data DIR --tasks mmlu --num-fewshot 5
  mixse eval --model DIR --precision f32 --bench-data DIR --tasks humaneval --log-samples --out results
  mixse eval --bench-data DIR --tasks humaneval --attempts 20 --pass-at 1,10
  mixse eval --bench-data DIR --tasks gsm8k_cot --samples '{\"gsm8k_cot\": [0, 7]}' --chat --fewshot-as-turns
  mixse eval --bench-data DIR --tasks hellaswag --num-fewshot 5 --seed 1,2,3
  mixse eval --tasks mine.toml --out results")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    experts: ExpertFlags,
    /// A further model, as --model takes it: scored on the same rows and compared; repeatable.
    #[arg(long, value_name = "MODEL")]
    also: Vec<String>,
    /// Score the base without experts as well, and compare.
    #[arg(long)]
    with_base: bool,
    /// Score every expert alone as well, and compare.
    #[arg(long)]
    with_experts: bool,
    /// Tasks, groups (`mmlu`, `bbh`) or paths of own task files (`….toml`), separated by commas.
    #[arg(long, value_delimiter = ',', required = true, value_name = "TASK")]
    tasks: Vec<String>,
    /// Directory of the benchmarks' files.
    #[arg(long, value_name = "DIR")]
    bench_data: Option<PathBuf>,
    /// Only so many rows of each task, from its beginning; below 1: this share of them.
    #[arg(long, value_name = "N", value_parser = parse_limit, conflicts_with = "samples")]
    limit: Option<Limit>,
    /// Only these rows, as JSON or a file of it: {\"TASK\": [ROW, …]}, counted from 0.
    #[arg(long, value_name = "JSON")]
    samples: Option<String>,
    /// Worked examples [default: each task's own].
    #[arg(long, value_name = "N")]
    num_fewshot: Option<usize>,
    /// Of the draw of worked examples; several, separated by commas, give a result each and their spread.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1234")]
    seed: Vec<u64>,
    /// Attempts at each item of tasks whose code is run; above 1 they are drawn.
    #[arg(long, value_name = "N", default_value_t = 1)]
    attempts: usize,
    /// The k of pass@k, separated by commas [default: 1 and the number of attempts].
    #[arg(long, value_name = "K", value_delimiter = ',')]
    pass_at: Vec<usize>,
    /// Prompts are turns of the model's chat template.
    #[arg(long, visible_alias = "apply-chat-template")]
    chat: bool,
    /// With --chat: worked examples are turns of the conversation.
    #[arg(long, visible_alias = "fewshot-as-multiturn", requires = "chat")]
    fewshot_as_turns: bool,
    /// With --chat: the system message.
    #[arg(long, visible_alias = "system-instruction", value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Run generated code even where the system cannot isolate it well: in a container or machine of its own.
    #[arg(long)]
    accept_weak_isolation: bool,
    /// Where the harness's files go; answers are kept there too, so that a second call continues.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write every sample.
    #[arg(long, requires = "out")]
    log_samples: bool,
    #[command(flatten)]
    json: JsonFlag,
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    match (text.parse::<usize>(), text.parse::<f64>()) {
        (Ok(rows), _) if rows > 0 => Ok(Limit::Rows(rows)),
        (_, Ok(share)) if share > 0.0 && share < 1.0 => Ok(Limit::Share(share)),
        _ => Err("expected a number of rows, or a share between 0 and 1".into()),
    }
}

impl EvalArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        let pass_at = match (self.pass_at.as_slice(), self.attempts) {
            ([], 0 | 1) => vec![1],
            ([], count) => vec![1, count],
            (given, _) => given.to_vec(),
        };
        Ok(Settings {
            tasks: self.tasks.clone(),
            bench_data: self.bench_data.clone(),
            num_fewshot: self.num_fewshot,
            limit: self.limit.unwrap_or(Limit::All),
            samples: self.samples.as_deref().map(read_samples).transpose()?,
            chat: self
                .chat
                .then(|| Chat { fewshot_as_turns: self.fewshot_as_turns, system: self.system.clone() }),
            attempts: Attempts { count: self.attempts.max(1), pass_at, ..Attempts::default() },
            cache: self.out.as_ref().map(|out| out.join("cache.jsonl")),
            ..Settings::default()
        })
    }

    fn sandbox(&self) -> Option<Sandbox> {
        let policy = if self.accept_weak_isolation { Policy::AcceptWeak } else { Policy::RequireMinimum };
        sandbox_launcher()
            .and_then(|launcher| Sandbox::open(launcher, Limits::default(), policy))
            .map_err(|e| note(format_args!("code cannot be run: {e}")))
            .ok()
    }
}

/// The most bytes of a list of rows.
const MAX_SAMPLES: u64 = 64 << 20;

/// `{"TASK": [ROW, …]}`, as the harness takes it: the text itself, or the path of a file that holds it.
fn read_samples(given: &str) -> anyhow::Result<BTreeMap<String, Vec<usize>>> {
    let text = if given.trim_start().starts_with('{') {
        given.to_owned()
    } else {
        mixse_files::read_text(Path::new(given), MAX_SAMPLES).with_context(|| format!("--samples {given}"))?
    };
    serde_json::from_str(&text)
        .map_err(|e| usage_error(format!("--samples: not of the form {{\"TASK\": [ROW, …]}}: {e}")))
}

/// One model under its name, with or without experts.
struct Variant<'a> {
    name: String,
    opened: &'a Opened,
    mixture: Option<&'a Mixture>,
}

pub(super) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    if let Some(out) = &args.out {
        let models = std::iter::once(&args.model.model).chain(&args.also).map(Path::new);
        let parts = args.experts.experts.iter().chain(&args.experts.router).chain(&args.bench_data);
        let inputs: Vec<&Path> = models.chain(parts.map(PathBuf::as_path)).collect();
        output_directory::check_resumable(out, &inputs, true, true)?;
    }
    // What is wrong with the tasks shows before a model is opened.
    let runs_code = load(&settings)?.iter().any(Planned::runs_code);
    let first = args.model.open(&args.experts)?;
    let others = args
        .also
        .iter()
        .map(|model| ModelFlags { model: model.clone(), ..args.model.clone() }.open(&ExpertFlags::default()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let singles = match &first.mixture {
        Some(mixture) if args.with_experts => single_experts(&mixture.experts),
        _ => Vec::new(),
    };
    let mut variants = Vec::new();
    if args.with_base && first.mixture.is_some() {
        variants.push(Variant { name: "base".into(), opened: &first, mixture: None });
    }
    variants.extend(singles.iter().map(|(name, mixture)| Variant {
        name: format!("expert {name}"),
        opened: &first,
        mixture: Some(mixture),
    }));
    let models = std::iter::once((&args.model.model, &first)).chain(args.also.iter().zip(&others));
    variants.extend(models.map(|(name, opened)| Variant {
        name: name.clone(),
        opened,
        mixture: opened.mixture.as_ref(),
    }));
    let runners: Vec<_> =
        variants.iter().map(|v| Runner { mixture: v.mixture, ..v.opened.runner() }).collect();
    let contenders = variants
        .iter()
        .zip(&runners)
        .map(|(variant, runner)| {
            let hash = variant.opened.checkpoint.hash()?;
            let mixture = variant.mixture.map(Mixture::fingerprint).transpose()?;
            let texts = text_hash(&variant.opened.checkpoint)?;
            let identity = format!("{hash} {texts} {} {mixture:?}", args.model.arithmetic_key());
            Ok(Contender { name: variant.name.clone(), identity, model: runner })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let sandbox = runs_code.then(|| args.sandbox()).flatten();
    let mut report =
        Report { models: Vec::new(), over_seeds: Vec::new(), comparisons: Vec::new(), files: Vec::new() };
    for &seed in &args.seed {
        let settings = Settings { fewshot_seed: seed, ..settings.clone() };
        let evaluated = evaluate_aloud(&settings, &contenders, sandbox.as_ref())?;
        if let Some(out) = &args.out {
            for model in &evaluated {
                report.files.extend(write_files(args, model, seed, sandbox.as_ref(), out)?);
            }
        }
        report.models.extend(evaluated.iter().map(|model| ModelReport::new(model, seed)));
        let comparisons = compare(&evaluated).into_iter();
        report.comparisons.extend(comparisons.map(|comparison| OfSeed { seed, comparison }));
    }
    report.over_seeds = over_seeds(&report.models);
    // Several draws of worked examples are several looks at the same question.
    adjust(&mut report.comparisons.iter_mut().map(|c| &mut c.comparison).collect::<Vec<_>>());
    print(args.json.format(), &report)
}

fn evaluate_aloud(
    settings: &Settings,
    contenders: &[Contender<'_>],
    sandbox: Option<&Sandbox>,
) -> anyhow::Result<Vec<Evaluated>> {
    let mut shown = 0;
    Ok(evaluate(settings, contenders, sandbox, &mut |progress| {
        let tenth = progress.total.div_ceil(10).max(1);
        let finished = progress.done == progress.total && shown < progress.total;
        if progress.done < shown || progress.done >= shown + tenth || finished {
            shown = progress.done;
            note(format_args!("{}: {} of {} requests", progress.contender, progress.done, progress.total));
        }
    })?)
}

/// The harness's files of one model, in a folder of its name (and of the seed where there are several).
fn write_files(
    args: &EvalArgs,
    model: &Evaluated,
    seed: u64,
    sandbox: Option<&Sandbox>,
    out: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    let now = SystemTime::now();
    let settings = serde_json::json!({
        "limit": args.limit.map(|limit| match limit {
            Limit::Rows(rows) => serde_json::json!(rows),
            Limit::Share(share) => serde_json::json!(share),
            Limit::All => serde_json::Value::Null,
        }),
        "fewshot_seed": seed,
        "system_instruction": args.system,
        "fewshot_as_multiturn": args.fewshot_as_turns,
    });
    let info = RunInfo {
        date_id: humantime::format_rfc3339_seconds(now).to_string().trim_end_matches('Z').replace(':', "-"),
        date: now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64(),
        model_args: format!("{}, {}", model.contender, args.model.arithmetic()),
        python: sandbox.map(|s| s.python().version.clone()),
        chat: args.chat,
        config: settings.as_object().cloned().unwrap_or_default(),
    };
    let mut name = directory_name(&model.contender);
    if args.seed.len() > 1 {
        name += &format!("-seed-{seed}");
    }
    Ok(write(&out.join(name), model, &info, args.log_samples)?)
}

/// A folder name for a model's files: everything but letters, digits, `.` and `-` becomes `_`.
fn directory_name(model: &str) -> String {
    model.chars().map(|c| if c.is_alphanumeric() || ".-".contains(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let check =
            |text: &str, expected: Option<Limit>| assert_eq!(parse_limit(text).ok(), expected, "{text}");
        check("100", Some(Limit::Rows(100)));
        check("1", Some(Limit::Rows(1)));
        check("0.25", Some(Limit::Share(0.25)));
        for wrong in ["0", "1.5", "-1", "nan", "all", ""] {
            check(wrong, None);
        }
    }

    #[test]
    fn samples_are_read_from_text() {
        let read = read_samples(r#"{"mmlu_anatomy": [0, 3], "piqa": []}"#).unwrap();
        assert_eq!(read["mmlu_anatomy"], [0, 3]);
        let check = |text: &str, expected: &str| {
            let message = format!("{:#}", read_samples(text).unwrap_err());
            assert!(message.contains(expected), "{text}: {message}");
        };
        check("{\"piqa\": [-1]}", "not of the form");
        check("{\"piqa\": 3}", "not of the form");
        check("no-such-file.json", "no-such-file.json");
    }
}
