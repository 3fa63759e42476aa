//! Attention forward: one block of queries against all tiles of keys they see.

use std::ops::Range;

use super::{
    AttentionShape, Block, KvPool, KvPoolMut, PagedSegment, Run, Segment, TILE, gather, transpose_tiles,
};
use crate::gemm::{Matrix, transpose_with};
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
    let (dim, width) = (shape.head_dim, shape.kv_width());
    // Where each segment's tiles of keys begin.
    let mut tiles = Vec::with_capacity(segments.len());
    let mut total = 0;
    for segment in segments {
        tiles.push(total);
        total += segment.len.div_ceil(TILE);
    }
    let isa = isa::active();
    scratch::with(total * width * TILE, |keys| {
        // A segment's tiles of one head stand together.
        let parts = Parts::new(keys);
        let head = |segment: usize, kv_head: usize| {
            let count = segments[segment].len.div_ceil(TILE);
            let start = (tiles[segment] * shape.kv_heads + kv_head * count) * dim * TILE;
            start..start + count * dim * TILE
        };
        pool::parallel_for(segments.len() * shape.kv_heads, |task| {
            let (segment, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
            let Segment { start, len } = segments[segment];
            // SAFETY: each segment and head has its own part.
            let to = unsafe { parts.get(head(segment, kv_head)) };
            transpose_tiles(isa, &k[start * width..(start + len) * width], width, kv_head, dim, to);
        });
        let keys = &*keys;
        run(&shape, q, &jobs, out, Some(lse), |job, range, kv_head, use_run| {
            let at = (segments[job].start + range.start) * width + kv_head * dim;
            let tile = &keys[head(job, kv_head)][range.start / TILE * dim * TILE..];
            use_run(Run {
                k: tile[range.start % TILE..].as_ptr(),
                k_row: TILE,
                v: v[at..].as_ptr(),
                v_row: width,
                len: range.len(),
            });
        });
    });
}

/// Copies the new tokens' keys and values (`[T, kv_heads · head_dim]`) into their pages.
///
/// # Panics
/// If a segment is outside of `k` and `v`, or its pages do not hold its tokens.
pub fn store_paged(
    (k, v): (&[f32], &[f32]),
    segments: &[PagedSegment<'_>],
    pool: &mut KvPoolMut<'_>,
    shape: AttentionShape,
) {
    shape.check();
    let (isa, dim, width, page) = (isa::active(), shape.head_dim, shape.kv_width(), pool.page_tokens);
    assert!(page > 0 && pool.k.len() == pool.v.len(), "k and v are pages of {page} tokens");
    assert!(k.len() == v.len() && k.len().is_multiple_of(width), "k and v are [tokens, kv_heads * dim]");
    for segment in segments {
        segment.check(k.len() / width, &shape, page, pool.k.len());
    }
    let (keys, values) = (Parts::new(pool.k), Parts::new(pool.v));
    pool::parallel_for(shape.kv_heads, |head| {
        for segment in segments {
            let mut row = segment.q_start;
            for (index, slot, len) in segment.runs(segment.kv_len - segment.q_len..segment.kv_len, page) {
                let from = row * width + head * dim;
                let at = (index * shape.kv_heads + head) * dim * page;
                // SAFETY: each head has its own part of every page. `len` rows of `dim` elements begin at `from`; `to` is
                // [dim, page], of which columns `slot .. slot + len` exist.
                unsafe {
                    let to = keys.get(at..at + dim * page);
                    let to = to[slot..].as_mut_ptr();
                    transpose_with(isa, (len, dim), k[from..].as_ptr(), width, to, page);
                }
                for i in 0..len {
                    let to = (index * page + slot + i) * width + head * dim;
                    // SAFETY: as above.
                    unsafe { values.get(to..to + dim) }.copy_from_slice(&v[from + i * width..][..dim]);
                }
                row += len;
            }
        }
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
    let (dim, width, page) = (shape.head_dim, shape.kv_width(), pool.page_tokens);
    assert!(page > 0 && pool.k.len() == pool.v.len(), "k and v are pages of {page} tokens");
    let tokens = q.len() / shape.q_width();
    for segment in segments {
        segment.check(tokens, &shape, page, pool.k.len());
    }
    let jobs = blocks(&shape, segments.iter().map(|s| (s.q_start, s.q_len, s.kv_len)), tokens);
    run(&shape, q, &jobs, out, None, |job, keys, kv_head, use_run| {
        for (page_index, slot, len) in segments[job].runs(keys, page) {
            let start = page_index * page * width;
            use_run(Run {
                k: pool.k[start + kv_head * dim * page + slot..].as_ptr(),
                k_row: page,
                v: pool.v[start + slot * width + kv_head * dim..].as_ptr(),
                v_row: width,
                len,
            });
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
        scratch::with(2 * rows * dim + rows * (TILE + 2), |buffer| {
            let (queries, buffer) = buffer.split_at_mut(rows * dim);
            let (sums, buffer) = buffer.split_at_mut(rows * dim);
            let (scores, state) = buffer.split_at_mut(rows * TILE);
            gather(q, shape, job.rows.clone(), kv_head, queries);
            sums.fill(0.0);
            let mut block =
                Rows { isa, shape, positions: job.positions.clone(), queries, sums, scores, state };
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
        debug_assert!(first + keys.len() <= TILE);
        let mut col = first;
        let (isa, queries, scores) = (self.isa, self.queries, &mut *self.scores);
        runs(&mut |run| {
            let queries = Block { isa, a: queries, a_row: dim, a_col: 1, depth: dim };
            let out = Matrix { start: scores[col..].as_mut_ptr(), row: TILE, rows, cols: run.len };
            // SAFETY: a run's keys are `dim` rows of `len` columns; `scores` is [rows, TILE].
            unsafe { queries.times(run.k, run.k_row, out, false) };
            col += run.len;
        });
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
        let (isa, scores, sums) = (self.isa, &*self.scores, &mut *self.sums);
        runs(&mut |run| {
            let weights = Block { isa, a: &scores[col..], a_row: TILE, a_col: 1, depth: run.len };
            let out = Matrix { start: sums.as_mut_ptr(), row: dim, rows, cols: dim };
            // SAFETY: a run holds `len` rows of `dim` elements; `sums` is [rows, dim].
            unsafe { weights.times(run.v, run.v_row, out, true) };
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
