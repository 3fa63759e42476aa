//! The output head: final norm, logits and what is read from them, without ever holding tokens x vocabulary logits.

use mixse_kernels::{
    Accumulate::Overwrite, Packed, RmsNorm, cap_logits, cross_entropy_chunk, matmul, matmul_transposed, pool,
    rms_norm, rms_norm_backward,
};

use super::buffer::Buffer;
use crate::{
    Error, Result,
    backend::{Choice, Chosen, Target, TokenScore, spec::Ends},
    finite,
};

/// Rows whose logits are held at a time. The output projection is unpacked once for each chunk, so few rows are slow;
/// 128 x 49,152 f32 values are 25 MB.
const CHUNK: usize = 128;

fn norm(ends: &Ends<Packed>) -> RmsNorm<'_> {
    RmsNorm { weight: &ends.norm, eps: ends.eps, plus_one: ends.plus_one }
}

/// The final norm of `x [rows, d]`.
pub(crate) fn final_norm(ends: &Ends<Packed>, x: &[f32], y: &mut [f32]) {
    rms_norm(x, x.len() / ends.d(), norm(ends), y);
}

/// Some rows of `x [rows, d]`, one after another.
fn pick(x: &[f32], d: usize, rows: impl ExactSizeIterator<Item = usize>) -> Buffer {
    let mut picked = Buffer::new(rows.len() * d);
    rows.zip(picked.chunks_exact_mut(d)).for_each(|(row, to)| to.copy_from_slice(&x[row * d..(row + 1) * d]));
    picked
}

/// Logits `[rows, vocabulary]` of some rows of the last block's output.
pub(crate) fn logits(
    ends: &Ends<Packed>,
    x: &[f32],
    rows: impl ExactSizeIterator<Item = usize>,
    logits: &mut [f32],
) {
    let count = rows.len();
    let picked = pick(x, ends.d(), rows);
    let mut normed = Buffer::new(picked.len());
    final_norm(ends, &picked, &mut normed);
    matmul(&normed, count, &ends.head, logits, Overwrite);
    if let Some(cap) = ends.softcap {
        cap_logits(logits, cap);
    }
}

/// Refuses logits of a row of the pass that are not all finite: nothing can be chosen or scored by them.
pub(crate) fn check(logits: &[f32], row: usize) -> Result<()> {
    match finite::first_fault(logits) {
        None => Ok(()),
        Some((at, value)) => Err(Error::NotFinite { value, token: at as u32, row }),
    }
}

/// Calls `read` with each of `items` and the logits of its row, side by side on the pool's threads.
///
/// # Errors
/// A logit that is not finite.
fn by_logits<I: Sync, T: Send>(
    ends: &Ends<Packed>,
    x: &[f32],
    items: &[I],
    row: impl Fn(&I) -> usize + Sync,
    read: impl Fn(&I, &[f32]) -> T + Sync,
) -> Result<Vec<T>> {
    let vocabulary = ends.head.n();
    let mut results: Vec<Option<Result<T>>> = items.iter().map(|_| None).collect();
    for (items, results) in items.chunks(CHUNK).zip(results.chunks_mut(CHUNK)) {
        let mut values = Buffer::new(items.len() * vocabulary);
        logits(ends, x, items.iter().map(&row), &mut values);
        pool::for_each_chunk(results, 1, |i, result| {
            let logits = &values[i * vocabulary..(i + 1) * vocabulary];
            result[0] = Some(check(logits, row(&items[i])).map(|()| read(&items[i], logits)));
        });
    }
    results.into_iter().flatten().collect()
}

/// The next token of each of these rows.
pub(crate) fn choose(ends: &Ends<Packed>, x: &[f32], choices: &[Choice]) -> Result<Vec<Chosen>> {
    by_logits(ends, x, choices, |choice| choice.row, Choice::choose)
}

/// How likely each target is, and the `top` likeliest tokens of its row.
pub(crate) fn score(
    ends: &Ends<Packed>,
    x: &[f32],
    targets: &[Target],
    top: usize,
) -> Result<Vec<TokenScore>> {
    let score = |target: &Target, logits: &[f32]| TokenScore::new(logits, target.token, top);
    by_logits(ends, x, targets, |target| target.row, score)
}

/// `scale · Σ −log softmax(logits)[token]` over the targets, from the last block's output `x [rows, d]`; adds its gradient to `dx`.
pub(crate) fn loss(
    ends: &Ends<Packed>,
    x: &[f32],
    targets: &[Target],
    scale: f32,
    mut dx: Option<&mut [f32]>,
) -> f32 {
    let (d, vocabulary) = (ends.d(), ends.head.n());
    let mut total = 0f64;
    for chunk in targets.chunks(CHUNK) {
        let m = chunk.len();
        let rows = pick(x, d, chunk.iter().map(|target| target.row));
        let mut normed = Buffer::new(m * d);
        final_norm(ends, &rows, &mut normed);
        let mut logits = Buffer::new(m * vocabulary);
        matmul(&normed, m, &ends.head, &mut logits, Overwrite);
        let tokens: Vec<u32> = chunk.iter().map(|t| t.token).collect();
        let mut losses = vec![0f32; m];
        cross_entropy_chunk(&mut logits, &tokens, ends.softcap, scale, &mut losses);
        total += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        let Some(dx) = &mut dx else { continue };
        let mut d_normed = normed;
        matmul_transposed(&logits, m, &ends.head, &mut d_normed, Overwrite);
        let mut d_rows = Buffer::new(m * d);
        rms_norm_backward(&rows, &d_normed, m, norm(ends), &mut d_rows);
        for (target, d_row) in chunk.iter().zip(d_rows.chunks_exact(d)) {
            let place = &mut dx[target.row * d..(target.row + 1) * d];
            place.iter_mut().zip(d_row).for_each(|(a, b)| *a += b);
        }
    }
    (total * f64::from(scale)) as f32
}
