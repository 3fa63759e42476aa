//! Attention forward: one block of queries against all tiles of keys they see.

use std::ops::Range;

use super::{AttentionShape, Block, KvPool, PagedSegment, Run, Segment, TILE, gather, transpose_rows};
use crate::gemm::Matrix;
use crate::isa::{self, Isa, multiversion};
use crate::lanes::{map_sum, max};
use crate::pool::{self, Parts};
use crate::scratch;
use crate::vexp::{exp, tanh};

/// Attention of sequences that lie one after another.
///
/// `q` and `out` are `[T, heads · head_dim]`, `k` and `v` `[T, kv_heads · head_dim]`; `lse` (`[T, heads]`) becomes the
/// logarithm of each softmax's sum, for [`super::attention_backward`]. Rows outside of all segments are not touched.
///
/// # Panics
/// If the slices do not have these sizes or a segment is outside of them.
pub fn attention(
    (q, k, v): (&[f32], &[f32], &[f32]),
    segments: &[Segment],
    shape: AttentionShape,
    out: &mut [f32],
    lse: &mut [f32],
) {
    shape.check();
    let tokens = lse.len() / shape.heads;
    assert!(
        q.len() == tokens * shape.q_width() && out.len() == q.len(),
        "q and out are [{tokens}, heads * dim]"
    );
    assert!(
        k.len() == tokens * shape.kv_width() && v.len() == k.len(),
        "k and v are [{tokens}, kv_heads * dim]"
    );
    let jobs = blocks(&shape, segments.iter().map(|s| (s.start, s.len, s.len)), tokens);
    let width = shape.kv_width();
    run(&shape, q, &jobs, out, Some(lse), |job, keys, kv_head, use_run| {
        let at = (segments[job].start + keys.start) * width + kv_head * shape.head_dim;
        use_run(Run { k: k[at..].as_ptr(), v: v[at..].as_ptr(), row: width, len: keys.len() });
    });
}

/// Attention of new tokens against keys and values in pages; the same bits as [`attention`] gives for them.
///
/// `q` and `out` are `[T, heads · head_dim]`.
///
/// # Panics
/// If a segment is outside of `q`, or its pages do not hold its tokens.
pub fn attention_paged(
    q: &[f32],
    segments: &[PagedSegment<'_>],
    pool: KvPool<'_>,
    shape: AttentionShape,
    out: &mut [f32],
) {
    shape.check();
    assert!(
        out.len() == q.len() && q.len().is_multiple_of(shape.q_width()),
        "q and out are [tokens, heads * dim]"
    );
    let (width, page) = (shape.kv_width(), pool.page_tokens);
    assert!(page > 0 && pool.k.len() == pool.v.len(), "k and v are [page][page_tokens][kv_heads * dim]");
    for segment in segments {
        assert!(segment.q_len <= segment.kv_len, "new tokens are part of the sequence");
        assert!(segment.pages.len() * page >= segment.kv_len, "the pages hold the sequence");
        let last = segment.pages.iter().max().map_or(0, |&last| last as usize + 1);
        assert!(last * page * width <= pool.k.len(), "page {last} is in the pool");
    }
    let jobs =
        blocks(&shape, segments.iter().map(|s| (s.q_start, s.q_len, s.kv_len)), q.len() / shape.q_width());
    run(&shape, q, &jobs, out, None, |job, keys, kv_head, use_run| {
        let mut key = keys.start;
        while key < keys.end {
            let len = (page - key % page).min(keys.end - key);
            let at = (segments[job].pages[key / page] as usize * page + key % page) * width
                + kv_head * shape.head_dim;
            use_run(Run { k: pool.k[at..].as_ptr(), v: pool.v[at..].as_ptr(), row: width, len });
            key += len;
        }
    });
}

/// Some queries of one segment.
struct Job {
    segment: usize,
    rows: Range<usize>,
    /// Their positions in the sequence.
    positions: Range<usize>,
}

/// Cuts (first row, new tokens, tokens) of each segment into blocks of queries.
fn blocks(
    shape: &AttentionShape,
    segments: impl Iterator<Item = (usize, usize, usize)>,
    tokens: usize,
) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (segment, (start, queries, total)) in segments.enumerate() {
        assert!(start + queries <= tokens, "segment {segment} is inside of {tokens} tokens");
        for first in (0..queries).step_by(shape.block()) {
            let last = (first + shape.block()).min(queries);
            let offset = total - queries;
            jobs.push(Job {
                segment,
                rows: start + first..start + last,
                positions: offset + first..offset + last,
            });
        }
    }
    jobs
}

/// All blocks and heads of keys in parallel. `runs(segment, keys, kv_head, use)` gives the rows of some keys in order.
fn run(
    shape: &AttentionShape,
    q: &[f32],
    jobs: &[Job],
    out: &mut [f32],
    lse: Option<&mut [f32]>,
    runs: impl Fn(usize, Range<usize>, usize, &mut dyn FnMut(Run)) + Sync,
) {
    let isa = isa::active();
    let (out, lse) = (Parts::new(out), lse.map(Parts::new));
    pool::parallel_for(jobs.len() * shape.kv_heads, |task| {
        // The last blocks of a sequence see the most keys: begin with them.
        let job = &jobs[jobs.len() - 1 - task / shape.kv_heads];
        let kv_head = task % shape.kv_heads;
        let group = shape.group();
        let rows = job.rows.len() * group;
        let dim = shape.head_dim;
        scratch::with(2 * rows * dim + rows * (TILE + 2) + dim * TILE, |buffer| {
            let (queries, buffer) = buffer.split_at_mut(rows * dim);
            let (sums, buffer) = buffer.split_at_mut(rows * dim);
            let (scores, buffer) = buffer.split_at_mut(rows * TILE);
            let (state, keys) = buffer.split_at_mut(rows * 2);
            gather(q, shape, job.rows.clone(), kv_head, queries);
            sums.fill(0.0);
            let mut block =
                Rows { isa, shape, positions: job.positions.clone(), queries, sums, scores, state, keys };
            block.reset();
            for tile in shape.tiles(&job.positions) {
                let keys = shape.tile_keys(&job.positions, tile);
                block.tile(keys.clone(), |use_run| runs(job.segment, keys.clone(), kv_head, use_run));
            }
            for (i, row) in job.rows.clone().enumerate() {
                let start = (row * shape.heads + kv_head * group) * dim;
                // SAFETY: each row and head belongs to one task.
                let out = unsafe { out.get(start..start + group * dim) };
                for g in 0..group {
                    let at = i * group + g;
                    let inverse = 1.0 / block.state[2 * at + 1];
                    for (out, sum) in out[g * dim..][..dim].iter_mut().zip(&block.sums[at * dim..][..dim]) {
                        *out = sum * inverse;
                    }
                    if let Some(lse) = &lse {
                        let place = row * shape.heads + kv_head * group + g;
                        // SAFETY: as above.
                        let lse = unsafe { lse.get(place..place + 1) };
                        lse[0] = block.state[2 * at] + block.state[2 * at + 1].ln();
                    }
                }
            }
        });
    });
}

/// A block of queries with its running softmax.
struct Rows<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    positions: Range<usize>,
    /// `[rows, dim]`
    queries: &'a [f32],
    /// Σ p v so far, `[rows, dim]`.
    sums: &'a mut [f32],
    /// `[rows, TILE]`
    scores: &'a mut [f32],
    /// (greatest score, Σ p) of each row.
    state: &'a mut [f32],
    /// A tile of keys, transposed: `[dim, TILE]`.
    keys: &'a mut [f32],
}

impl Rows<'_> {
    fn reset(&mut self) {
        for state in self.state.chunks_exact_mut(2) {
            state.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
    }

    /// Adds one tile. Scores stand at their key's place in the tile, so that sums over a tile always run in the same
    /// order.
    fn tile(&mut self, keys: Range<usize>, runs: impl Fn(&mut dyn FnMut(Run))) {
        let (dim, group) = (self.shape.head_dim, self.shape.group());
        let rows = self.positions.len() * group;
        let first = keys.start % TILE;
        let used = first + keys.len();
        let mut col = first;
        runs(&mut |run| {
            // SAFETY: a run holds `len` rows of `dim` elements.
            unsafe { transpose_rows(self.isa, run.k, run.row, (run.len, dim), self.keys, col) };
            col += run.len;
        });
        let queries = Block { isa: self.isa, a: self.queries, a_row: dim, a_col: 1, depth: dim };
        let scores = Matrix { start: self.scores[first..].as_mut_ptr(), row: TILE, rows, cols: keys.len() };
        // SAFETY: `keys` is [dim, TILE], `scores` [rows, TILE].
        unsafe { queries.times(self.keys[first..].as_ptr(), TILE, scores, false) };
        for row in 0..rows {
            let visible = self.shape.visible(self.positions.start + row / group);
            let from = visible.start.max(keys.start) - keys.start + first;
            let to = visible.end.min(keys.end).max(keys.start) - keys.start + first;
            let scores = &mut self.scores[row * TILE..(row + 1) * TILE];
            let from = from.min(to);
            scores[..from].fill(f32::NEG_INFINITY);
            scores[to..].fill(f32::NEG_INFINITY);
            let state = &mut self.state[2 * row..2 * row + 2];
            let sums = &mut self.sums[row * dim..(row + 1) * dim];
            if to > from {
                softmax_step(self.isa, scores, self.shape.scale, self.shape.softcap, state, sums);
            } else {
                scores.fill(0.0);
            }
        }
        let mut col = first;
        debug_assert!(used <= TILE);
        let (isa, scores, sums) = (self.isa, &*self.scores, &mut *self.sums);
        runs(&mut |run| {
            let weights = Block { isa, a: &scores[col..], a_row: TILE, a_col: 1, depth: run.len };
            let out = Matrix { start: sums.as_mut_ptr(), row: dim, rows, cols: dim };
            // SAFETY: a run holds `len` rows of `dim` elements; `sums` is [rows, dim].
            unsafe { weights.times(run.v, run.row, out, true) };
            col += run.len;
        });
    }
}

multiversion! {
    fn softmax_step(
        scores: &mut [f32], scale: f32, softcap: Option<f32>, state: &mut [f32], sums: &mut [f32],
    ) = softmax_step_body;
}

/// Turns a tile of scores (at least one is finite) into weights relative to the new greatest score, and rescales what
/// was summed before.
#[inline(always)]
fn softmax_step_body<const FMA: bool>(
    scores: &mut [f32],
    scale: f32,
    softcap: Option<f32>,
    state: &mut [f32],
    sums: &mut [f32],
) {
    match softcap {
        None => scores.iter_mut().for_each(|score| *score *= scale),
        // The cap would make a masked score finite.
        Some(cap) => {
            for score in scores.iter_mut() {
                let capped = cap * tanh::<FMA>(*score * scale / cap);
                *score = if *score == f32::NEG_INFINITY { f32::NEG_INFINITY } else { capped };
            }
        }
    }
    let greatest = state[0].max(max(scores));
    let correction = exp::<FMA>(state[0] - greatest);
    let sum = map_sum(scores, |score| exp::<FMA>(score - greatest));
    state[0] = greatest;
    state[1] = state[1] * correction + sum;
    if correction != 1.0 {
        for value in sums {
            *value *= correction;
        }
    }
}
