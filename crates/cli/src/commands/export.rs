//! `mixse export`: experts, mixtures and merged models in the formats of other programs.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use mixse_files::{Below, OutputDirectory};
use mixse_model::{
    expert::Expert,
    export::write_merged,
    files::Number,
    peft::{self, Origin},
    router_files,
    weights::Checkpoint,
};
use serde::Serialize;

use super::opened::{RunParts, adapter_base, open_base_files, run_parts};
use crate::{
    args::{CacheFlag, ForceFlag, JsonFlag, UnusedFlag},
    config::parse_name,
    output::{print, usage_error},
    output_directory,
    progress::Progress,
};

/// Write a run or single experts in the formats of other programs.
///
/// peft: one PEFT directory an expert. xlora: the experts and the router as PEFT's X-LoRA model reads them (only of runs
/// with router.input = "base_last", the one kind of router that X-LoRA has). merged: a Hugging Face model directory of the
/// base with one expert added into its weights, for programs that know no adapters.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse export runs/quick --format peft --base-name HuggingFaceTB/SmolLM2-135M-Instruct --out adapters
  mixse export runs/quick --only math --format merged --number bf16 --out smollm2-math
  mixse export --expert merged --format merged --out model
  mixse export --base model.gguf --format merged --out model     the base alone
  mixse export runs/last --format xlora --out xlora")]
pub(crate) struct ExportArgs {
    /// A run directory.
    #[arg(value_name = "RUN", required_unless_present_any = ["experts", "base"], conflicts_with = "experts")]
    run: Option<PathBuf>,
    /// An expert: a PEFT directory. Repeat it for several.
    #[arg(long = "expert", value_name = "DIR")]
    experts: Vec<PathBuf>,
    /// Only this expert of the run; repeat it for several.
    #[arg(long, value_name = "NAME", conflicts_with = "experts")]
    only: Vec<String>,
    /// What to write.
    #[arg(long, value_enum)]
    format: Format,
    /// Numbers of a merged model: f32 or bf16.
    #[arg(long, value_name = "KIND", default_value = "bf16", value_parser = parse_name::<Number>)]
    number: Number,
    /// The base model [default: the run's, or the one that the first expert names].
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// What adapter files record as their base, for programs that load it by this name [default: the base as it is called here].
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Where the files go: a new or empty directory.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    unused: UnusedFlag,
    #[command(flatten)]
    force: ForceFlag,
    #[command(flatten)]
    cache: CacheFlag,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// PEFT directories.
    Peft,
    /// PEFT's X-LoRA.
    Xlora,
    /// A Hugging Face model.
    Merged,
}

#[derive(Serialize)]
struct Report {
    format: Format,
    out: PathBuf,
    experts: Vec<String>,
    #[serde(skip)]
    hint: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.experts.is_empty() { "the base".into() } else { self.experts.join(", ") };
        writeln!(f, "wrote {} ({what})", self.out.display())?;
        writeln!(f, "{}", self.hint)
    }
}

/// What is exported, read and checked.
struct Source {
    base: Checkpoint,
    base_name: String,
    experts: Vec<Expert>,
    /// The router over exactly these experts, if they are a whole run's.
    router: Option<PathBuf>,
    /// Where the experts were read from.
    directories: Vec<PathBuf>,
}

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    output_directory::check(&args.out, &args.inputs(), args.force, Below::Any)?;
    let source = args.open()?;
    let inputs: Vec<&Path> = args.inputs().into_iter().chain(source.paths()).collect();
    let output =
        output_directory::create(&args.out, &inputs, args.force, source.directories_of(args.format))?;
    let hint = match args.format {
        Format::Peft => peft(&source, &output, args)?,
        Format::Xlora => xlora(&source, &output, args)?,
        Format::Merged => merged(&source, &output, args)?,
    };
    output.commit()?;
    let experts = source.experts.into_iter().map(|expert| expert.name).collect();
    print(args.json.format(), &Report { format: args.format, out: args.out.clone(), experts, hint })
}

impl Source {
    /// The directories that are written below the output.
    fn directories_of(&self, format: Format) -> Below {
        Below::Named(match format {
            Format::Peft => self.experts.iter().map(|expert| expert.name.clone()).collect(),
            Format::Xlora => (0..self.experts.len()).map(|index| index.to_string()).collect(),
            Format::Merged => Vec::new(),
        })
    }

    /// The directories that it was read from.
    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.directories
            .iter()
            .map(PathBuf::as_path)
            .chain(self.router.as_deref())
            .chain(self.base.directory())
    }
}

impl ExportArgs {
    /// The paths that are named.
    fn inputs(&self) -> Vec<&Path> {
        let named = self.run.iter().chain(&self.experts).map(PathBuf::as_path);
        named.chain(self.base.as_deref().map(Path::new)).collect()
    }

    fn open(&self) -> anyhow::Result<Source> {
        let (base, directories, router) = match &self.run {
            Some(run) => {
                let RunParts { base, experts, router, .. } = run_parts(run)?;
                let (chosen, all) = (self.choose(&experts)?, experts.len());
                let router = (chosen.len() == all).then_some(router);
                (self.base.clone().unwrap_or(base), chosen, router)
            }
            None => (adapter_base(self.base.as_deref(), &self.experts)?, self.experts.clone(), None),
        };
        let checkpoint = open_base_files(&base, self.unused, &self.cache)?;
        let mut experts: Vec<Expert> = Vec::new();
        for dir in &directories {
            let expert = peft::read_for(dir, &checkpoint)?;
            if experts.iter().any(|other| other.name == expert.name) {
                return Err(usage_error(format!("two experts are called {:?}", expert.name)));
            }
            experts.push(expert);
        }
        let base_name = self.base_name.clone().unwrap_or(base);
        Ok(Source { base: checkpoint, base_name, experts, router, directories })
    }

    /// The directories of the experts asked for, in the run's order.
    fn choose(&self, experts: &[(String, PathBuf)]) -> anyhow::Result<Vec<PathBuf>> {
        let unknown: Vec<&str> = self
            .only
            .iter()
            .filter(|name| !experts.iter().any(|(known, _)| known == *name))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            let known: Vec<&str> = experts.iter().map(|(name, _)| name.as_str()).collect();
            return Err(usage_error(format!(
                "the run has no expert {}; it has {}",
                unknown.join(", "),
                known.join(", ")
            )));
        }
        let wanted = |name: &String| self.only.is_empty() || self.only.contains(name);
        Ok(experts.iter().filter(|(name, _)| wanted(name)).map(|(_, dir)| dir.clone()).collect())
    }
}

fn write_peft(source: &Source, expert: &Expert, dir: &Path) -> anyhow::Result<()> {
    let origin = Origin { name: expert.name.clone(), base_hash: source.base.hash()? };
    Ok(peft::write(expert, &source.base.config, &source.base_name, &origin, dir)?)
}

/// A directory an expert.
fn peft(source: &Source, output: &OutputDirectory, args: &ExportArgs) -> anyhow::Result<String> {
    if source.experts.is_empty() {
        return Err(usage_error("there is no expert to write: give a run or --expert"));
    }
    for expert in &source.experts {
        write_peft(source, expert, &output.path().join(&expert.name))?;
    }
    let first = source.experts.first().map_or("", |expert| &expert.name);
    Ok(format!(
        "in Python: peft.PeftModel.from_pretrained(model, {:?})",
        args.out.join(first).display().to_string()
    ))
}

/// The experts under the numbers that PEFT's X-LoRA wants, and the classifier.
fn xlora(source: &Source, output: &OutputDirectory, args: &ExportArgs) -> anyhow::Result<String> {
    let router = source
        .router
        .as_ref()
        .ok_or_else(|| usage_error("X-LoRA is a whole mixture: give a run directory, without --only"))?;
    let names: Vec<String> = source.experts.iter().map(|expert| expert.name.clone()).collect();
    let model = &source.base.config;
    let hash = source.base.hash()?;
    let router = router_files::read(router, &names, model, Some(&hash))?;
    // PEFT takes the paths as they are, from wherever it runs.
    let place = std::path::absolute(output.target())?;
    router_files::write_peft_xlora(&router, &source.base_name, output.path(), &place)
        .map_err(|e| usage_error(format!("this mixture cannot be an X-LoRA model: {e}")))?;
    for (index, expert) in source.experts.iter().enumerate() {
        write_peft(source, expert, &output.path().join(index.to_string()))?;
    }
    Ok(format!("how to load it in Python: {}", args.out.join(router_files::XLORA_README).display()))
}

/// The base, with the one expert in its weights if there is one.
fn merged(source: &Source, output: &OutputDirectory, args: &ExportArgs) -> anyhow::Result<String> {
    if source.experts.len() > 1 {
        let names: Vec<&str> = source.experts.iter().map(|expert| expert.name.as_str()).collect();
        return Err(usage_error(format!(
            "a model has room for one expert in its weights, and here are {}: choose one with --only, or merge them first \
             with `mixse merge`",
            names.join(", ")
        )));
    }
    let mut progress: Option<Progress> = None;
    write_merged(&source.base, source.experts.first(), args.number, output.path(), &mut |at| {
        progress
            .get_or_insert_with(|| Progress::new("merge", "tensors", at.total as u64))
            .set(at.done as u64, 0);
    })
    .with_context(|| format!("cannot write {}", args.out.display()))?;
    progress.into_iter().for_each(Progress::finish);
    Ok(format!(
        "in Python: transformers.AutoModelForCausalLM.from_pretrained({:?})",
        args.out.display().to_string()
    ))
}
