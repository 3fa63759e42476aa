//! The base model: named at first, opened before anything runs, loaded when a task needs it.

use std::{cell::OnceCell, path::PathBuf};

use anyhow::Context;
use mixse_model::{
    decoder::{Decoder, LoadOptions, Precision},
    generate::Runner,
    mixture::Mixture,
    peft,
    tokenizer::{Bos, ContentTokens, Tokenizer},
    weights::Checkpoint,
};
use mixse_selfmoe::{merge::Deltas, template::Style};

use crate::{
    config::Config,
    device::load_options,
    pull::{Cache, resolve_base},
};

/// Everything in a configuration that the base cannot be used with, each with its key: ranks that it is too narrow for, and
/// adapters that are not plain LoRA or were made for another base.
pub(crate) fn misfits(config: &Config, base: &Checkpoint) -> Vec<String> {
    let ranks = config.expert.misfits(&base.config).into_iter().map(|(key, what)| format!("{key}: {what}"));
    // Whether there is anything at a path is the outline's question.
    let there = config.adapters.iter().filter(|adapter| adapter.path.is_dir());
    let adapters = there.filter_map(|adapter| {
        let e = peft::read_for(&adapter.path, base).err()?;
        Some(format!("adapters: {}: {e}", adapter.domain))
    });
    ranks.chain(adapters).collect()
}

pub(crate) struct Models {
    name: String,
    opened: Option<Opened>,
}

struct Opened {
    path: PathBuf,
    checkpoint: Checkpoint,
    hash: String,
    options: LoadOptions,
    decoder: OnceCell<Decoder>,
}

impl Models {
    /// The base model by its name alone: enough to look at a plan.
    pub(super) fn named(config: &Config) -> Self {
        Self { name: config.base.clone(), opened: None }
    }

    /// Finds (and pulls) the base model of a configuration and checks its files.
    pub(crate) fn open(config: &Config, cache: &Cache) -> anyhow::Result<Self> {
        let options = load_options(config.device, config.precision, config.portable)?;
        let path = resolve_base(&config.base, cache)?;
        let mut checkpoint = Checkpoint::open(&path)?;
        checkpoint.tokenizer.parse_content(ContentTokens::parsed_if(config.parse_special));
        // A model without a tokenizer can be inspected, but no run can be made with it.
        checkpoint.tokenizer.encode("", Bos::Never).with_context(|| format!("{}", path.display()))?;
        if config.style == Style::Chat {
            checkpoint.tokenizer.check_chat_template().with_context(|| format!("{}", path.display()))?;
        }
        let hash = checkpoint.hash()?;
        mixse_kernels::pool::set_threads(config.threads.count());
        let opened = Opened { path, checkpoint, hash, options, decoder: OnceCell::new() };
        Ok(Self { opened: Some(opened), ..Self::named(config) })
    }

    fn opened(&self) -> anyhow::Result<&Opened> {
        self.opened.as_ref().with_context(|| format!("the base model {} was not opened", self.name))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn hash(&self) -> anyhow::Result<&str> {
        Ok(&self.opened()?.hash)
    }

    pub(super) fn checkpoint(&self) -> anyhow::Result<&Checkpoint> {
        Ok(&self.opened()?.checkpoint)
    }

    pub(super) fn tokenizer(&self) -> anyhow::Result<&Tokenizer> {
        Ok(&self.opened()?.checkpoint.tokenizer)
    }

    pub(super) fn decoder(&self) -> anyhow::Result<&Decoder> {
        let opened = self.opened()?;
        if opened.decoder.get().is_none() {
            let decoder = Decoder::load(&opened.checkpoint, &opened.options)?;
            // Set only here, and this is one thread.
            let _ = opened.decoder.set(decoder);
        }
        opened.decoder.get().context("the model was not kept")
    }

    /// The base with changes of its weights merged in, held as 32-bit floats: rounding the sums would lose part of the
    /// changes, which are small beside the weights.
    pub(super) fn merged(&self, deltas: Deltas) -> anyhow::Result<Decoder> {
        let opened = self.opened()?;
        let checkpoint = Checkpoint::open(&opened.path)?.with_deltas(deltas)?;
        Ok(Decoder::load(&checkpoint, &LoadOptions { precision: Precision::F32, ..opened.options.clone() })?)
    }

    pub(super) fn runner<'a>(&'a self, mixture: Option<&'a Mixture>) -> anyhow::Result<Runner<'a>> {
        Ok(Runner::new(self.decoder()?, self.tokenizer()?, mixture))
    }
}
