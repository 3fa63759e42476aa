//! `mixse bench`: what this machine does with a model, beside what it could do at most.

use std::{fmt, sync::Arc, time::Instant};

use candle_core::Device;
use clap::Args;
use mixse_kernels::{argmax, ceilings};
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
use serde::Serialize;

use super::opened::ModelFlags;
use crate::{
    args::JsonFlag,
    machine::{Machine, peak_memory},
    output::{note, print},
};

/// Measure prefill, generation and training on this machine.
///
/// Every row is the median of three runs after a warm-up. Beside it stands its share of the machine's own ceiling, which
/// is measured on the spot: arithmetic for prefill and training, memory reads for generation with few rows.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse bench
  mixse bench --model gemma-3-270m --precision int8 --json
  mixse bench --only prefill_8x512,lora_train_8x256")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelFlags,
    /// Measure only these rows.
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    only: Vec<String>,
    /// Experts of the mixture rows.
    #[arg(long, default_value_t = 4)]
    experts: usize,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    precision: mixse_model::decoder::Precision,
    ceilings: CeilingFigures,
    rows: serde_json::Map<String, serde_json::Value>,
    peak_rss_mb: Option<f64>,
}

#[derive(Serialize)]
struct CeilingFigures {
    instruction_set: String,
    threads: usize,
    /// f32 multiply-adds, both counted, in GFLOP/s.
    fma_gflops: f64,
    /// bf16 products in AMX tiles, where there are any.
    amx_gflops: Option<f64>,
    /// Memory reads in GB/s.
    read_gbytes: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {} threads, {}",
            self.machine.processor, self.ceilings.threads, self.ceilings.instruction_set
        )?;
        writeln!(
            f,
            "ceilings: {:.0} GFLOP/s f32, {:.1} GB/s reads{}",
            self.ceilings.fma_gflops,
            self.ceilings.read_gbytes,
            self.ceilings.amx_gflops.map_or(String::new(), |g| format!(", {g:.0} GFLOP/s AMX bf16"))
        )?;
        for (name, row) in &self.rows {
            let number = |key: &str| row.get(key).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
            let (tokens, share) = (number("tokens_per_s"), 100.0 * number("share_of_ceiling"));
            writeln!(f, "{name:24} {tokens:>10.1} tokens/s {share:>6.1} % of its ceiling")?;
        }
        if let Some(mb) = self.peak_rss_mb {
            writeln!(f, "peak memory {mb:.0} MB")?;
        }
        Ok(())
    }
}

/// What bounds a row.
#[derive(Clone, Copy)]
enum Bound {
    /// Floating-point operations of a token.
    Arithmetic(f64),
    /// Bytes of weights read for a step of `rows` tokens, and operations of a token.
    Memory { bytes: f64, rows: f64, flops: f64 },
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let opened = args.model.open_base()?;
    let ceilings = ceilings::measure();
    let bench = Bench { decoder: &opened.decoder, experts: args.experts.max(1) };
    let mut rows = serde_json::Map::new();
    for name in ROWS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        note(format_args!("{name} …"));
        let (speed, bound) = bench.row(name)?;
        let arithmetic = ceilings.amx_gflops.unwrap_or(ceilings.fma_gflops).max(ceilings.fma_gflops) * 1e9;
        let most = match bound {
            Bound::Arithmetic(flops) => arithmetic / flops,
            Bound::Memory { bytes, rows, flops } => {
                (ceilings.read_gbytes * 1e9 / bytes * rows).min(arithmetic / flops)
            }
        };
        rows.insert(
            (*name).to_owned(),
            serde_json::json!({ "tokens_per_s": round(speed), "share_of_ceiling": (speed / most * 1e4).round() / 1e4 }),
        );
    }
    let report = Report {
        machine: Machine::detect(),
        precision: args.model.precision,
        ceilings: CeilingFigures {
            instruction_set: format!("{:?}", ceilings.isa).to_lowercase(),
            threads: ceilings.threads,
            fma_gflops: round(ceilings.fma_gflops),
            amx_gflops: ceilings.amx_gflops.map(round),
            read_gbytes: round(ceilings.read_gbytes),
        },
        rows,
        peak_rss_mb: peak_memory().map(|bytes| round(bytes as f64 / 1e6)),
    };
    print(args.json.format(), &report)
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

const ROWS: &[&str] = &[
    "prefill_8x512",
    "generate_1x64",
    "generate_16x64",
    "generate_64x64",
    "lora_train_8x256",
    "router_train_8x256",
    "mixture_generate_64x64",
];

struct Bench<'a> {
    decoder: &'a Decoder,
    experts: usize,
}

/// Operations of one token in the linear modules of the blocks, forward, both additions and multiplications.
fn block_flops(config: &ModelConfig) -> f64 {
    let weights: usize = Module::ALL.iter().map(|m| m.shape(config)).map(|(k, n)| k * n).sum();
    2.0 * (weights * config.blocks.len()) as f64
}

fn head_flops(config: &ModelConfig) -> f64 {
    2.0 * (config.hidden_size * config.vocab_size) as f64
}

impl Bench<'_> {
    /// Tokens a second of one row, and what bounds it.
    fn row(&self, name: &str) -> anyhow::Result<(f64, Bound)> {
        let config = &self.decoder.config;
        let (blocks, head) = (block_flops(config), head_flops(config));
        let generation = |rows: usize| Bound::Memory {
            bytes: self.decoder.weight_bytes() as f64,
            rows: rows as f64,
            flops: blocks + head,
        };
        Ok(match name {
            "prefill_8x512" => (self.prefill(8, 512)?, Bound::Arithmetic(blocks)),
            "generate_1x64" => (self.generate(1, None)?, generation(1)),
            "generate_16x64" => (self.generate(16, None)?, generation(16)),
            "generate_64x64" => (self.generate(64, None)?, generation(64)),
            // Frozen weights have no gradient: the backward costs as much as the forward.
            "lora_train_8x256" => (self.train(false)?, Bound::Arithmetic(2.0 * (blocks + head))),
            "router_train_8x256" => (self.train(true)?, Bound::Arithmetic(2.0 * (blocks + head))),
            _ => (self.generate(64, Some(&self.mixture(false)?.0))?, generation(64)),
        })
    }

    /// Random token ids in 5..4000, as the reference's benchmark draws them.
    fn ids(&self, count: usize) -> Vec<u32> {
        let top = self.decoder.config.vocab_size.clamp(6, 4000);
        (0..count).map(|i| 5 + random::below(top - 5, 1, 2, i as u64) as u32).collect()
    }

    fn prefill(&self, rows: usize, len: usize) -> anyhow::Result<f64> {
        let ids = self.ids(rows * len);
        let lasts: Vec<usize> = (0..rows).map(|row| (row + 1) * len - 1).collect();
        median(rows * len, || {
            let mut session = Session::new(self.decoder, None);
            let work: Vec<(SequenceId, &[u32])> =
                ids.chunks(len).map(|part| (session.start(), part)).collect();
            let hidden = session.step(&work)?;
            self.decoder.logits(&hidden, &lasts)?;
            Ok(())
        })
    }

    /// Greedy continuation of `rows` prompts of 64 tokens by 64 tokens, the prompts' time included.
    fn generate(&self, rows: usize, mixture: Option<&Mixture>) -> anyhow::Result<f64> {
        let prompts = self.ids(rows * 64);
        let vocabulary = self.decoder.config.vocab_size;
        median(rows * 64, || {
            let mut session = Session::new(self.decoder, mixture);
            let sequences: Vec<SequenceId> = (0..rows).map(|_| session.start()).collect();
            let mut pending: Vec<Vec<u32>> = prompts.chunks(64).map(<[u32]>::to_vec).collect();
            for _ in 0..64 {
                let work: Vec<(SequenceId, &[u32])> =
                    sequences.iter().copied().zip(pending.iter().map(|p| &p[..])).collect();
                let hidden = session.step(&work)?;
                let len = pending[0].len();
                let lasts: Vec<usize> = (0..rows).map(|row| (row + 1) * len - 1).collect();
                let logits = self.decoder.logits(&hidden, &lasts)?;
                pending = logits.chunks(vocabulary).map(|row| vec![argmax(row)]).collect();
            }
            Ok(())
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
    fn mixture(&self, trainable: bool) -> anyhow::Result<(Mixture, Vec<candle_core::Var>)> {
        let experts = self.new_experts(self.experts)?;
        let router =
            Router::init(&RouterConfig::default(), &experts.names, &self.decoder.config, 1, &Device::Cpu)?;
        let (router, vars) = if trainable { router.trainable()? } else { (router, Vec::new()) };
        Ok((Mixture { experts, routing: Routing::Learned(router) }, vars))
    }

    /// Forward and backward over 8 rows of 256 tokens, all of them targets but the first of each row.
    fn train(&self, router: bool) -> anyhow::Result<f64> {
        let (rows, len) = (8, 256);
        let ids = self.ids(rows * len);
        let ragged = Arc::new(Ragged::whole(vec![len; rows]));
        let targets: Vec<Target> = (0..rows * len)
            .filter(|row| row % len + 1 < len)
            .map(|row| Target { row, token: ids[row + 1] })
            .collect();
        let (mixture, _vars) = if router {
            self.mixture(true)?
        } else {
            let (set, vars) = self.new_experts(1)?.trainable()?;
            (Mixture::all(set), vars)
        };
        let wanted = Wanted { experts: !router, gates: router };
        median(rows * len, || {
            let hidden = self.decoder.hidden(&ids, &ragged, Some(&mixture), Memory::Keep, wanted)?;
            self.decoder.loss(&hidden, &targets, 1.0 / targets.len() as f32)?.backward()?;
            Ok(())
        })
    }
}

/// Tokens a second: the median of three runs after a warm-up.
fn median(tokens: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    work()?;
    let mut times = Vec::with_capacity(3);
    for _ in 0..3 {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(tokens as f64 / times[1])
}
