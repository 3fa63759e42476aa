//! Attention by AMX tiles: keys and values as pairs of bf16.

use super::TILE;
use crate::gemm::amx::HasTiles;
use crate::gemm::amx::left::{LeftTiles, Rounded};
use crate::gemm::{amx, transpose_with};
use crate::isa::{Available, multiversion};
use crate::scratch;

/// Some queries, rounded.
pub(super) type Queries<'a> = LeftTiles<'a>;

/// Calls `body` with `queries`, `[rows, dim]`, rounded.
pub(super) fn with_queries<T>(
    queries: &[f32],
    rows: usize,
    dim: usize,
    body: impl FnOnce(Queries<'_>) -> T,
) -> T {
    Rounded::with(queries, rows, dim, body)
}

/// `scores [rows, 64] = queries · keys` for a tile of keys, `[dim / 2]` rows of 64 pairs, `keys.1` apart.
///
/// # Safety
/// `keys` has `dim / 2` rows of a whole tile; `scores` has the rows, more than 32 rounded up to 16.
pub(super) unsafe fn scores(
    tiles: HasTiles,
    queries: Queries<'_>,
    keys: (*const f32, usize),
    scores: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { amx::times(tiles, queries, (keys.0.cast(), keys.1), TILE, (scores, TILE), false) }
}

/// `sums [rows, dim] += weights [rows, 64] · values` for a tile of values, `[32]` rows of `dim` pairs of tokens.
///
/// # Safety
/// `values` is a whole tile; `sums` has the rows, more than 32 rounded up to 16.
pub(super) unsafe fn add_values(
    tiles: HasTiles,
    weights: &[f32],
    values: *const f32,
    sums: *mut f32,
    dim: usize,
) {
    Rounded::with(weights, weights.len() / TILE, TILE, |weights| {
        // SAFETY: the caller's promise.
        unsafe { amx::times(tiles, weights, (values.cast(), dim), dim, (sums, dim), true) }
    });
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
