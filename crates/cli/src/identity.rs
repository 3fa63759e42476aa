//! What decides a model's answers besides its weights: keys of results that are kept name it.

use anyhow::Context;
use mixse_kernels::isa;
use mixse_model::weights::Checkpoint;
use serde_json::{Value, json};

use crate::config::Device;

/// Files of a Hugging Face directory that decide how text becomes tokens and when an answer ends. A GGUF file has all of this inside, and its
/// hash covers it.
const TEXT_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
];

/// SHA-256 (lower-case hex) over the files of a model that its own hash, which adapters record, does not cover; nothing where there are none.
pub(crate) fn text_hash(checkpoint: &Checkpoint) -> anyhow::Result<String> {
    let Some(directory) = checkpoint.directory() else { return Ok(String::new()) };
    let mut all = String::new();
    for name in TEXT_FILES {
        let path = directory.join(name);
        if path.exists() {
            let hash =
                mixse_files::hash_path(&path).with_context(|| format!("cannot read {}", path.display()))?;
            all += &format!("{name} {hash}\n");
        }
    }
    Ok(mixse_files::hash_bytes(all.as_bytes()))
}

/// What computes: the same operands give the same bits only within one of these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arithmetic {
    /// Where tensors live.
    pub(crate) device: Device,
    /// The portable operations are used on the processor too.
    pub(crate) portable: bool,
}

impl Arithmetic {
    /// As keys have it.
    pub(crate) fn value(self) -> Value {
        // The portable operations choose their instructions themselves: the best ones.
        let portable = self.portable || self.device != Device::Cpu;
        let instructions = if portable { isa::best() } else { isa::active() };
        json!({
            "device": self.device,
            "operations": if portable { "portable" } else { "fused" },
            "architecture": std::env::consts::ARCH,
            "instructions": instructions.isa().name(),
        })
    }
}
