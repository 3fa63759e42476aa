//! Causal attention without a matrix of tokens x tokens.
//!
//! For a query at position i: `o = Σⱼ pⱼ vⱼ`, `p = softmax(scale · q kⱼ)` over the positions j <= i that its window
//! reaches. Keys are taken in tiles of 64, aligned to the sequence's beginning; the softmax is carried from tile to tile
//! (Milakov and Gimelshein, 2018; FlashAttention) within a span of eight, and spans are joined in order (as Flash-Decoding
//! does). Because neither depends on which queries are computed together, or on the threads, a query's result has the same
//! bits in training, in a prefill by chunks and in decoding from pages.
//!
//! Heads of queries that share a head of keys stand together in a block, so that keys are loaded once for them. Keys are
//! kept (in pages) or laid out once (for whole sequences) transposed, `[head_dim][tokens]`, as the product with queries reads
//! them.

mod backward;
mod forward;
mod jobs;
mod rounded;
#[cfg(test)]
mod tests;

pub use backward::{AttentionGradients, attention_backward};
pub use forward::{attention, attention_paged, store_paged};

use std::ops::Range;

use crate::gemm::left::Strided;
use crate::gemm::{Matrix, strided, transpose_with};
use crate::isa::Available;

/// Keys in a tile.
pub(crate) const TILE: usize = 64;

/// Tiles in a span: the softmax is carried within a span, and spans are joined in order. Few queries of a long sequence are
/// divided among threads by spans.
pub(crate) const SPAN: usize = 8;

/// Rows (queries times the heads that share keys) in a block.
pub(crate) const ROWS: usize = 64;

/// Rows `start .. start + len` of q, k and v are one causal sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// New queries of one sequence whose keys and values lie in pages.
#[derive(Clone, Copy, Debug)]
pub struct PagedSegment<'a> {
    /// First row of q and of the output.
    pub q_start: usize,
    /// New tokens: the last of the sequence.
    pub q_len: usize,
    /// Tokens of the sequence, the new ones included; their keys and values are in the pages already.
    pub kv_len: usize,
    /// Indices of the pages that hold them, in order.
    pub pages: &'a [u32],
}

/// How keys and values are kept, and with that how they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvStorage {
    /// As given.
    #[default]
    F32,
    /// Rounded to bf16, in pairs; sums are f32. AMX tiles round queries and the softmax's weights too.
    Bf16,
}

/// Keys and values of many sequences; [`store_paged`] puts them there.
#[derive(Clone, Copy, Debug)]
pub struct KvPool<'a> {
    /// Keys, `[page][kv_heads][head_dim][page_tokens]`; of bf16 `[page][kv_heads][head_dim / 2][page_tokens]` pairs along the
    /// head, each in the place of one f32.
    pub k: &'a [f32],
    /// Values, `[page][kv_heads][page_tokens][head_dim]`; of bf16 `[page][kv_heads][page_tokens / 2][head_dim]` pairs of tokens.
    pub v: &'a [f32],
    /// Tokens of a page; of bf16 a multiple of 64.
    pub page_tokens: usize,
    /// Which of the two; as [`AttentionShape::kv_storage`] said when the pool was made.
    pub storage: KvStorage,
}

/// A [`KvPool`] that is written to.
#[derive(Debug)]
pub struct KvPoolMut<'a> {
    /// As in [`KvPool`].
    pub k: &'a mut [f32],
    /// As in [`KvPool`].
    pub v: &'a mut [f32],
    /// As in [`KvPool`].
    pub page_tokens: usize,
    /// As in [`KvPool`].
    pub storage: KvStorage,
}

impl KvPoolMut<'_> {
    /// The same for reading.
    pub fn shared(&self) -> KvPool<'_> {
        KvPool { k: self.k, v: self.v, page_tokens: self.page_tokens, storage: self.storage }
    }
}

impl PagedSegment<'_> {
    /// Fails where the segment is outside of `tokens` rows, or of a pool of `len` elements.
    fn check(
        &self,
        tokens: usize,
        shape: &AttentionShape,
        (page_tokens, storage): (usize, KvStorage),
        len: usize,
    ) {
        assert!(self.q_len <= self.kv_len, "new tokens are part of the sequence");
        assert!(self.q_start + self.q_len <= tokens, "the new tokens are inside of {tokens} rows");
        assert!(self.pages.len() * page_tokens >= self.kv_len, "the pages hold the sequence");
        let pages = self.pages.iter().max().map_or(0, |&last| last as usize + 1);
        assert!(pages * shape.page_len(page_tokens, storage) <= len, "page {pages} is in the pool");
    }

    /// Cuts positions where pages end: (page, first slot in it, tokens).
    fn runs(
        &self,
        positions: Range<usize>,
        page_tokens: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut at = positions.start;
        std::iter::from_fn(move || {
            let slot = at % page_tokens;
            let len = (page_tokens - slot).min(positions.end - at);
            let page = *self.pages.get(at / page_tokens).filter(|_| len > 0)?;
            at += len;
            Some((page as usize, slot, len))
        })
    }
}

/// Sizes and switches of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// A query sees the last `window` positions, its own included.
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)` on the scaled scores.
    pub softcap: Option<f32>,
    /// Keys and values (with AMX queries and weights too) may be rounded to bf16.
    pub bf16: bool,
}

impl AttentionShape {
    /// Heads of queries that share a head of keys.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of a row of q.
    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of a row of k and v.
    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// How keys and values are kept and multiplied: whole steps of tiles and whole registers are a multiple of 32 wide.
    pub fn kv_storage(&self) -> KvStorage {
        if self.bf16 && self.head_dim.is_multiple_of(32) { KvStorage::Bf16 } else { KvStorage::F32 }
    }

    /// Elements of a page of keys (and of one of values).
    pub fn page_len(&self, page_tokens: usize, storage: KvStorage) -> usize {
        let len = page_tokens * self.kv_width();
        match storage {
            KvStorage::F32 => len,
            KvStorage::Bf16 => len / 2,
        }
    }

    fn check(&self) {
        assert!(
            self.kv_heads > 0 && self.heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} heads share {} heads of keys",
            self.heads,
            self.kv_heads
        );
        assert!(self.window != Some(0), "a window of no tokens");
    }

    /// Queries of a block.
    fn block(&self) -> usize {
        (ROWS / self.group()).max(1)
    }

    /// The positions that a query sees.
    fn visible(&self, position: usize) -> Range<usize> {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
    }

    /// The keys of tile `tile` that some of the queries at `positions` see.
    fn tile_keys(&self, positions: &Range<usize>, tile: usize) -> Range<usize> {
        let start = self.visible(positions.start).start.max(tile * TILE);
        start..((tile + 1) * TILE).min(positions.end)
    }

    /// The tiles that some of the queries at `positions` see.
    fn tiles(&self, positions: &Range<usize>) -> Range<usize> {
        self.visible(positions.start).start / TILE..positions.end.div_ceil(TILE)
    }
}

/// Consecutive tokens of one head's keys and values.
#[derive(Clone, Copy)]
struct Run {
    /// Keys, transposed. (Of bf16, both begin at the tile, and hold pairs in the places of f32.)
    k: *const f32,
    /// Distance of two rows of `k`.
    k_row: usize,
    v: *const f32,
    /// Distance of two rows of `v`.
    v_row: usize,
    len: usize,
}

/// `[tiles][dim][TILE]`: one head of consecutive rows of keys or values, transposed tile by tile.
fn transpose_tiles(isa: Available, rows: &[f32], width: usize, head: usize, dim: usize, to: &mut [f32]) {
    for (rows, to) in rows.chunks(TILE * width).zip(to.chunks_exact_mut(dim * TILE)) {
        let count = rows.len() / width;
        assert!((head + 1) * dim <= width, "head {head} of {dim} in rows of {width}");
        // SAFETY: `rows` has `count` rows of the head's `dim` elements, `width` apart; `to` has `dim` rows of TILE.
        unsafe {
            transpose_with(isa, (count, dim), rows[head * dim..].as_ptr(), width, to.as_mut_ptr(), TILE)
        }
    }
}

/// `out (+)= a · b` for row-major blocks inside slices: `a` `[rows, depth]` or, transposed, `[depth, rows]`.
struct Block<'a> {
    isa: Available,
    a: &'a [f32],
    a_row: usize,
    a_col: usize,
    depth: usize,
}

impl Block<'_> {
    /// # Safety
    /// `b` has `depth` rows of `cols` elements, `ldb` apart; `out` `rows` rows of `cols`, `row` apart; `a` covers it.
    unsafe fn times(&self, b: *const f32, ldb: usize, out: Matrix, add: bool) {
        let left = Strided { start: self.a.as_ptr(), row: self.a_row, col: self.a_col };
        // SAFETY: the caller's promise.
        unsafe { strided(self.isa, left, self.depth, b, ldb, out, add) }
    }
}

/// Fails where two of some (first row, rows) have a row in common: tasks write the rows of their segments at the same time.
fn assert_disjoint(segments: impl Iterator<Item = (usize, usize)>) {
    let mut rows: Vec<(usize, usize)> = segments.filter(|&(_, len)| len > 0).collect();
    // They lie one after another as a rule, and nothing is moved then.
    rows.sort_unstable();
    let apart = rows.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
    assert!(apart, "segments have no row in common");
}

/// Copies one head group of some queries into contiguous rows: row `i · group + g` is query i, head g of the group.
fn gather(q: &[f32], shape: &AttentionShape, rows: Range<usize>, kv_head: usize, to: &mut [f32]) {
    let width = shape.group() * shape.head_dim;
    for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(&q[row * shape.q_width() + kv_head * width..][..width]);
    }
}
