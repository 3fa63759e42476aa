//! `mixse bench`: what this machine does with a model, beside what it could do at most.

mod growth;
mod row;
mod work;

use std::{fmt, time::Instant};

use clap::{Args, ValueEnum};
use mixse_kernels::ceilings::{self, Ceilings};
use mixse_model::{
    engine::{Memory, Precision},
    memory,
};
use serde::Serialize;

use self::{
    growth::Growth,
    row::{Row, Work},
    work::Bench,
};
use super::opened::ModelFlags;
use crate::{
    args::JsonFlag,
    config::Device,
    machine::{Machine, peak_memory, reset_peak_memory},
    output::{note, print, usage_error},
};

/// Measure prefill, generation and training on this machine.
///
/// Every row is the median of three runs after a warm-up. Beside it stands its share of the machine's own ceiling, which
/// is measured on the spot: the time that the row's multiply-adds or its memory reads, whichever take longer, would need
/// at the machine's best rate; a prompt counts where a row reads one.
#[derive(Debug, Args)]
#[command(after_help = "\
Rows are named WORK_ROWSxTOKENS, for mixtures with the number of experts behind (_32e). WORK is prefill, generate (each
prompt has 64 tokens), lora_train, router_train or mixture_generate; any numbers can be asked for.

Examples:
  mixse bench
  mixse bench --model gemma-3-270m --precision int8 --json
  mixse bench --only prefill_8x512,mixture_generate_16x64_8e
  mixse bench --only lora_train_8x256 --memory recompute --json     its own peak of memory
  mixse bench --growth --json                                       1 to 64 rows, 64 to 4096 tokens")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelFlags,
    /// Measure only these rows.
    #[arg(long, visible_alias = "rows", value_delimiter = ',', value_name = "ROW")]
    only: Vec<Row>,
    /// Experts of the mixture rows that do not say it themselves.
    #[arg(long, default_value_t = 4)]
    experts: usize,
    /// What training keeps between a block's input and output.
    #[arg(long, value_enum, default_value_t = Kept::Keep)]
    memory: Kept,
    /// Measure how time and memory grow with the rows of a batch and with the length of a sequence.
    #[arg(long, conflicts_with = "only")]
    growth: bool,
    #[command(flatten)]
    json: JsonFlag,
}

/// [`Memory`] as an argument.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kept {
    /// Everything between a block's input and output.
    Keep,
    /// The block's input alone; the block is run again in the backward.
    Recompute,
}

#[derive(Serialize)]
struct Report {
    machine: Machine,
    precision: Precision,
    ceilings: CeilingFigures,
    #[serde(serialize_with = "by_name")]
    rows: Vec<(Row, Measured)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth: Option<Growth>,
    /// The most memory that the process has held, loading included.
    peak_rss_mb: Option<f64>,
}

/// A row's figures.
#[derive(Serialize)]
struct Measured {
    tokens_per_s: f64,
    share_of_ceiling: f64,
    /// Where it ran.
    device: &'static str,
    /// What the processor ran it with.
    instruction_set: String,
    /// Speed as a share of the same work's without a mixture, where that was measured too.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_to_plain: Option<f64>,
    /// The most memory held during this row, the model included.
    peak_rss_mb: Option<f64>,
}

fn by_name<S: serde::Serializer>(rows: &[(Row, Measured)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(rows.iter().map(|(row, measured)| (row.to_string(), measured)))
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

impl From<Ceilings> for CeilingFigures {
    fn from(ceilings: Ceilings) -> Self {
        Self {
            instruction_set: ceilings.isa.to_string(),
            threads: ceilings.threads,
            fma_gflops: round(ceilings.fma_gflops, 1),
            amx_gflops: ceilings.amx_gflops.map(|gflops| round(gflops, 1)),
            read_gbytes: round(ceilings.read_gbytes, 1),
        }
    }
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
        for (row, measured) in &self.rows {
            let Measured {
                tokens_per_s,
                share_of_ceiling,
                device,
                instruction_set,
                ratio_to_plain,
                peak_rss_mb,
            } = measured;
            write!(
                f,
                "{:28} {tokens_per_s:>9.1} tokens/s {:>6.1} % of its ceiling   {device}, {instruction_set}",
                row.to_string(),
                100.0 * share_of_ceiling
            )?;
            if let Some(mb) = peak_rss_mb {
                write!(f, " {mb:>6.0} MB")?;
            }
            if let Some(ratio) = ratio_to_plain {
                write!(f, "   {ratio:.2} x without a mixture")?;
            }
            writeln!(f)?;
        }
        if let Some(growth) = &self.growth {
            write!(f, "{growth}")?;
        }
        if let Some(mb) = self.peak_rss_mb {
            writeln!(f, "peak memory {mb:.0} MB")?;
        }
        Ok(())
    }
}

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.model.device != Device::Cpu {
        let device = args.model.device.name();
        return Err(usage_error(format!(
            "mixse bench measures the processor beside its own ceilings; it cannot measure {device}"
        )));
    }
    let opened = args.model.open_base()?;
    let ceilings = ceilings::measure();
    let bench = Bench {
        engine: &opened.engine,
        experts: args.experts.max(1),
        memory: match args.memory {
            Kept::Keep => Memory::Keep,
            Kept::Recompute => Memory::Recompute,
        },
    };
    let mut peaks = vec![peak_memory()];
    let mut rows = Vec::new();
    let mut growth = None;
    if args.growth {
        growth = Some(growth::measure(&bench)?);
    } else {
        let mut usual = row::usual();
        if args.only.is_empty() && !args.model.precision.trains() {
            note(format_args!("no training rows: {} is for generation", args.model.precision.name()));
            usual.retain(|row| !row.work.trains());
        }
        for row in if args.only.is_empty() { &usual } else { &args.only } {
            note(format_args!("{row} …"));
            memory::release();
            let alone = reset_peak_memory();
            let seconds = bench.seconds(row)?;
            let peak = peak_memory();
            peaks.push(peak);
            rows.push((
                *row,
                Measured {
                    tokens_per_s: round((row.rows * row.tokens) as f64 / seconds, 1),
                    share_of_ceiling: round(bench.least_seconds(row, &ceilings) / seconds, 4),
                    device: opened.engine.backend(),
                    instruction_set: ceilings.isa.to_string(),
                    ratio_to_plain: None,
                    peak_rss_mb: peak.filter(|_| alone).map(megabytes),
                },
            ));
        }
        compare_with_plain(&mut rows);
    }
    peaks.push(peak_memory());
    let report = Report {
        machine: Machine::detect(),
        precision: args.model.precision,
        ceilings: ceilings.into(),
        rows,
        growth,
        peak_rss_mb: peaks.into_iter().flatten().max().map(megabytes),
    };
    print(args.json.format(), &report)
}

/// Sets mixtures beside the same work without them.
fn compare_with_plain(rows: &mut [(Row, Measured)]) {
    let speeds: Vec<(Row, f64)> = rows.iter().map(|(row, measured)| (*row, measured.tokens_per_s)).collect();
    for (row, measured) in rows {
        let plain = match row.work {
            Work::MixtureGenerate => Work::Generate,
            Work::RouterTrain => Work::LoraTrain,
            Work::Prefill | Work::Generate | Work::LoraTrain => continue,
        };
        let plain = Row { work: plain, experts: None, ..*row };
        measured.ratio_to_plain = speeds
            .iter()
            .find(|(other, _)| *other == plain)
            .map(|(_, speed)| round(measured.tokens_per_s / speed, 3));
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

fn megabytes(bytes: u64) -> f64 {
    round(bytes as f64 / 1e6, 1)
}

/// Seconds of a piece of work: the median of three runs after a warm-up.
fn median(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    work()?;
    let mut times = Vec::with_capacity(3);
    for _ in 0..3 {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}
