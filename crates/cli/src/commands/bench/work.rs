//! The work of each row, and the least time that it could take.

use std::sync::Arc;

use candle_core::{Device, Var};
use mixse_kernels::{argmax, ceilings::Ceilings};
use mixse_model::{
    cache::SequenceId,
    config::ModelConfig,
    decoder::{Decoder, Memory, Ragged, Session, Target, Wanted},
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
    pub(super) decoder: &'a Decoder,
    /// Experts of a mixture whose row does not say it.
    pub(super) experts: usize,
    /// What training keeps.
    pub(super) memory: Memory,
}

impl Bench<'_> {
    /// Seconds of one row's work.
    pub(super) fn seconds(&self, row: &Row) -> anyhow::Result<f64> {
        let context = self.decoder.config.context_length;
        let prompt = if matches!(row.work, Work::Generate | Work::MixtureGenerate) { PROMPT } else { 0 };
        if prompt + row.tokens > context {
            return Err(usage_error(format!("{row} is longer than the model's context of {context} tokens")));
        }
        let experts = row.experts.unwrap_or(self.experts);
        match row.work {
            Work::Prefill => self.prefill(row),
            Work::Generate => self.generate(row, None),
            Work::MixtureGenerate => self.generate(row, Some(&self.mixture(experts, false)?.0)),
            Work::LoraTrain => {
                let (set, vars) = self.new_experts(1)?.trainable()?;
                self.train(row, &Mixture::all(set), vars, Wanted { experts: true, gates: false })
            }
            Work::RouterTrain => {
                let (mixture, vars) = self.mixture(experts, true)?;
                self.train(row, &mixture, vars, Wanted { experts: false, gates: true })
            }
        }
    }

    /// Seconds that the frozen weights' part of the work takes at the machine's ceilings. Attention, norms and experts are
    /// not counted: they are what the shares are short of, among other things.
    pub(super) fn least_seconds(&self, row: &Row, ceilings: &Ceilings) -> f64 {
        let config = &self.decoder.config;
        let arithmetic = ceilings.amx_gflops.unwrap_or(0.0).max(ceilings.fma_gflops) * 1e9;
        let reads = self.decoder.weight_bytes() as f64 / (ceilings.read_gbytes * 1e9);
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
        let top = self.decoder.config.vocab_size.clamp(6, 4000);
        (0..count).map(|i| 5 + random::below(top - 5, 1, 2, i as u64) as u32).collect()
    }

    fn prefill(&self, row: &Row) -> anyhow::Result<f64> {
        let (rows, len) = (row.rows, row.tokens);
        let ids = self.ids(rows * len);
        let lasts: Vec<usize> = (0..rows).map(|row| (row + 1) * len - 1).collect();
        median(|| {
            let mut session = Session::new(self.decoder, None);
            let work: Vec<(SequenceId, &[u32])> =
                ids.chunks(len).map(|part| (session.start(), part)).collect();
            let hidden = session.step(&work)?;
            self.decoder.logits(&hidden, &lasts)?;
            Ok(())
        })
    }

    /// Greedy continuation of prompts, the prompts' time included.
    fn generate(&self, row: &Row, mixture: Option<&Mixture>) -> anyhow::Result<f64> {
        median(|| {
            let mut batch = Greedy::start(self, mixture, row.rows, PROMPT);
            (0..row.tokens).try_for_each(|_| batch.step())
        })
    }

    /// Experts with random factors, all linear modules, r = 8.
    fn new_experts(&self, count: usize) -> anyhow::Result<ExpertSet> {
        let config = &self.decoder.config;
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
        Ok(ExpertSet::new(&experts, config, &Device::Cpu)?)
    }

    /// A routed mixture; with `trainable` its router's variables are on the tape.
    fn mixture(&self, experts: usize, trainable: bool) -> anyhow::Result<(Mixture, Vec<Var>)> {
        let experts = self.new_experts(experts)?;
        let router =
            Router::init(&RouterConfig::default(), &experts.names, &self.decoder.config, 1, &Device::Cpu)?;
        let (router, vars) = if trainable { router.trainable()? } else { (router, Vec::new()) };
        Ok((Mixture { experts, routing: Routing::Learned(router) }, vars))
    }

    /// Forward and backward over rows of tokens, all of them targets but the first of each row. `_vars` keeps the
    /// variables alive.
    fn train(&self, row: &Row, mixture: &Mixture, _vars: Vec<Var>, wanted: Wanted) -> anyhow::Result<f64> {
        let (rows, len) = (row.rows, row.tokens);
        let ids = self.ids(rows * len);
        let ragged = Arc::new(Ragged::whole(vec![len; rows]));
        let targets: Vec<Target> = (0..rows * len)
            .filter(|row| row % len + 1 < len)
            .map(|row| Target { row, token: ids[row + 1] })
            .collect();
        median(|| {
            let hidden = self.decoder.hidden(&ids, &ragged, Some(mixture), self.memory, wanted)?;
            self.decoder.loss(&hidden, &targets, 1.0 / targets.len().max(1) as f32)?.backward()?;
            Ok(())
        })
    }
}

/// Sequences of the same length that are continued greedily.
pub(super) struct Greedy<'a> {
    decoder: &'a Decoder,
    pub(super) session: Session<'a>,
    sequences: Vec<SequenceId>,
    /// What the model has not read yet, of each sequence.
    pending: Vec<Vec<u32>>,
}

impl<'a> Greedy<'a> {
    pub(super) fn start(bench: &Bench<'a>, mixture: Option<&'a Mixture>, rows: usize, prompt: usize) -> Self {
        let mut session = Session::new(bench.decoder, mixture);
        let sequences = (0..rows).map(|_| session.start()).collect();
        let pending = bench.ids(rows * prompt).chunks(prompt).map(<[u32]>::to_vec).collect();
        Self { decoder: bench.decoder, session, sequences, pending }
    }

    /// Reads what is pending and chooses the next token of each sequence.
    pub(super) fn step(&mut self) -> anyhow::Result<()> {
        let work: Vec<(SequenceId, &[u32])> =
            self.sequences.iter().copied().zip(self.pending.iter().map(|p| &p[..])).collect();
        let hidden = self.session.step(&work)?;
        let len = self.pending.first().map_or(0, Vec::len);
        let lasts: Vec<usize> = (0..self.sequences.len()).map(|row| (row + 1) * len - 1).collect();
        let logits = self.decoder.logits(&hidden, &lasts)?;
        self.pending = logits.chunks(self.decoder.config.vocab_size).map(|row| vec![argmax(row)]).collect();
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
