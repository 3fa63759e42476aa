//! `mixse generate`: the data of some domains, without a run around it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use mixse_selfmoe::{plan::Event, select::Funnel};
use serde::Serialize;

use super::run::tell;
use crate::{
    args::{CacheFlag, ComputeFlags, JsonFlag},
    config::{Config, Preset, load},
    output::print,
    output_directory,
    pipeline::{Pipeline, RunDirectory, read_json, write},
    pull::Cache,
};

/// The most bytes of a file of rows.
const MAX_ROWS: u64 = 4 << 30;
/// Where unfinished work is kept inside the output directory.
const WORK: &str = ".mixse-generate";

/// Let the base model write the training rows of one or several domains.
///
/// The rows are those that a run with the same settings would make. Stopped at any moment, the same call continues; a call
/// with other settings is refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse generate --domain math --tasks 200 --out data/math
  mixse generate --domain domains/mine --tasks 500 --temperature 0.9 --seed 1 --out data/mine
  mixse generate -c mixse.toml --out data --json")]
pub(crate) struct GenerateArgs {
    /// The base: a name that `mixse pull` knows, a .gguf file or a Hugging Face directory.
    #[arg(short, long, visible_alias = "base", value_name = "MODEL")]
    model: Option<String>,
    /// A built-in domain's name or the path of a domain's folder; repeat it for several [default: the configuration's].
    #[arg(long = "domain", value_name = "DOMAIN")]
    domains: Vec<String>,
    /// New tasks that are answered per domain, at most.
    #[arg(long, value_name = "N")]
    tasks: Option<usize>,
    /// Brainstorming prompts per domain [default: as many for a task as the configuration has].
    #[arg(long, value_name = "N")]
    prompts: Option<usize>,
    /// Divisor of the logits while brainstorming.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Nucleus probability while brainstorming.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Seeds shown while brainstorming.
    #[arg(long, value_name = "N")]
    shown_seeds: Option<usize>,
    /// Seeds shown with their outputs while responding.
    #[arg(long, value_name = "N")]
    demonstrations: Option<usize>,
    /// Every random choice follows from it.
    #[arg(long)]
    seed: Option<u64>,
    /// Configuration file; what it leaves out comes from the preset.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Starting values [default: quick].
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Where DOMAIN.jsonl, DOMAIN.rejected.jsonl and DOMAIN.quality.json go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write into a directory that holds other files, replacing those of the names above.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: ComputeFlags,
    #[command(flatten)]
    cache: CacheFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Serialize)]
struct Report {
    domains: Vec<DomainReport>,
}

#[derive(Serialize)]
struct DomainReport {
    domain: String,
    rows: PathBuf,
    rejected: PathBuf,
    /// How varied the rows are, and overlap with check sets.
    quality: PathBuf,
    funnel: Funnel,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for DomainReport { domain, rows, funnel, .. } in &self.domains {
            writeln!(
                f,
                "{domain}: {} rows in {} ({} prompts, {} tasks found, {} answered)",
                funnel.accepted,
                rows.display(),
                funnel.asked,
                funnel.parsed,
                funnel.tasks
            )?;
            for (reason, count) in &funnel.rejected {
                writeln!(f, "  {count:5} rejected: {reason}")?;
            }
        }
        Ok(())
    }
}

pub(super) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let config = load(args.config.as_deref(), args.preset, |config| args.adjust(config))?;
    let work = args.out.join(WORK);
    RunDirectory::check(&work, &config)?;
    args.check_output(&work)?;
    let mut pipeline = Pipeline::new(config.clone())?;
    pipeline.open_base(&Cache::locate(args.cache.cache.as_deref())?)?;
    let work = RunDirectory::open(&work, &config)?;
    let plan = pipeline.data_plan(&work)?;
    plan.run(&mut |event: Event<'_>| tell(&event))?;
    let domains = pipeline
        .data_files()
        .into_iter()
        .map(|files| {
            let rows = keep(work.path(), &files.rows, &args.out)?;
            let rejected = keep(work.path(), &files.rejected, &args.out)?;
            let quality = keep(work.path(), &files.quality, &args.out)?;
            let funnel = read_json(&work.path().join(&files.funnel))?;
            Ok(DomainReport { domain: files.domain, rows, rejected, quality, funnel })
        })
        .collect::<anyhow::Result<_>>()?;
    print(args.json.format(), &Report { domains })
}

impl GenerateArgs {
    /// Refuses a directory that holds something and is not that of such a call: files in it might have the names of the results.
    fn check_output(&self, work: &Path) -> anyhow::Result<()> {
        let config = self.config.iter().map(PathBuf::as_path);
        let domains = self.domains.iter().map(Path::new);
        let inputs: Vec<&Path> = config.chain(domains).chain(self.model.as_deref().map(Path::new)).collect();
        let is_ours = RunDirectory::stored_config(work)?.is_some();
        output_directory::check_resumable(&self.out, &inputs, is_ours, self.force)
    }

    /// Puts what was typed over a configuration.
    fn adjust(&self, config: &mut Config) {
        fn set<T: Clone>(place: &mut T, typed: &Option<T>) {
            if let Some(value) = typed {
                place.clone_from(value);
            }
        }
        set(&mut config.base, &self.model);
        set(&mut config.seed, &self.seed);
        if !self.domains.is_empty() {
            config.domains.clone_from(&self.domains);
        }
        let generation = &mut config.generation;
        if let Some(tasks) = self.tasks {
            generation.prompts = generation.prompts.saturating_mul(tasks).div_ceil(generation.tasks.max(1));
            generation.tasks = tasks;
        }
        set(&mut generation.prompts, &self.prompts);
        set(&mut generation.temperature, &self.temperature);
        set(&mut generation.top_p, &self.top_p);
        set(&mut generation.shown_seeds, &self.shown_seeds);
        set(&mut generation.demonstrations, &self.demonstrations);
        // Shards change no row; a small job does not need as many.
        generation.shards = generation.shards.min(generation.prompts.min(generation.tasks)).max(1);
        self.compute.adjust(config);
    }
}

/// Puts a finished file beside the work directory, under its own name.
fn keep(work: &Path, file: &Path, out: &Path) -> anyhow::Result<PathBuf> {
    let from = work.join(file);
    let to = out.join(file.file_name().context("a file without a name")?);
    let text =
        mixse_files::read(&from, MAX_ROWS).with_context(|| format!("cannot read {}", from.display()))?;
    write(&to, &text)?;
    Ok(to)
}
