//! `--out` of commands that write a directory: refused where it would destroy something, and swapped in whole.

use std::path::Path;

use mixse_files::{Below, Existing, OutputDirectory, OutputError};

use crate::{args::ForceFlag, output::usage_error};

/// Every file that a command writes into such a directory, or that PEFT and transformers put beside them: a directory that holds anything
/// else is no result of ours, and `--force` leaves it alone.
const KNOWN: &[&str] = &[
    "adapter_config.json",
    "adapter_model.safetensors",
    "mixse.json",
    "merge.json",
    "router.json",
    "router.safetensors",
    "xlora_config.json",
    "xlora_classifier.safetensors",
    "README.md",
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
];

fn existing(force: ForceFlag, below: Below) -> Existing {
    if force.force { Existing::Replace(KNOWN, below) } else { Existing::Refuse }
}

/// Refuses an `--out` that is or contains one of the inputs, or that holds something which may not be replaced, directories other than those
/// `below` among it. To be called before any work is done; nothing is written.
pub(crate) fn check(out: &Path, inputs: &[&Path], force: ForceFlag, below: Below) -> anyhow::Result<()> {
    OutputDirectory::check(out, inputs, &existing(force, below)).map_err(told)
}

/// The directory, to be filled and committed.
pub(crate) fn create(
    out: &Path,
    inputs: &[&Path],
    force: ForceFlag,
    below: Below,
) -> anyhow::Result<OutputDirectory> {
    OutputDirectory::create(out, inputs, existing(force, below)).map_err(told)
}

/// The command writes files alone, and replaces no directories.
pub(crate) const NO_DIRECTORIES: Below = Below::Named(Vec::new());

fn told(error: OutputError) -> anyhow::Error {
    match error {
        OutputError::Io { .. } | OutputError::Taken { .. } => error.into(),
        refused => usage_error(refused.to_string()),
    }
}

/// The same for a directory that a command adds to and continues in: refused if it is an input, or if it holds something and is not `ours`, the
/// directory of an earlier such call, unless `force` says that files of the command's names may be replaced.
pub(crate) fn check_resumable(out: &Path, inputs: &[&Path], ours: bool, force: bool) -> anyhow::Result<()> {
    match OutputDirectory::check(out, inputs, &Existing::Refuse) {
        Err(OutputError::NotEmpty(_) | OutputError::ContainsInput { .. }) if ours || force => Ok(()),
        Err(refused) => Err(told(refused)),
        Ok(()) => Ok(()),
    }
}
