//! The work of each row, and the least time that it could take.

use std::sync::Arc;

use mixse_kernels::ceilings::Ceilings;
use mixse_model::{
    config::ModelConfig,
    engine::{Ask, Choice, Draw, Engine, Memory, Ragged, SequenceId, Session, Target, Trained, TrainingPass},
    expert::{Expert, LoraConfig, Module},
    expert_set::ExpertSet,
    mixture::{Mixture, Routing},
    random,
    router::{Router, RouterConfig},
};

use super::{
    median,
    row::{Row, Work},
};
use crate::output::usage_error;

/// Tokens of each prompt that generation starts from.
pub(super) const PROMPT: usize = 64;

/// What is measured.
pub(super) struct Bench<'a> {
    pub(super) engine: &'a Engine,
    /// Experts of a mixture whose row does not say it.
    pub(super) experts: usize,
    /// What training keeps.
    pub(super) memory: Memory,
}

impl Bench<'_> {
    /// Seconds of one row's work.
    pub(super) fn seconds(&self, row: &Row) -> anyhow::Result<f64> {
        let context = self.engine.config.context_length;
        let prompt = if matches!(row.work, Work::Generate | Work::MixtureGenerate) { PROMPT } else { 0 };
        if prompt + row.tokens > context {
            return Err(usage_error(format!("{row} is longer than the model's context of {context} tokens")));
        }
        let experts = row.experts.unwrap_or(self.experts);
        match row.work {
            Work::Prefill => self.prefill(row),
            Work::Generate => self.generate(row, None),
            Work::MixtureGenerate => self.generate(row, Some(&self.mixture(experts)?)),
            Work::LoraTrain => {
                let mixture = Mixture::all(self.new_experts(1)?);
                self.train(row, &mixture, Trained { experts: true, router: false })
            }
            Work::RouterTrain => {
                let mixture = self.mixture(experts)?;
                self.train(row, &mixture, Trained { experts: false, router: true })
            }
        }
    }

    /// Seconds that the frozen weights' part of the work takes at the machine's ceilings. Attention, norms and experts are
    /// not counted: they are what the shares are short of, among other things.
    pub(super) fn least_seconds(&self, row: &Row, ceilings: &Ceilings) -> f64 {
        let config = &self.engine.config;
        let arithmetic = ceilings.amx_gflops.unwrap_or(0.0).max(ceilings.fma_gflops) * 1e9;
        let reads = self.engine.weight_bytes() as f64 / (ceilings.read_gbytes * 1e9);
        let (blocks, head) = (block_flops(config), head_flops(config));
        let (rows, tokens) = (row.rows as f64, row.tokens as f64);
        let pass = |flops: f64| reads.max(flops / arithmetic);
        match row.work {
            Work::Prefill => pass(rows * (tokens * blocks + head)),
            Work::Generate | Work::MixtureGenerate => {
                pass(rows * (PROMPT as f64 * blocks + head)) + (tokens - 1.0) * pass(rows * (blocks + head))
            }
            // Frozen weights have no gradient: the backward costs as much as the forward.
            Work::LoraTrain | Work::RouterTrain => 2.0 * pass(rows * tokens * (blocks + head)),
        }
    }

    /// Random token ids in 5..4000, as the reference's benchmark draws them.
    pub(super) fn ids(&self, count: usize) -> Vec<u32> {
        let top = self.engine.config.vocab_size.clamp(6, 4000);
        (0..count).map(|i| 5 + random::below(top - 5, 1, 2, i as u64) as u32).collect()
    }

    fn prefill(&self, row: &Row) -> anyhow::Result<f64> {
        let (rows, len) = (row.rows, row.tokens);
        let ids = self.ids(rows * len);
        let lasts = greedy_choices(rows, len);
        median(|| {
            let mut session = self.engine.session(None)?;
            let work: Vec<(SequenceId, &[u32])> =
                ids.chunks(len).map(|part| (session.start(), part)).collect();
            session.step(&work, &Ask { choices: &lasts, ..Ask::default() })?;
            Ok(())
        })
    }

    /// Greedy continuation of prompts, the prompts' time included.
    fn generate(&self, row: &Row, mixture: Option<&Mixture>) -> anyhow::Result<f64> {
        median(|| {
            let mut batch = Greedy::start(self, mixture, row.rows, PROMPT)?;
            (0..row.tokens).try_for_each(|_| batch.step())
        })
    }

    /// Experts with random factors, all linear modules, r = 8.
    fn new_experts(&self, count: usize) -> anyhow::Result<ExpertSet> {
        let config = &self.engine.config;
        let mut experts = Vec::with_capacity(count);
        for index in 0..count {
            let mut expert =
                Expert::init(&format!("expert-{index}"), &LoraConfig::default(), config, index as u64)?;
            for factors in expert.blocks.iter_mut().flatten().flatten() {
                let draw = |i: usize| (random::uniform(3, index as u64, i as u64) - 0.5) * 0.02;
                factors.b.iter_mut().enumerate().for_each(|(i, b)| *b = draw(i));
            }
            experts.push(expert);
        }
        Ok(ExpertSet::new(&experts, config)?)
    }

    /// A routed mixture.
    fn mixture(&self, experts: usize) -> anyhow::Result<Mixture> {
        let experts = self.new_experts(experts)?;
        let router = Router::init(&RouterConfig::default(), &experts.names, &self.engine.config, 1)?;
        Ok(Mixture { experts, routing: Routing::Learned(router) })
    }

    /// Forward and backward over rows of tokens, all of them targets but the first of each row.
    fn train(&self, row: &Row, mixture: &Mixture, trained: Trained) -> anyhow::Result<f64> {
        let (rows, len) = (row.rows, row.tokens);
        let ids = self.ids(rows * len);
        let ragged = Arc::new(Ragged::whole(vec![len; rows]));
        let targets: Vec<Target> = (0..rows * len)
            .filter(|row| row % len + 1 < len)
            .map(|row| Target { row, token: ids[row + 1] })
            .collect();
        let mut trainer = self.engine.trainer(mixture, trained, self.memory, false)?;
        let pass = TrainingPass::new(&ids, &ragged, &targets, 1.0 / targets.len().max(1) as f32);
        median(|| {
            trainer.pass(&pass)?;
            Ok(())
        })
    }
}

/// The last row of each of `rows` sequences of `len` new tokens, with its most likely next token.
fn greedy_choices(rows: usize, len: usize) -> Vec<Choice> {
    (0..rows).map(|row| Choice::new((row + 1) * len - 1, Draw::Greedy)).collect()
}

/// Sequences of the same length that are continued greedily.
pub(super) struct Greedy<'a> {
    pub(super) session: Box<dyn Session + 'a>,
    sequences: Vec<SequenceId>,
    /// What the model has not read yet, of each sequence.
    pending: Vec<Vec<u32>>,
}

impl<'a> Greedy<'a> {
    pub(super) fn start(
        bench: &Bench<'a>,
        mixture: Option<&Mixture>,
        rows: usize,
        prompt: usize,
    ) -> anyhow::Result<Self> {
        let mut session = bench.engine.session(mixture)?;
        let sequences = (0..rows).map(|_| session.start()).collect();
        let pending = bench.ids(rows * prompt).chunks(prompt).map(<[u32]>::to_vec).collect();
        Ok(Self { session, sequences, pending })
    }

    /// Reads what is pending and chooses the next token of each sequence.
    pub(super) fn step(&mut self) -> anyhow::Result<()> {
        let work: Vec<(SequenceId, &[u32])> =
            self.sequences.iter().copied().zip(self.pending.iter().map(|p| &p[..])).collect();
        let choices = greedy_choices(work.len(), self.pending.first().map_or(0, Vec::len));
        let found = self.session.step(&work, &Ask { choices: &choices, ..Ask::default() })?;
        self.pending = found.chosen.into_iter().map(|chosen| vec![chosen.token]).collect();
        Ok(())
    }
}

/// Operations of one token in the linear modules of the blocks, forward, both additions and multiplications.
fn block_flops(config: &ModelConfig) -> f64 {
    let weights: usize = Module::ALL.iter().map(|m| m.shape(config)).map(|(k, n)| k * n).sum();
    2.0 * (weights * config.blocks.len()) as f64
}

fn head_flops(config: &ModelConfig) -> f64 {
    2.0 * (config.hidden_size * config.vocab_size) as f64
}
