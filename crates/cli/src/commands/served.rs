//! What `mixse serve` and `mixse chat` run: a base, alone or as every variant that its experts allow.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use clap::Args;
use mixse_selfmoe::template::{InstructionTemplate, Style};
use mixse_serve::{
    engine::{Model, Variant},
    prompt::Prompter,
};

use super::opened::{ExpertFlags, ModelFlags, Opened, single_experts};
use crate::{config::parse_name, pipeline::RunDirectory};

/// A model to talk to.
#[derive(Debug, Args)]
pub(crate) struct ServedFlags {
    #[command(flatten)]
    pub(crate) model: ModelFlags,
    #[command(flatten)]
    pub(crate) experts: ExpertFlags,
    /// How a conversation is written: chat (the model's own template) or completion (the template that experts are trained
    /// with) [default: as in the run; chat for a model that has a chat template].
    #[arg(long, value_name = "STYLE", value_parser = parse_name::<Style>)]
    pub(crate) style: Option<Style>,
}

/// A loaded model and how it is spoken to.
pub(crate) struct Served {
    pub(crate) model: Arc<Model>,
    pub(crate) prompter: Prompter,
}

impl ServedFlags {
    pub(crate) fn open(&self) -> anyhow::Result<Served> {
        let stored = RunDirectory::stored_config(Path::new(&self.model.model))?;
        let Opened { checkpoint, engine, mixture } = self.model.open(&self.experts)?;
        let own_template = checkpoint.tokenizer.has_chat_template();
        let usual = if own_template { Style::Chat } else { Style::Completion };
        let style = self.style.or(stored.map(|config| config.style)).unwrap_or(usual);
        if style == Style::Chat {
            checkpoint.tokenizer.check_chat_template().context("give --style completion")?;
        }
        let base = Variant { name: "base".into(), mixture: None };
        let variants = match mixture {
            None => vec![base],
            Some(mixture) => {
                let singles = single_experts(&mixture.experts);
                let all = Variant { name: "mixture".into(), mixture: Some(mixture) };
                let single =
                    |(name, mixture)| Variant { name: format!("expert-{name}"), mixture: Some(mixture) };
                [all, base].into_iter().chain(singles.into_iter().map(single)).collect()
            }
        };
        let prompter = Prompter { style, template: InstructionTemplate::built_in()? };
        Ok(Served { model: Arc::new(Model { checkpoint, base: engine, variants }), prompter })
    }
}
