//! The base model, opened at once and loaded when a task needs it.

use std::cell::OnceCell;

use anyhow::Context;
use mixse_model::{
    decoder::{Decoder, LoadOptions},
    generate::Runner,
    mixture::Mixture,
    tokenizer::Tokenizer,
    weights::Checkpoint,
};

use crate::{
    config::{Config, Device},
    output::usage_error,
    pull::{Cache, ModelSource, resolve_model},
};

pub(crate) struct Models {
    name: String,
    checkpoint: Checkpoint,
    hash: String,
    options: LoadOptions,
    decoder: OnceCell<Decoder>,
}

impl Models {
    /// Finds (and pulls) the base model of a configuration and checks its files.
    pub(crate) fn open(config: &Config, cache: &Cache) -> anyhow::Result<Self> {
        let path = match resolve_model(&config.base, cache)? {
            ModelSource::Base(path) => path,
            ModelSource::Run(path) => {
                return Err(usage_error(format!("base: {} is a run, not a base model", path.display())));
            }
        };
        let checkpoint = Checkpoint::open(&path)?;
        let hash = checkpoint.hash()?;
        mixse_kernels::pool::set_threads(config.threads.count());
        let options =
            LoadOptions { precision: config.precision, device: device(config.device)?, portable: false };
        Ok(Self { name: config.base.clone(), checkpoint, hash, options, decoder: OnceCell::new() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.checkpoint.tokenizer
    }

    pub(super) fn decoder(&self) -> anyhow::Result<&Decoder> {
        if self.decoder.get().is_none() {
            let decoder = Decoder::load(&self.checkpoint, &self.options)?;
            // Set only here, and this is one thread.
            let _ = self.decoder.set(decoder);
        }
        self.decoder.get().context("the model was not kept")
    }

    pub(super) fn runner<'a>(&'a self, mixture: Option<&'a Mixture>) -> anyhow::Result<Runner<'a>> {
        Ok(Runner::new(self.decoder()?, self.tokenizer(), mixture))
    }
}

fn device(device: Device) -> anyhow::Result<candle_core::Device> {
    let opened = match device {
        Device::Cpu => Ok(candle_core::Device::Cpu),
        Device::Cuda => candle_core::Device::new_cuda(0),
        Device::Metal => candle_core::Device::new_metal(0),
    };
    opened.map_err(|e| {
        usage_error(format!(
            "the device {device:?} cannot be used: {e}; was mixse built with its feature? Otherwise use cpu"
        ))
    })
}
