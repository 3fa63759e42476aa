//! Attention with keys and values as pairs of bf16. AMX tiles round queries and the softmax's weights too; other
//! instruction sets widen keys and values and multiply in f32.

use super::TILE;
#[cfg(target_arch = "x86_64")]
use crate::gemm::amx::{self, left::Rounded};
use crate::gemm::left::RowMajor;
use crate::gemm::{Matrix, bf16_pairs, transpose_with};
use crate::isa::{Available, multiversion};
use crate::scratch;

/// Rows of an AMX tile.
#[cfg(target_arch = "x86_64")]
const TILE_ROWS: usize = 16;

/// Rows that buffers of `rows` rows need: AMX tiles also write behind the last one.
pub(super) fn room(isa: Available, rows: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.tiles().is_some() {
        return rows + TILE_ROWS;
    }
    let _ = isa;
    rows
}

/// Whether queries (and the softmax's weights) are rounded as well.
pub(super) fn rounds_queries(isa: Available) -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa.tiles().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        false
    }
}

/// `scores [rows, 64] = queries [rows, dim] · keys` for a tile of keys, `[dim / 2]` rows of 64 pairs, `keys.1` apart.
///
/// # Safety
/// `keys` has `dim / 2` rows of a whole tile; `scores` has [`room`] for the rows.
pub(super) unsafe fn scores(
    isa: Available,
    queries: &[f32],
    dim: usize,
    keys: (*const f32, usize),
    scores: &mut [f32],
) {
    let rows = queries.len() / dim;
    debug_assert!(scores.len() >= rows * TILE, "scores of {rows} rows");
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = isa.tiles() {
        return Rounded::with(queries, rows, dim, |queries| {
            let to = scores.as_mut_ptr();
            // SAFETY: the caller's promise.
            unsafe { amx::times(tiles, queries, (keys.0.cast(), keys.1), TILE, (to, TILE), false) }
        });
    }
    let queries = RowMajor { start: queries.as_ptr(), row: dim };
    let out = Matrix { start: scores.as_mut_ptr(), row: TILE, rows, cols: TILE };
    // SAFETY: the caller's promise.
    unsafe { bf16_pairs(isa, queries, dim, (keys.0.cast(), keys.1), out, false) }
}

/// `sums [rows, dim] += weights [rows, 64] · values` for a tile of values, `[32]` rows of `dim` pairs of tokens.
///
/// # Safety
/// `values` is a whole tile; `sums` has [`room`] for the rows.
pub(super) unsafe fn add_values(
    isa: Available,
    weights: &[f32],
    values: *const f32,
    sums: &mut [f32],
    dim: usize,
) {
    let rows = weights.len() / TILE;
    debug_assert!(sums.len() >= rows * dim, "sums of {rows} rows");
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = isa.tiles() {
        return Rounded::with(weights, rows, TILE, |weights| {
            let to = sums.as_mut_ptr();
            // SAFETY: the caller's promise.
            unsafe { amx::times(tiles, weights, (values.cast(), dim), dim, (to, dim), true) }
        });
    }
    let weights = RowMajor { start: weights.as_ptr(), row: TILE };
    let out = Matrix { start: sums.as_mut_ptr(), row: dim, rows, cols: dim };
    // SAFETY: the caller's promise.
    unsafe { bf16_pairs(isa, weights, TILE, (values.cast(), dim), out, true) }
}

/// Puts a head's keys and values of `count` tokens (rows of `k` and `v`, `width` apart) into their places in a page, from token
/// `slot` on. The values behind them in the page become 0 when it is begun, because weights of 0 multiply these too.
pub(super) fn store(
    isa: Available,
    (k, v, width): (&[f32], &[f32], usize),
    dim: usize,
    (slot, count, page_tokens): (usize, usize, usize),
    keys: &mut [f32],
    values: &mut [f32],
) {
    assert!(keys.len() == dim / 2 * page_tokens && values.len() == keys.len() && slot + count <= page_tokens);
    scratch::with(count * dim / 2, |words| {
        for (row, words) in words.chunks_exact_mut(dim / 2).enumerate() {
            round_pairs(isa, &k[row * width..][..dim], words);
        }
        // SAFETY: `words` is [count, dim / 2], `keys` [dim / 2, page_tokens] with columns `slot .. slot + count`.
        unsafe {
            let to = keys.as_mut_ptr().add(slot);
            transpose_with(isa, (count, dim / 2), words.as_ptr(), dim / 2, to, page_tokens);
        }
    });
    if slot == 0 {
        values[count / 2 * dim..].fill(0.0);
    }
    let mut row = 0;
    while row < count {
        let at = slot + row;
        let to = &mut values[at / 2 * dim..][..dim];
        let own = &v[row * width..][..dim];
        if at % 2 == 0 && row + 1 < count {
            pair_rows(isa, own, &v[(row + 1) * width..][..dim], to);
            row += 2;
        } else {
            half_rows(isa, own, at % 2, to);
            row += 1;
        }
    }
}

multiversion! {
    fn round_pairs(row: &[f32], words: &mut [f32]) = round_pairs_body;
    fn pair_rows(low: &[f32], high: &[f32], words: &mut [f32]) = pair_rows_body;
    fn half_rows(row: &[f32], half: usize, words: &mut [f32]) = half_rows_body;
    pub(super) fn round_values(values: &[f32], rounded: &mut [f32]) = round_values_body;
}

/// The bits of `value` as bf16, to nearest even; what is not a number stays that.
#[inline(always)]
fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { 0x7fc0 } else { rounded }
}

#[inline(always)]
fn round_pairs_body<const FMA: bool>(row: &[f32], words: &mut [f32]) {
    for (word, pair) in words.iter_mut().zip(row.chunks_exact(2)) {
        *word = f32::from_bits(bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16);
    }
}

#[inline(always)]
fn pair_rows_body<const FMA: bool>(low: &[f32], high: &[f32], words: &mut [f32]) {
    for ((word, low), high) in words.iter_mut().zip(low).zip(high) {
        *word = f32::from_bits(bf16_bits(*low) | bf16_bits(*high) << 16);
    }
}

/// One half of each pair: the first begins it, with 0 in the second.
#[inline(always)]
fn half_rows_body<const FMA: bool>(row: &[f32], half: usize, words: &mut [f32]) {
    for (word, value) in words.iter_mut().zip(row) {
        let bits = bf16_bits(*value);
        *word = f32::from_bits(if half == 0 { bits } else { word.to_bits() & 0xffff | bits << 16 });
    }
}

#[inline(always)]
fn round_values_body<const FMA: bool>(values: &[f32], rounded: &mut [f32]) {
    for (rounded, value) in rounded.iter_mut().zip(values) {
        *rounded = f32::from_bits(bf16_bits(*value) << 16);
    }
}
