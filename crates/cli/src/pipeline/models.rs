//! The base model: named at first, opened before anything runs, loaded when a task needs it.

use std::{cell::OnceCell, path::PathBuf};

use anyhow::Context;
use mixse_model::{
    engine::{Engine, LoadOptions, Precision},
    generate::Runner,
    mixture::Mixture,
    peft,
    tokenizer::{Bos, ContentTokens, Tokenizer},
    weights::{Checkpoint, Unused},
};
use mixse_selfmoe::{merge::Deltas, template::Style};

use crate::{
    config::Config,
    device::load_options,
    identity::text_hash,
    output::usage_error,
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
    unused: Unused,
    text_hash: String,
    options: LoadOptions,
    engine: OnceCell<Engine>,
}

impl Models {
    /// The base model by its name alone: enough to look at a plan.
    pub(super) fn named(config: &Config) -> Self {
        Self { name: config.base.clone(), opened: None }
    }

    /// Finds (and pulls) the base model of a configuration and checks its files.
    pub(crate) fn open(config: &Config, cache: &Cache) -> anyhow::Result<Self> {
        let options = load_options(config.device, config.precision, config.portable)?;
        if !config.precision.trains() {
            return Err(usage_error(format!(
                "precision = {0:?}: a run trains, and {0} is for generation, because it rounds activations; use bf16, f32 or int4, \
                 and --precision {0} to serve or evaluate what came of the run",
                config.precision.name()
            )));
        }
        let path = resolve_base(&config.base, cache)?;
        let mut checkpoint = Checkpoint::open_with(&path, config.unused())?;
        checkpoint.tokenizer.parse_content(ContentTokens::parsed_if(config.parse_special));
        // A model without a tokenizer can be inspected, but no run can be made with it.
        checkpoint.tokenizer.encode("", Bos::Never).with_context(|| format!("{}", path.display()))?;
        if config.style == Style::Chat {
            checkpoint.tokenizer.check_chat_template().with_context(|| format!("{}", path.display()))?;
        }
        let hash = checkpoint.hash()?;
        let text_hash = text_hash(&checkpoint)?;
        mixse_kernels::pool::set_threads(config.threads.count());
        let unused = config.unused();
        let opened = Opened { path, checkpoint, hash, unused, text_hash, options, engine: OnceCell::new() };
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

    /// Of what turns text into tokens, where [`Models::hash`] does not cover it.
    pub(super) fn text_hash(&self) -> anyhow::Result<&str> {
        Ok(&self.opened()?.text_hash)
    }

    pub(super) fn checkpoint(&self) -> anyhow::Result<&Checkpoint> {
        Ok(&self.opened()?.checkpoint)
    }

    pub(super) fn tokenizer(&self) -> anyhow::Result<&Tokenizer> {
        Ok(&self.opened()?.checkpoint.tokenizer)
    }

    pub(super) fn engine(&self) -> anyhow::Result<&Engine> {
        let opened = self.opened()?;
        if opened.engine.get().is_none() {
            let engine = Engine::load(&opened.checkpoint, &opened.options)?;
            // Set only here, and this is one thread.
            let _ = opened.engine.set(engine);
        }
        opened.engine.get().context("the model was not kept")
    }

    /// The base with changes of its weights merged in, held as 32-bit floats: rounding the sums would lose part of the
    /// changes, which are small beside the weights.
    pub(super) fn merged(&self, deltas: Deltas) -> anyhow::Result<Engine> {
        let opened = self.opened()?;
        let checkpoint = Checkpoint::open_with(&opened.path, opened.unused)?.with_deltas(deltas)?;
        Ok(Engine::load(&checkpoint, &LoadOptions { precision: Precision::F32, ..opened.options })?)
    }

    pub(super) fn runner<'a>(&'a self, mixture: Option<&'a Mixture>) -> anyhow::Result<Runner<'a>> {
        Ok(Runner::new(self.engine()?, self.tokenizer()?, mixture))
    }
}
