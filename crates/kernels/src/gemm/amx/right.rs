//! The right matrix of a gradient's product: packed panels with their inputs as columns.

use std::sync::OnceLock;

use super::tiles::STEP;
use crate::gemm::tile::PANEL;
use crate::packed::Packed;

/// Words of 32 x 32 packed weights.
const SQUARE: usize = STEP / 2 * PANEL;

/// Inputs `32 panel ..` of W as a panel: `[outputs / 2][32]` pairs of outputs, from the packed `[inputs / 2][32]` pairs of inputs.
pub(super) fn transposed_panel(w: &Packed, panel: usize, to: &mut [u32]) {
    assert!(panel * PANEL < w.k() && to.len() == w.panels() * SQUARE, "a panel of the weight's inputs");
    for (block, to) in to.chunks_exact_mut(SQUARE).enumerate() {
        // SAFETY: packed panels are padded to whole squares of 32 x 32, and this is one of them.
        let from =
            unsafe { std::slice::from_raw_parts(w.panel(block).cast::<u32>().add(panel * SQUARE), SQUARE) };
        transpose_square(from, to);
    }
}

/// `[k / 2][32 n]` pairs along k become `[n / 2][32 k]` pairs along n.
fn transpose_square(from: &[u32], to: &mut [u32]) {
    if has_avx512() {
        // SAFETY: the processor has the instructions; both hold a square.
        unsafe { transpose_by_words(from, to) };
        return;
    }
    for (pair, to) in to.chunks_exact_mut(PANEL).enumerate() {
        for (k, to) in to.iter_mut().enumerate() {
            let words = &from[k / 2 * PANEL + 2 * pair..][..2];
            let half = |word: u32| word >> (16 * (k % 2)) & 0xffff;
            *to = half(words[0]) | half(words[1]) << 16;
        }
    }
}

fn has_avx512() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"))
}

/// A square by 64-bit elements: two words (n, n + 1) of one pair of k become, after their halves are exchanged, the pairs of
/// n for k and for k + 1, which stay together while 16 x 16 of them are transposed.
///
/// # Safety
/// The processor has the instructions; both slices hold a square.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn transpose_by_words(from: &[u32], to: &mut [u32]) {
    use std::arch::x86_64::*;
    debug_assert!(from.len() == SQUARE && to.len() == SQUARE);
    // Bytes (k: n, k + 1: n, k: n + 1, k + 1: n + 1) of two words become (k: n, k: n + 1, k + 1: n, k + 1: n + 1).
    let exchange =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    // SAFETY: row r of `from` is 32 words; quarter q of it 8 words, which are 4 elements of 64 bits. Eight rows of eight
    // elements are transposed at a time: rows are pairs of k, elements pairs of n.
    unsafe {
        for k in (0..16).step_by(8) {
            for half in 0..2 {
                let mut rows = [_mm512_setzero_si512(); 8];
                for (i, row) in rows.iter_mut().enumerate() {
                    let words = _mm512_loadu_si512(from.as_ptr().add((k + i) * PANEL + half * 16).cast());
                    *row = _mm512_shuffle_epi8(words, exchange);
                }
                let mut pairs = [_mm512_setzero_si512(); 8];
                for i in 0..4 {
                    pairs[2 * i] = _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]);
                    pairs[2 * i + 1] = _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]);
                }
                // pairs[2 i + odd] has, in lane l, elements 2 l + odd of rows 2 i and 2 i + 1.
                for odd in 0..2 {
                    let (a, b, c, d) = (pairs[odd], pairs[2 + odd], pairs[4 + odd], pairs[6 + odd]);
                    let (low_ab, high_ab) =
                        (_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
                    let (low_cd, high_cd) =
                        (_mm512_shuffle_i64x2(c, d, 0x44), _mm512_shuffle_i64x2(c, d, 0xee));
                    let columns = [
                        _mm512_shuffle_i64x2(low_ab, low_cd, 0x88),
                        _mm512_shuffle_i64x2(low_ab, low_cd, 0xdd),
                        _mm512_shuffle_i64x2(high_ab, high_cd, 0x88),
                        _mm512_shuffle_i64x2(high_ab, high_cd, 0xdd),
                    ];
                    for (lane, column) in columns.into_iter().enumerate() {
                        let pair = half * 8 + 2 * lane + odd;
                        _mm512_storeu_si512(to.as_mut_ptr().add(pair * PANEL + 2 * k).cast(), column);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares() {
        // Half h of word (pair of k, n) is k = 2 pair + h.
        let value = |k: usize, n: usize| (k * PANEL + n) as u32;
        let from: Vec<u32> = (0..SQUARE)
            .map(|at| (at / PANEL * 2, at % PANEL))
            .map(|(k, n)| value(k, n) | value(k + 1, n) << 16)
            .collect();
        let mut to = vec![0; SQUARE];
        transpose_square(&from, &mut to);
        for (at, &word) in to.iter().enumerate() {
            let (n, k) = (at / PANEL * 2, at % PANEL);
            assert_eq!(word, value(k, n) | value(k, n + 1) << 16, "pair {n} of input {k}");
        }
    }
}
