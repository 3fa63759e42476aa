//! `mixse train expert` and `mixse train router` on rows of token ids: single stages, and what others check us with.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use mixse_model::{
    engine::Memory,
    expert::{Expert, LoraConfig},
    expert_set::ExpertSet,
    peft::{self, Origin},
    router::{GateConfig, GateScale, Router, RouterConfig, RouterInput},
    router_files,
};
use mixse_selfmoe::train::{
    Cut, HeldOut, History, Job, Outcome, Schedule, StepReport, TrainConfig, read_rows, train_expert,
    train_router,
};
use serde_json::json;

use super::opened::{ExpertFlags, ModelFlags};
use crate::{
    args::ForceFlag,
    config::parse_name,
    output::{note, print_json, usage_error},
    output_directory::{self, NO_DIRECTORIES},
};

/// Train one expert or a router on a file of token ids.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Train a LoRA expert on a frozen base.
    #[command(after_help = "\
Examples:
  mixse train expert --base DIR --ids-data rows.jsonl --out experts/mine
  mixse train expert --base DIR --ids-data rows.jsonl --init adapter --no-shuffle --steps 20 --batch 4 --lr 1e-3 \\
      --precision f32 --out out --json")]
    Expert(ExpertArgs),
    /// Train a router over frozen experts.
    #[command(after_help = "\
Example:
  mixse train router --base DIR --expert a --expert b --ids-data rows.jsonl --out router")]
    Router(RouterArgs),
}

/// Data, steps and output.
#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    model: ModelFlags,
    /// Rows of `{"prompt_ids": [..], "target_ids": [..]}`, one a line; the loss is on the targets.
    #[arg(long, value_name = "FILE")]
    ids_data: PathBuf,
    /// Take the rows in file order, round and round.
    #[arg(long)]
    no_shuffle: bool,
    /// Optimiser steps [default: as many as `--epochs` needs].
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Passes over the rows.
    #[arg(long, value_name = "N", default_value_t = 3)]
    epochs: usize,
    /// Rows of a step.
    #[arg(long, value_name = "B", default_value_t = 32)]
    batch: usize,
    /// Learning rate.
    #[arg(long, value_name = "X", default_value_t = 3e-4)]
    lr: f64,
    /// Rows are cut after so many tokens.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_tokens: usize,
    /// Of the order of rows and of new parameters.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Shape of the learning rate after the warm-up: constant, linear or cosine.
    #[arg(long, default_value = "constant", value_parser = parse_name::<Schedule>)]
    schedule: Schedule,
    /// Steps over which the learning rate rises from zero.
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: usize,
    /// Scale gradients down to this norm; 0: never.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    clip_norm: f64,
    /// Hold so many rows out and keep the parameters with the lowest loss on them; 0: none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    validation: usize,
    /// Stop after so many looks at them without a lower loss; 0: never.
    #[arg(long, value_name = "N", default_value_t = 0)]
    patience: usize,
    /// Keep only each block's input for the backward: less memory, more time.
    #[arg(long)]
    recompute: bool,
    /// Where the result goes: a new or empty directory.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    force: ForceFlag,
    /// Print the losses as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ExpertArgs {
    #[command(flatten)]
    common: Common,
    /// Start from this PEFT adapter instead of a new one.
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,
    /// Rank of a new expert.
    #[arg(long, default_value_t = 8, conflicts_with = "init")]
    rank: usize,
    /// Numerator of a new expert's scaling.
    #[arg(long, default_value_t = 16.0, conflicts_with = "init")]
    alpha: f64,
    /// Scale a new expert by alpha / √rank instead of alpha / rank.
    #[arg(long, conflicts_with = "init")]
    rslora: bool,
    /// Probability with which inputs of a new expert are dropped in training.
    #[arg(long, default_value_t = 0.0, conflicts_with = "init")]
    dropout: f64,
}

#[derive(Debug, Args)]
struct RouterArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    experts: ExpertFlags,
    /// What the router reads: block, base_last or embedding.
    #[arg(long, default_value = "block", value_parser = parse_name::<RouterInput>)]
    input: RouterInput,
    /// Experts kept for each token.
    #[arg(long, default_value_t = 1)]
    top_k: usize,
    /// How kept probabilities count: probability, renormalized or unit.
    #[arg(long, default_value = "probability", value_parser = parse_name::<GateScale>)]
    scale: GateScale,
    /// A further choice that adds nothing.
    #[arg(long)]
    null_expert: bool,
    /// Weight of the router's cross-entropy against the rows' domains; each row needs a `"domain": INDEX` then.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0)]
    domain_loss: f64,
}

pub(super) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Expert(args) => expert(args),
        What::Router(args) => router(args),
    }
}

impl Common {
    fn config(&self) -> TrainConfig {
        TrainConfig {
            learning_rate: self.lr,
            epochs: if self.no_shuffle && self.steps.is_some() { 0 } else { self.epochs },
            max_steps: self.steps.unwrap_or(0),
            batch_size: self.batch,
            max_tokens: self.max_tokens,
            shuffle: !self.no_shuffle,
            schedule: self.schedule,
            warmup_steps: self.warmup,
            clip_norm: self.clip_norm,
            validation: if self.validation == 0 { HeldOut::None } else { HeldOut::Rows(self.validation) },
            patience: self.patience,
            ..TrainConfig::default()
        }
    }

    fn memory(&self) -> Memory {
        if self.recompute { Memory::Recompute } else { Memory::Keep }
    }

    /// The paths that are read, beside experts and router.
    fn inputs(&self) -> [&Path; 2] {
        [&self.ids_data, Path::new(&self.model.model)]
    }

    /// Says how much of the rows will not be seen.
    fn tell_cut(&self, cut: &Cut) {
        if cut.rows > 0 {
            note(format_args!("{cut} (--max-tokens {})", self.max_tokens));
        }
    }

    fn report(&self, history: &History, cut: &Cut) -> anyhow::Result<()> {
        let History { losses, validation, kept_step } = history;
        if self.json {
            let mut found = json!({ "losses": losses, "out": self.out });
            if cut.rows > 0 {
                found["cut"] = json!(cut);
            }
            if !validation.is_empty() {
                found["validation"] = json!(validation);
                found["kept_step"] = json!(kept_step);
            }
            return print_json(&found);
        }
        for look in validation {
            let kept = if look.step == *kept_step { " (kept)" } else { "" };
            note(format_args!("held-out loss after step {}: {:.4}{kept}", look.step, look.loss));
        }
        note(format_args!("wrote {}", self.out.display()));
        Ok(())
    }

    fn progress(&self) -> impl FnMut(StepReport) -> ControlFlow<()> {
        let quiet = self.json;
        move |step| {
            if !quiet {
                note(format_args!("step {}/{}: loss {:.4}", step.step, step.steps, step.loss));
            }
            ControlFlow::Continue(())
        }
    }
}

fn expert(args: &ExpertArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let inputs: Vec<&Path> = common.inputs().into_iter().chain(args.init.as_deref()).collect();
    output_directory::check(&common.out, &inputs, common.force, NO_DIRECTORIES)?;
    let opened = common.model.open_base()?;
    let rows = read_rows(&common.ids_data, opened.checkpoint.config.vocab_size)?;
    let cut = Cut::of(&rows, common.max_tokens);
    common.tell_cut(&cut);
    let hash = opened.checkpoint.hash()?;
    let start = match &args.init {
        Some(dir) => peft::read_for(dir, &opened.checkpoint)?,
        None => {
            let lora = LoraConfig {
                rank: args.rank,
                alpha: args.alpha,
                rslora: args.rslora,
                dropout: args.dropout,
                ..LoraConfig::default()
            };
            if let Some(fault) = lora.faults().into_iter().next() {
                return Err(usage_error(fault));
            }
            let name = common.out.file_name().map_or("expert".into(), |n| n.to_string_lossy());
            Expert::init(&name, &lora, &opened.engine.config, common.seed)?
        }
    };
    let config = common.config();
    let job = Job {
        engine: &opened.engine,
        rows: &rows,
        config: &config,
        seed: common.seed,
        memory: common.memory(),
        keep_states: true,
        state: None,
    };
    let Outcome::Done(trained, history) = train_expert(job, &start, &mut common.progress())? else {
        return Err(usage_error("the training was stopped"));
    };
    let origin = Origin { name: trained.name.clone(), base_hash: hash };
    let output = output_directory::create(&common.out, &inputs, common.force, NO_DIRECTORIES)?;
    peft::write(&trained, &opened.engine.config, &common.model.model, &origin, output.path())?;
    output.commit()?;
    common.report(&history, &cut)
}

fn router(args: &RouterArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let parts = args.experts.experts.iter().chain(&args.experts.router).map(PathBuf::as_path);
    let inputs: Vec<&Path> = common.inputs().into_iter().chain(parts).collect();
    output_directory::check(&common.out, &inputs, common.force, NO_DIRECTORIES)?;
    let opened = common.model.open_base()?;
    let rows = read_rows(&common.ids_data, opened.checkpoint.config.vocab_size)?;
    let cut = Cut::of(&rows, common.max_tokens);
    common.tell_cut(&cut);
    let hash = opened.checkpoint.hash()?;
    let model = &opened.engine.config;
    let experts = args
        .experts
        .experts
        .iter()
        .map(|dir| peft::read_for(dir, &opened.checkpoint))
        .collect::<mixse_model::Result<Vec<_>>>()?;
    let set = ExpertSet::new(&experts, model)?;
    let start = match &args.experts.router {
        Some(dir) => router_files::read(dir, &set.names, model, Some(&hash))?,
        None => {
            let gate = GateConfig {
                top_k: args.top_k,
                scale: args.scale,
                null_expert: args.null_expert,
                ..GateConfig::default()
            };
            let config = RouterConfig { input: args.input, gate, ..RouterConfig::default() };
            Router::init(&config, &set.names, model, common.seed)?
        }
    };
    let config = common.config();
    let job = Job {
        engine: &opened.engine,
        rows: &rows,
        config: &config,
        seed: common.seed,
        memory: common.memory(),
        keep_states: true,
        state: None,
    };
    let outcome = train_router(job, &set, &start, args.domain_loss, &mut common.progress())?;
    let Outcome::Done(trained, history) = outcome else {
        return Err(usage_error("the training was stopped"));
    };
    let output = output_directory::create(&common.out, &inputs, common.force, NO_DIRECTORIES)?;
    router_files::write(&trained, &hash, output.path())?;
    output.commit()?;
    common.report(&history, &cut)
}
