//! How time and memory grow with the rows of a batch and with the length of a sequence.

use std::{fmt, time::Instant};

use mixse_model::memory;
use serde::Serialize;

use super::{
    megabytes, round,
    work::{Bench, Greedy, PROMPT},
};
use crate::{
    machine::{held_memory, peak_memory, reset_peak_memory},
    output::note,
};

/// Rows of the batches that are measured.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Lengths of the sequences that are measured.
const LENGTHS: [usize; 7] = [64, 128, 256, 512, 1024, 2048, 4096];

/// Tokens that are generated at each length.
const TOKENS: usize = 32;

/// What was measured.
#[derive(Serialize)]
pub(super) struct Growth {
    /// By rows: prompts of 64 tokens, continued by 64.
    rows: Vec<Point>,
    /// By length of a single sequence: so many tokens read, then 32 generated.
    lengths: Vec<Point>,
}

/// One batch.
#[derive(Serialize)]
struct Point {
    rows: usize,
    /// Tokens of each row before the first generated one.
    prompt: usize,
    /// Tokens generated of each row.
    generated: usize,
    prefill_tokens_per_s: f64,
    /// One step: a token of every row. The median.
    step_ms: f64,
    generate_tokens_per_s: f64,
    /// Keys and values of all live tokens, as held at the end.
    cache_mb: f64,
    /// The most memory held, above what was held before.
    working_mb: Option<f64>,
}

pub(super) fn measure(bench: &Bench<'_>) -> anyhow::Result<Growth> {
    let context = bench.engine.config.context_length;
    let fits = |len: &usize| len + TOKENS <= context;
    // The first batch also warms up.
    point(bench, 1, PROMPT, TOKENS)?;
    Ok(Growth {
        rows: ROWS.into_iter().map(|rows| point(bench, rows, PROMPT, 64)).collect::<anyhow::Result<_>>()?,
        lengths: LENGTHS
            .into_iter()
            .filter(fits)
            .map(|len| point(bench, 1, len, TOKENS))
            .collect::<anyhow::Result<_>>()?,
    })
}

fn point(bench: &Bench<'_>, rows: usize, prompt: usize, generated: usize) -> anyhow::Result<Point> {
    note(format_args!("{rows} x ({prompt} + {generated}) …"));
    memory::release();
    let before = held_memory();
    let alone = reset_peak_memory();
    let mut batch = Greedy::start(bench, None, rows, prompt)?;
    let start = Instant::now();
    batch.step()?;
    let prefill = start.elapsed().as_secs_f64();
    let mut steps = Vec::with_capacity(generated);
    for _ in 0..generated {
        let start = Instant::now();
        batch.step()?;
        steps.push(start.elapsed().as_secs_f64());
    }
    steps.sort_by(f64::total_cmp);
    let step = steps[steps.len() / 2];
    let working = peak_memory().zip(before).map(|(peak, before)| peak.saturating_sub(before));
    Ok(Point {
        rows,
        prompt,
        generated,
        prefill_tokens_per_s: round((rows * prompt) as f64 / prefill, 1),
        step_ms: round(step * 1e3, 3),
        generate_tokens_per_s: round(rows as f64 / step, 1),
        cache_mb: megabytes(batch.session.cache_bytes() as u64),
        working_mb: working.filter(|_| alone).map(megabytes),
    })
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows  prompt  generated  prefill/s   step ms  generate/s  cache MB  working MB")?;
        for point in self.rows.iter().chain(&self.lengths) {
            writeln!(
                f,
                "{:>4} {:>7} {:>10} {:>10.1} {:>9.2} {:>11.1} {:>9.1} {:>11.1}",
                point.rows,
                point.prompt,
                point.generated,
                point.prefill_tokens_per_s,
                point.step_ms,
                point.generate_tokens_per_s,
                point.cache_mb,
                point.working_mb.unwrap_or(f64::NAN)
            )?;
        }
        Ok(())
    }
}
