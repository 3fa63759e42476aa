//! Training of experts and routers on a frozen base: AdamW on the language-model loss of the responses.
//!
//! A run is a pure function of the base, the starting parameters, the rows and [`TrainConfig`]: batches come from
//! counter-based random numbers, sums are taken in a fixed order, and a state written to disk holds everything, so that a
//! training that was killed continues bit for bit.

mod batch;
mod checks;
mod ridge;
mod schedule;
mod state;
mod validation;

use std::{ops::ControlFlow, path::Path, sync::Arc};

use mixse_model::{
    engine::{DomainTarget, Engine, Memory, Parameters, Step, Trained, Trainer, TrainingPass},
    expert::Expert,
    expert_set::ExpertSet,
    memory,
    mixture::{Mixture, Routing},
    router::Router,
};
use serde::{Deserialize, Serialize};

pub use batch::{Cut, TrainRow, read_rows};
pub use checks::{CheckFailure, check_expert};
pub use ridge::{DomainMoments, Moments, RidgeConfig, fit as fit_ridge};
pub use schedule::Schedule;
pub use state::discard_damaged;
pub use validation::{HeldOut, Validated};

use batch::{Placed, Plan};
use state::State;
use validation::Split;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model, an adapter or a file.
    #[error(transparent)]
    Model(#[from] mixse_model::Error),
    /// The rows cannot be trained on.
    #[error("{0}")]
    Rows(String),
    /// The settings cannot be used.
    #[error("training settings: {0}")]
    Config(String),
    /// The loss stopped being a number.
    #[error(
        "the loss became {loss} at step {step}: lower the learning rate (now {rate}) or look at the rows of that step"
    )]
    Diverged {
        /// Step, from 1.
        step: usize,
        /// The loss.
        loss: f32,
        /// The learning rate.
        rate: f64,
    },
    /// What came out does not do what an expert must do.
    #[error("self-check after training failed: {0}")]
    Check(#[from] CheckFailure),
}

/// The crate-wide result of training.
pub type Result<T> = std::result::Result<T, TrainError>;

/// Settings of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Passes over the rows.
    pub epochs: usize,
    /// Stop after so many optimiser steps, whatever `epochs` says; 0: no such limit.
    pub max_steps: usize,
    /// Rows of one optimiser step.
    pub batch_size: usize,
    /// Rows are cut after so many tokens (prompt and response together).
    pub max_tokens: usize,
    /// New order of the rows in each epoch; false: file order.
    pub shuffle: bool,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Optimiser steps over which the learning rate rises from zero.
    pub warmup_steps: usize,
    /// Gradients are scaled down to this norm; 0: never.
    pub clip_norm: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Rows that are not trained on; the parameters with the lowest loss on them are kept.
    pub validation: HeldOut,
    /// Optimiser steps between two looks at them; 0: one look after every epoch.
    pub validate_every: usize,
    /// The training stops after so many looks without a lower loss; 0: it goes on to its end.
    pub patience: usize,
    /// Tokens of one forward and backward pass: a batch with more is computed in pieces whose gradients are added.
    pub pass_tokens: usize,
    /// A state is written after so many optimiser steps.
    pub save_every: usize,
}

impl Default for TrainConfig {
    /// The paper's: 3 epochs of batches of 32 at 3e-4.
    fn default() -> Self {
        Self {
            learning_rate: 3e-4,
            epochs: 3,
            max_steps: 0,
            batch_size: 32,
            max_tokens: 512,
            shuffle: true,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            clip_norm: 0.0,
            weight_decay: 0.0,
            validation: HeldOut::None,
            validate_every: 0,
            patience: 0,
            pass_tokens: 2048,
            save_every: 20,
        }
    }
}

impl TrainConfig {
    /// Everything that is wrong with the settings; empty when they are fine.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut need = |fine: bool, what: String| {
            if !fine {
                faults.push(what);
            }
        };
        need(
            self.learning_rate.is_finite() && self.learning_rate > 0.0,
            format!("learning_rate = {} must be above 0", self.learning_rate),
        );
        need(
            self.epochs > 0 || self.max_steps > 0,
            "epochs and max_steps are both 0: nothing would be trained".into(),
        );
        need(self.batch_size > 0, "batch_size = 0 must be at least 1".into());
        need(self.max_tokens >= 2, format!("max_tokens = {} must be at least 2", self.max_tokens));
        need(self.pass_tokens > 0, "pass_tokens = 0 must be at least 1".into());
        need(self.save_every > 0, "save_every = 0 must be at least 1".into());
        need(
            self.clip_norm.is_finite() && self.clip_norm >= 0.0,
            format!("clip_norm = {} must be 0 or above", self.clip_norm),
        );
        need(
            (0.0..1.0).contains(&self.weight_decay),
            format!("weight_decay = {} must lie in 0..1", self.weight_decay),
        );
        faults.extend(self.validation.fault());
        if self.validation == HeldOut::None && self.patience > 0 {
            faults.push(format!("patience = {} needs rows to look at: set validation", self.patience));
        }
        faults
    }
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Optimiser steps done, from 1.
    pub step: usize,
    /// Optimiser steps in all.
    pub steps: usize,
    /// What is minimised, before the step: the mean loss over the batch's target tokens, and the domain loss where there is one.
    pub loss: f32,
    /// Tokens that went through the model in this step.
    pub tokens: usize,
}

/// What a training needs besides settings.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The frozen base.
    pub engine: &'a Engine,
    /// Rows to train on.
    pub rows: &'a [TrainRow],
    /// Settings.
    pub config: &'a TrainConfig,
    /// Of the order of rows.
    pub seed: u64,
    /// What a pass keeps for its backward.
    pub memory: Memory,
    /// Keep the base's final hidden states of all rows from one epoch to the next, where the router reads them: 4 bytes a
    /// number. It changes time and memory, not results.
    pub keep_states: bool,
    /// Where the state is kept while training; `None`: it cannot be continued. The caller removes it when the result is safe.
    pub state: Option<&'a Path>,
}

/// What a training minimises, and by moving what.
#[derive(Debug, Clone, Copy)]
struct Objective {
    trained: Trained,
    /// Peak learning rate of the router; the experts' is the job's.
    router_rate: f64,
    /// Weight of the router's cross-entropy against the rows' domains (mean over tokens and blocks); 0: it is not computed.
    domain_loss: f64,
    /// Rate at which inputs of adapters are dropped.
    dropout: f64,
}

/// Called after every step; `Break` stops the training after the state was written.
pub type Progress<'p> = &'p mut dyn FnMut(StepReport) -> ControlFlow<()>;

/// How a training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<T> {
    /// The result, and how it came about.
    Done(T, History),
    /// Stopped by the progress callback; the state holds what was done.
    Stopped,
}

/// The losses of a training.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// Of every step.
    pub losses: Vec<f32>,
    /// Of the held-out rows, from the start on; empty without any.
    pub validation: Vec<Validated>,
    /// Steps after which the result was reached.
    pub kept_step: usize,
}

/// Trains an expert from the values it has. Dropout is the one that its configuration states.
pub fn train_expert(job: Job<'_>, start: &Expert, progress: Progress<'_>) -> Result<Outcome<Expert>> {
    let mixture = Mixture::all(ExpertSet::new(std::slice::from_ref(start), &job.engine.config)?);
    let objective = Objective {
        trained: Trained { experts: true, router: false },
        router_rate: 0.0,
        domain_loss: 0.0,
        dropout: start.config.dropout,
    };
    Ok(match optimise(job, &mixture, objective, progress)? {
        Outcome::Done(mixture, history) => Outcome::Done(mixture.experts.extract(0, start), history),
        Outcome::Stopped => Outcome::Stopped,
    })
}

/// Trains a router over frozen experts. `domain_loss` is the weight of the router's cross-entropy against the rows' domains, averaged
/// over tokens and blocks, beside the language-model loss.
pub fn train_router(
    job: Job<'_>,
    experts: &ExpertSet,
    start: &Router,
    domain_loss: f64,
    progress: Progress<'_>,
) -> Result<Outcome<Router>> {
    let mixture = Mixture { experts: experts.clone(), routing: Routing::Learned(start.clone()) };
    let objective = Objective {
        trained: Trained { experts: false, router: true },
        router_rate: job.config.learning_rate,
        domain_loss,
        dropout: 0.0,
    };
    Ok(match optimise(job, &mixture, objective, progress)? {
        Outcome::Done(mixture, history) => Outcome::Done(router_of(mixture.routing, start), history),
        Outcome::Stopped => Outcome::Stopped,
    })
}

/// Trains experts and router together (the paper's joint-training baseline). The job's learning rate is the experts';
/// the router has its own peak, with the same schedule. `domain_loss` is as in [`train_router`].
pub fn train_jointly(
    job: Job<'_>,
    experts: &[Expert],
    start: &Router,
    router_rate: f64,
    domain_loss: f64,
    progress: Progress<'_>,
) -> Result<Outcome<(Vec<Expert>, Router)>> {
    let dropout = experts.first().map_or(0.0, |expert| expert.config.dropout);
    if let Some(other) = experts.iter().find(|expert| expert.config.dropout != dropout) {
        return Err(TrainError::Config(format!(
            "experts that are trained together have one dropout; {} has {} and {} has {dropout}",
            other.name, other.config.dropout, experts[0].name
        )));
    }
    let set = ExpertSet::new(experts, &job.engine.config)?;
    let mixture = Mixture { experts: set, routing: Routing::Learned(start.clone()) };
    let trained = Trained { experts: true, router: true };
    let objective = Objective { trained, router_rate, domain_loss, dropout };
    Ok(match optimise(job, &mixture, objective, progress)? {
        Outcome::Done(Mixture { experts: set, routing }, history) => {
            let trained = experts.iter().enumerate().map(|(index, like)| set.extract(index, like));
            Outcome::Done((trained.collect(), router_of(routing, start)), history)
        }
        Outcome::Stopped => Outcome::Stopped,
    })
}

/// The router of a mixture that was trained from `start`.
fn router_of(routing: Routing, start: &Router) -> Router {
    match routing {
        Routing::Learned(router) => router,
        _ => start.clone(),
    }
}

/// The optimiser loop. The result is the mixture with the values that were reached.
fn optimise(
    job: Job<'_>,
    mixture: &Mixture,
    objective: Objective,
    progress: Progress<'_>,
) -> Result<Outcome<Mixture>> {
    let faults = job.config.faults();
    if !faults.is_empty() {
        return Err(TrainError::Config(faults.join("; ")));
    }
    batch::check_rows(job.rows, job.config.max_tokens)?;
    batch::check_context(job.rows, job.config.max_tokens, job.engine.config.context_length)?;
    if objective.domain_loss > 0.0 {
        batch::check_domains(job.rows)?;
    }
    let Split { trained, held_out } = Split::new(job.rows, job.config, job.seed)?;
    let plan = Plan::new(trained.len(), job.config, job.seed);
    let keep_states = job.keep_states && job.config.epochs != 1;
    let mut trainer = job.engine.trainer(mixture, objective.trained, job.memory, keep_states)?;
    let trainer = &mut *trainer;
    let mut state = State::load_or_start(&job, trainer)?;
    if !held_out.is_empty() && state.looks.is_empty() {
        state.look(loss(&job, &held_out, trainer)?, trainer)?;
    }
    while state.losses.len() < plan.steps() && !validation::is_over(&state.looks, job.config.patience) {
        let step = state.losses.len();
        let rows: Vec<Placed<'_>> = plan.batch(step).into_iter().map(|index| trained[index]).collect();
        let (loss_before, tokens) = gradients(&job, objective, &rows, step, trainer)?;
        let factor = schedule::factor(job.config.schedule, job.config.warmup_steps, step, plan.steps());
        if !loss_before.is_finite() {
            let rate = job.config.learning_rate * factor;
            return Err(TrainError::Diverged { step: step + 1, loss: loss_before, rate });
        }
        trainer.step(&Step {
            number: step as u32 + 1,
            expert_rate: job.config.learning_rate,
            router_rate: objective.router_rate,
            factor,
            clip_norm: job.config.clip_norm,
            weight_decay: job.config.weight_decay,
        })?;
        state.losses.push(loss_before);
        if !held_out.is_empty() && plan.is_look(step + 1) {
            state.look(loss(&job, &held_out, trainer)?, trainer)?;
        }
        let report = StepReport { step: step + 1, steps: plan.steps(), loss: loss_before, tokens };
        let stop = progress(report).is_break();
        if (step + 1) % job.config.save_every == 0 || stop {
            state.save(&job, trainer)?;
        }
        if stop {
            return Ok(Outcome::Stopped);
        }
    }
    let kept_step = state.keep(trainer)?;
    let result = with_values(mixture, objective.trained, trainer.read(Parameters::Values)?);
    memory::release();
    Ok(Outcome::Done(result, History { losses: state.losses, validation: state.looks, kept_step }))
}

/// A mixture with what was trained of it, in the trainer's order.
fn with_values(mixture: &Mixture, trained: Trained, values: Vec<Vec<f32>>) -> Mixture {
    let mut mixture = mixture.clone();
    let mut values = values.into_iter().map(Arc::new);
    if trained.experts {
        mixture.experts.params.iter_mut().zip(values.by_ref()).for_each(|(place, values)| *place = values);
    }
    if let (true, Routing::Learned(router)) = (trained.router, &mut mixture.routing) {
        router.weights.iter_mut().chain(&mut router.bias).zip(values).for_each(|(place, v)| *place = v);
    }
    mixture
}

/// Adds up the gradients of a batch; returns its mean loss and the tokens that went through the model.
fn gradients(
    job: &Job<'_>,
    objective: Objective,
    rows: &[Placed<'_>],
    step: usize,
    trainer: &mut dyn Trainer,
) -> Result<(f32, usize)> {
    let (mut loss, mut tokens) = (0f64, 0);
    let max_tokens = job.config.max_tokens;
    let targets_in_all: usize = rows.iter().map(|r| r.targets(max_tokens)).sum();
    let tokens_in_all: usize = rows.iter().map(|r| r.tokens(max_tokens)).sum();
    let domain_scale = (objective.domain_loss / tokens_in_all as f64) as f32;
    for pass in batch::passes(rows, max_tokens, job.config.pass_tokens) {
        let batch = batch::ragged(&pass, max_tokens);
        tokens += batch.ids.len();
        let domains = (objective.domain_loss > 0.0)
            .then_some(DomainTarget { labels: &batch.domains, scale: domain_scale });
        let dropout = (objective.dropout > 0.0)
            .then(|| batch::dropout(&pass, max_tokens, objective.dropout, job.seed, step));
        loss += f64::from(trainer.pass(&TrainingPass {
            ids: &batch.ids,
            ragged: &batch.ragged,
            targets: &batch.targets,
            scale: 1.0 / targets_in_all as f32,
            domains,
            dropout: dropout.as_ref(),
            keys: &batch.keys,
        })?);
    }
    Ok((loss as f32, tokens))
}

/// Mean loss over the target tokens of `rows`, without gradients.
fn loss(job: &Job<'_>, rows: &[Placed<'_>], trainer: &mut dyn Trainer) -> Result<f32> {
    let max_tokens = job.config.max_tokens;
    let targets: usize = rows.iter().map(|row| row.targets(max_tokens)).sum();
    let mut total = 0f64;
    for pass in batch::passes(rows, max_tokens, job.config.pass_tokens) {
        let batch = batch::ragged(&pass, max_tokens);
        total += f64::from(trainer.loss(&TrainingPass {
            keys: &batch.keys,
            ..TrainingPass::new(&batch.ids, &batch.ragged, &batch.targets, 1.0 / targets as f32)
        })?);
    }
    Ok(total as f32)
}
