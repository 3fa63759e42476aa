//! Attention forward: one block of queries against all tiles of keys they see.

use std::ops::Range;

use super::jobs::{Jobs, Queries, blocks, shared_blocks};
use super::{
    AttentionShape, Block, KvPool, KvPoolMut, KvStorage, PagedSegment, Run, SPAN, Segment, TILE,
    assert_disjoint, gather, rounded, transpose_tiles,
};
use crate::gemm::{Matrix, transpose_with};
use crate::isa::{self, Available, multiversion};
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
/// If the slices do not have these sizes, a segment is outside of them, or two have a row in common.
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
    assert_disjoint(segments.iter().map(|s| (s.start, s.len)));
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
    if shape.kv_storage() == KvStorage::Bf16 {
        return rounded_attention((q, k, v), segments, (&tiles, total), &shape, &jobs, out, lse);
    }
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
        run(&shape, KvStorage::F32, q, &jobs, out, Some(lse), &|segment, range, kv_head, use_run| {
            let at = (segments[segment].start + range.start) * width + kv_head * dim;
            let tile = &keys[head(segment, kv_head)][range.start / TILE * dim * TILE..];
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

/// [`attention`] with keys and values as pairs of bf16: each head of a segment has pages of one tile.
fn rounded_attention(
    (q, k, v): (&[f32], &[f32], &[f32]),
    segments: &[Segment],
    (tiles, total): (&[usize], usize),
    shape: &AttentionShape,
    jobs: &Jobs,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (isa, dim, width) = (isa::active(), shape.head_dim, shape.kv_width());
    let page = dim / 2 * TILE;
    let first = |segment: usize, kv_head: usize| {
        let count = segments[segment].len.div_ceil(TILE);
        (tiles[segment] * shape.kv_heads + kv_head * count) * page
    };
    scratch::with(2 * total * shape.kv_heads * page, |buffer| {
        let (keys, values) = buffer.split_at_mut(total * shape.kv_heads * page);
        let (key_parts, value_parts) = (Parts::new(keys), Parts::new(values));
        pool::parallel_for(segments.len() * shape.kv_heads, |task| {
            let (segment, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
            let Segment { start, len } = segments[segment];
            for tile in 0..len.div_ceil(TILE) {
                let at = first(segment, kv_head) + tile * page;
                let from = (start + tile * TILE) * width + kv_head * dim;
                let count = (len - tile * TILE).min(TILE);
                // SAFETY: each segment, head and tile has its own part.
                let (keys, values) =
                    unsafe { (key_parts.get(at..at + page), value_parts.get(at..at + page)) };
                rounded::store(isa, (&k[from..], &v[from..], width), dim, (0, count, TILE), keys, values);
            }
        });
        let (keys, values) = (&*keys, &*values);
        run(shape, KvStorage::Bf16, q, jobs, out, Some(lse), &|segment, range, kv_head, use_run| {
            let at = first(segment, kv_head) + range.start / TILE * page;
            use_run(Run {
                k: keys[at..].as_ptr(),
                k_row: TILE,
                v: values[at..].as_ptr(),
                v_row: dim,
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
        segment.check(k.len() / width, &shape, (page, pool.storage), pool.k.len());
    }
    let (storage, keys, values) = (pool.storage, Parts::new(&mut *pool.k), Parts::new(&mut *pool.v));
    let len_of_head = shape.page_len(page, storage) / shape.kv_heads;
    pool::parallel_for(shape.kv_heads, |head| {
        for segment in segments {
            let mut row = segment.q_start;
            for (index, slot, len) in segment.runs(segment.kv_len - segment.q_len..segment.kv_len, page) {
                let from = row * width + head * dim;
                let at = (index * shape.kv_heads + head) * len_of_head;
                if storage == KvStorage::Bf16 {
                    // SAFETY: each head has its own part of every page.
                    let (keys, values) =
                        unsafe { (keys.get(at..at + len_of_head), values.get(at..at + len_of_head)) };
                    rounded::store(
                        isa,
                        (&k[from..], &v[from..], width),
                        dim,
                        (slot, len, page),
                        keys,
                        values,
                    );
                    row += len;
                    continue;
                }
                // SAFETY: each head has its own part of every page. `len` rows of `dim` elements begin at `from`; `to` is
                // [dim, page], of which columns `slot .. slot + len` exist.
                unsafe {
                    let to = keys.get(at..at + dim * page);
                    let to = to[slot..].as_mut_ptr();
                    transpose_with(isa, (len, dim), k[from..].as_ptr(), width, to, page);
                }
                // SAFETY: as above.
                let to = unsafe { values.get(at + slot * dim..at + (slot + len) * dim) };
                for (i, to) in to.chunks_exact_mut(dim).enumerate() {
                    to.copy_from_slice(&v[from + i * width..][..dim]);
                }
                row += len;
            }
        }
    });
}

/// Attention of new tokens against keys and values in pages; the same bits as [`attention`] gives for them.
///
/// Segments that begin with the same pages (a prompt that rows share) read these once for many rows: at some thousand tokens that
/// is what a step of generation waits for.
///
/// `q` and `out` are `[T, heads · head_dim]`.
///
/// # Panics
/// If a segment is outside of `q`, its pages do not hold its tokens, or two have a row of `q` in common.
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
    let (dim, page) = (shape.head_dim, pool.page_tokens);
    assert!(page > 0 && pool.k.len() == pool.v.len(), "k and v are pages of {page} tokens");
    assert!(
        pool.storage == KvStorage::F32 || (shape.kv_storage() == pool.storage && page.is_multiple_of(TILE)),
        "pages of bf16 hold whole tiles"
    );
    let tokens = q.len() / shape.q_width();
    for segment in segments {
        segment.check(tokens, &shape, (page, pool.storage), pool.k.len());
    }
    assert_disjoint(segments.iter().map(|s| (s.q_start, s.q_len)));
    let jobs = shared_blocks(&shape, segments, page, pool::threads());
    let len_of_head = shape.page_len(page, pool.storage) / shape.kv_heads;
    // Values of a token, or half of them where a row has pairs of tokens.
    let value_row = len_of_head / page;
    run(&shape, pool.storage, q, &jobs, out, None, &|segment, keys, kv_head, use_run| {
        for (page_index, slot, len) in segments[segment].runs(keys, page) {
            let start = (page_index * shape.kv_heads + kv_head) * len_of_head;
            use_run(Run {
                k: pool.k[start + slot..].as_ptr(),
                k_row: page,
                v: pool.v[start + slot * value_row..].as_ptr(),
                v_row: dim,
                len,
            });
        }
    });
}

/// All blocks and heads of keys in parallel.
fn run(
    shape: &AttentionShape,
    storage: KvStorage,
    q: &[f32],
    jobs: &Jobs,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
    runs: &Runs<'_>,
) {
    let work = Work { isa: isa::active(), shape, storage, q, jobs, runs };
    let ends = Ends { out: Parts::new(out), lse: lse.map(Parts::new) };
    // The last blocks of a sequence see the most keys: begin with them.
    let place = |task: usize| (jobs.blocks.len() - 1 - task / shape.kv_heads, task % shape.kv_heads);
    let tasks = jobs.blocks.len() * shape.kv_heads;
    let long = || (0..jobs.blocks.len()).any(|block| work.spans(block).len() > 1);
    let threads = pool::threads();
    if threads == 1 || tasks >= 2 * threads || !long() {
        return pool::parallel_for(tasks, |task| {
            let (block, kv_head) = place(task);
            let len = work.softmax_len(block);
            scratch::with(2 * len, |buffer| {
                let (total, part) = buffer.split_at_mut(len);
                let mut total = Softmax::new(total, shape.head_dim);
                for span in work.spans(block) {
                    let mut part = Softmax::new(part, shape.head_dim);
                    work.span(block, kv_head, span, &mut part);
                    total.add(work.isa, &part);
                }
                ends.finish(&work, block, kv_head, &total);
            });
        });
    }
    // Fewer blocks and heads than threads can share: the spans of long sequences are tasks of their own.
    let mut parts = Vec::new();
    let mut len = 0;
    for task in 0..tasks {
        let (block, kv_head) = place(task);
        for span in work.spans(block) {
            parts.push((block, kv_head, span, len..len + work.softmax_len(block)));
            len += work.softmax_len(block);
        }
    }
    scratch::with(len, |buffer| {
        let buffers = Parts::new(&mut *buffer);
        pool::parallel_for(parts.len(), |i| {
            let (block, kv_head, span, ref place) = parts[i];
            // SAFETY: each part has its own place.
            let part = unsafe { buffers.get(place.clone()) };
            work.span(block, kv_head, span, &mut Softmax::new(part, shape.head_dim));
        });
        for same in parts.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (block, kv_head, _, ref first) = same[0];
            let (total, rest) = buffer[first.start..].split_at_mut(first.len());
            let mut total = Softmax::of(total, shape.head_dim);
            for part in rest.chunks_exact_mut(first.len()).take(same.len() - 1) {
                total.add(work.isa, &Softmax::of(part, shape.head_dim));
            }
            ends.finish(&work, block, kv_head, &total);
        }
    });
}

/// Gives a segment's keys and values of a head in order: `runs(segment, keys, kv_head, use)`.
type Runs<'a> = dyn Fn(usize, Range<usize>, usize, &mut dyn FnMut(Run)) + Sync + 'a;

/// What all tasks read.
struct Work<'a> {
    isa: Available,
    shape: &'a AttentionShape,
    storage: KvStorage,
    q: &'a [f32],
    jobs: &'a Jobs,
    runs: &'a Runs<'a>,
}

impl Work<'_> {
    fn members(&self, block: usize) -> &[Queries] {
        &self.jobs.queries[self.jobs.blocks[block].queries.clone()]
    }

    /// Queries times the heads that share keys.
    fn rows(&self, block: usize) -> usize {
        self.members(block).iter().map(|queries| queries.rows.len() * self.shape.group()).sum()
    }

    /// Rows of the buffers of a block.
    fn room(&self, block: usize) -> usize {
        let rows = self.rows(block);
        if self.storage == KvStorage::Bf16 { rounded::room(self.isa, rows) } else { rows }
    }

    fn softmax_len(&self, block: usize) -> usize {
        self.room(block) * (self.shape.head_dim + 2)
    }

    /// The spans that some query of the block sees. There is at least one.
    fn spans(&self, block: usize) -> Range<usize> {
        let tiles = self.members(block).iter().map(|queries| self.shape.tiles(&queries.positions));
        let (start, end) = tiles.fold((usize::MAX, 0), |(start, end), tiles| {
            (start.min(tiles.start / SPAN), end.max(tiles.end.div_ceil(SPAN)))
        });
        start.min(end)..end.max(1)
    }

    /// The softmax of a block's queries over the tiles of one span.
    fn span(&self, block: usize, kv_head: usize, span: usize, softmax: &mut Softmax<'_>) {
        let Self { isa, shape, storage, .. } = *self;
        let (members, shared) = (self.members(block), self.jobs.blocks[block].shared);
        let (group, dim, rows) = (shape.group(), shape.head_dim, self.rows(block));
        let (first, last) = (span * SPAN, (span + 1) * SPAN);
        // Tiles read keys from a tile's first on.
        let from = |keys: &Range<usize>| match storage {
            KvStorage::F32 => keys.clone(),
            KvStorage::Bf16 => keys.start / TILE * TILE..keys.end,
        };
        scratch::with(rows * dim + self.room(block) * TILE, |buffer| {
            let (queries, scores) = buffer.split_at_mut(rows * dim);
            let mut to = &mut *queries;
            for member in members {
                let part = to.split_off_mut(..member.rows.len() * group * dim).expect("as counted");
                gather(self.q, shape, member.rows.clone(), kv_head, part);
            }
            let mut block = Rows { isa, shape, storage, queries, scores, softmax };
            if let [one, ..] = members {
                let start = |member: &Queries| shape.tiles(&member.positions).start;
                let start = members.iter().map(start).min().unwrap_or(0);
                for tile in start.max(first)..shared.min(last) {
                    let seen = |member: &Queries| shape.tile_keys(&member.positions, tile).start;
                    let keys = members.iter().map(seen).min().unwrap_or(0)..(tile + 1) * TILE;
                    if !keys.is_empty() {
                        block.tile(members, 0, keys.clone(), |use_run| {
                            (self.runs)(one.segment, from(&keys), kv_head, use_run);
                        });
                    }
                }
            }
            let mut row = 0;
            for member in members {
                let tiles = shape.tiles(&member.positions);
                for tile in tiles.start.max(shared).max(first)..tiles.end.min(last) {
                    let keys = shape.tile_keys(&member.positions, tile);
                    block.tile(std::slice::from_ref(member), row, keys.clone(), |use_run| {
                        (self.runs)(member.segment, from(&keys), kv_head, use_run);
                    });
                }
                row += member.rows.len() * group;
            }
        });
    }
}

/// Where results go.
struct Ends<'a> {
    out: Parts<'a, f32>,
    lse: Option<Parts<'a, f32>>,
}

impl Ends<'_> {
    fn finish(&self, work: &Work<'_>, block: usize, kv_head: usize, softmax: &Softmax<'_>) {
        let shape = work.shape;
        let (group, dim) = (shape.group(), shape.head_dim);
        for (i, row) in work.members(block).iter().flat_map(|member| member.rows.clone()).enumerate() {
            let start = (row * shape.heads + kv_head * group) * dim;
            // SAFETY: each row and head belongs to one task.
            let out = unsafe { self.out.get(start..start + group * dim) };
            for g in 0..group {
                let at = i * group + g;
                let inverse = 1.0 / softmax.state[2 * at + 1];
                for (out, sum) in out[g * dim..][..dim].iter_mut().zip(&softmax.sums[at * dim..][..dim]) {
                    *out = sum * inverse;
                }
                if let Some(lse) = &self.lse {
                    let place = row * shape.heads + kv_head * group + g;
                    // SAFETY: as above.
                    let lse = unsafe { lse.get(place..place + 1) };
                    lse[0] = softmax.state[2 * at] + softmax.state[2 * at + 1].ln();
                }
            }
        }
    }
}

/// The running softmax of some rows.
struct Softmax<'a> {
    /// Σ p v so far, `[rows, dim]`.
    sums: &'a mut [f32],
    /// (greatest score, Σ p) of each row.
    state: &'a mut [f32],
}

impl<'a> Softmax<'a> {
    /// What [`Softmax::new`] began in the same buffer.
    fn of(buffer: &'a mut [f32], dim: usize) -> Self {
        let (sums, state) = buffer.split_at_mut(buffer.len() / (dim + 2) * dim);
        Self { sums, state }
    }

    /// Of no keys; `buffer` is `[rows, dim + 2]`.
    fn new(buffer: &'a mut [f32], dim: usize) -> Self {
        let new = Self::of(buffer, dim);
        new.sums.fill(0.0);
        for state in new.state.chunks_exact_mut(2) {
            state.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
        new
    }

    /// Adds the softmax of the same rows over later keys. A row that has seen no key takes the other's bits.
    fn add(&mut self, isa: Available, later: &Softmax<'_>) {
        let dim = self.sums.len() / (self.state.len() / 2).max(1);
        let rows = self.sums.chunks_exact_mut(dim.max(1)).zip(later.sums.chunks_exact(dim.max(1)));
        let states = self.state.chunks_exact_mut(2).zip(later.state.chunks_exact(2));
        for ((sums, later_sums), (state, later_state)) in rows.zip(states) {
            if later_state[0] == f32::NEG_INFINITY {
                continue;
            }
            if state[0] == f32::NEG_INFINITY {
                sums.copy_from_slice(later_sums);
                state.copy_from_slice(later_state);
            } else {
                join(isa, (sums, state), (later_sums, later_state));
            }
        }
    }
}

multiversion! {
    fn join(row: (&mut [f32], &mut [f32]), later: (&[f32], &[f32])) = join_body;
}

/// Relative to the greater of the two greatest scores.
#[inline(always)]
fn join_body<const FMA: bool>((sums, state): (&mut [f32], &mut [f32]), later: (&[f32], &[f32])) {
    let greatest = state[0].max(later.1[0]);
    let (own, other) = (exp::<FMA>(state[0] - greatest), exp::<FMA>(later.1[0] - greatest));
    state[0] = greatest;
    state[1] = state[1] * own + later.1[1] * other;
    for (sum, later) in sums.iter_mut().zip(later.0) {
        *sum = *sum * own + later * other;
    }
}

/// A block of queries with its running softmax.
struct Rows<'a, 'b> {
    isa: Available,
    shape: &'a AttentionShape,
    storage: KvStorage,
    /// `[rows, dim]`
    queries: &'a [f32],
    /// `[rows, TILE]`
    scores: &'a mut [f32],
    softmax: &'a mut Softmax<'b>,
}

impl Rows<'_, '_> {
    /// Adds one tile to the rows of some queries, which stand together from row `start` on. Scores stand at their key's
    /// place in the tile, so that sums over a tile always run in the same order.
    fn tile(
        &mut self,
        members: &[Queries],
        start: usize,
        keys: Range<usize>,
        runs: impl Fn(&mut dyn FnMut(Run)),
    ) {
        let (isa, dim, group) = (self.isa, self.shape.head_dim, self.shape.group());
        let rows = members.iter().map(|member| member.positions.len() * group).sum::<usize>();
        let queries = &self.queries[start * dim..][..rows * dim];
        let sums = &mut self.softmax.sums[start * dim..];
        let scores = &mut self.scores[start * TILE..];
        let states = &mut self.softmax.state[2 * start..][..2 * rows];
        let first = keys.start % TILE;
        debug_assert!(first + keys.len() <= TILE);
        let mut col = first;
        runs(&mut |run| match self.storage {
            KvStorage::F32 => {
                let queries = Block { isa, a: queries, a_row: dim, a_col: 1, depth: dim };
                let out = Matrix { start: scores[col..].as_mut_ptr(), row: TILE, rows, cols: run.len };
                // SAFETY: a run's keys are `dim` rows of `len` columns; `scores` is [rows, TILE].
                unsafe { queries.times(run.k, run.k_row, out, false) };
                col += run.len;
            }
            // SAFETY: a run is one tile; `scores` has room behind its rows.
            KvStorage::Bf16 => unsafe { rounded::scores(isa, queries, dim, (run.k, run.k_row), scores) },
        });
        let positions = members.iter().flat_map(|member| member.positions.clone());
        let mut states = states.chunks_exact_mut(2);
        let mut rows_of = scores.chunks_exact_mut(TILE).zip(sums.chunks_exact_mut(dim.max(1)));
        for position in positions {
            let visible = self.shape.visible(position);
            let from = visible.start.max(keys.start) - keys.start + first;
            let to = visible.end.min(keys.end).max(keys.start) - keys.start + first;
            let from = from.min(to);
            for ((scores, sums), state) in rows_of.by_ref().zip(states.by_ref()).take(group) {
                scores[..from].fill(f32::NEG_INFINITY);
                scores[to..].fill(f32::NEG_INFINITY);
                if to > from {
                    softmax_step(isa, scores, self.shape.scale, self.shape.softcap, state, sums);
                } else {
                    scores.fill(0.0);
                }
            }
        }
        let mut col = first;
        let scores = &scores[..rows * TILE];
        runs(&mut |run| match self.storage {
            KvStorage::F32 => {
                let weights = Block { isa, a: &scores[col..], a_row: TILE, a_col: 1, depth: run.len };
                let out = Matrix { start: sums.as_mut_ptr(), row: dim, rows, cols: dim };
                // SAFETY: a run holds `len` rows of `dim` elements; `sums` is [rows, dim].
                unsafe { weights.times(run.v, run.v_row, out, true) };
                col += run.len;
            }
            // SAFETY: as above; weights of keys that are not seen are 0, and their values numbers.
            KvStorage::Bf16 => unsafe { rounded::add_values(isa, scores, run.v, sums, dim) },
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
