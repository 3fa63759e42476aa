//! AVX-512: 16 lanes, 32 registers, so tiles of 14 x 32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::left::Left;
use super::source::Source;
use super::tile::{self, Epilogue};
use super::vector::Vector;

/// A 512-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Avx512 {
    /// Of a register.
    #[inline(always)]
    pub(super) fn of(values: __m512) -> Self {
        Self(values)
    }
}

#[inline(always)]
fn mask(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}

// SAFETY: every function keeps to the lanes and blocks that the trait allows, with instructions of AVX-512 alone.
unsafe impl Vector for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 14;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: callers have AVX-512.
        unsafe { Self(_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: callers have AVX-512; `from` has a register of values.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: callers have AVX-512; `to` has room for a register of values.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self {
        // SAFETY: callers have AVX-512; only the first lanes of `from` are read.
        unsafe { Self(_mm512_maskz_loadu_ps(mask(lanes), from)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, lanes: usize) {
        // SAFETY: callers have AVX-512; only the first lanes of `to` are written.
        unsafe { _mm512_mask_storeu_ps(to, mask(lanes), self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: callers have AVX-512.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe { Self(_mm512_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe { Self(_mm512_mul_ps(self.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> Self::Words {
        // SAFETY: callers have AVX-512; `from` has a word for each lane.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn low_bf16(words: Self::Words) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe { Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))) }
    }
    #[inline(always)]
    unsafe fn high_bf16(words: Self::Words) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe {
            Self(_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }
    #[inline(always)]
    unsafe fn one_and_byte(words: Self::Words, index: u32) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe {
            // The byte to bits 15 .. 23.
            let placed = match index {
                0 => _mm512_slli_epi32::<15>(words),
                1 => _mm512_slli_epi32::<7>(words),
                2 => _mm512_srli_epi32::<1>(words),
                _ => _mm512_srli_epi32::<9>(words),
            };
            Self(one_and(placed, 0xff << 15))
        }
    }
    #[inline(always)]
    unsafe fn one_and_nibble(words: Self::Words, index: u32) -> Self {
        // SAFETY: callers have AVX-512.
        unsafe {
            // The four bits to bits 19 .. 23.
            let placed = match index {
                0 => _mm512_slli_epi32::<19>(words),
                1 => _mm512_slli_epi32::<15>(words),
                2 => _mm512_slli_epi32::<11>(words),
                3 => _mm512_slli_epi32::<7>(words),
                4 => _mm512_slli_epi32::<3>(words),
                5 => _mm512_srli_epi32::<1>(words),
                6 => _mm512_srli_epi32::<5>(words),
                _ => _mm512_srli_epi32::<9>(words),
            };
            Self(one_and(placed, 0xf << 19))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: callers have AVX-512; `from` has a half for each lane.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: callers have AVX-512; any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn transpose(
        rows: usize,
        cols: usize,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    ) {
        // SAFETY: callers have AVX-512; `from` has `rows` rows of `cols`, `to` `cols` rows of `rows`.
        unsafe {
            let mut a = [_mm512_setzero_ps(); 16];
            for (i, a) in a.iter_mut().enumerate().take(rows) {
                *a = Self::load_first(from.add(i * from_row), cols).0;
            }
            for (j, column) in transposed(a).into_iter().enumerate().take(cols) {
                Self(column).store_first(to.add(j * to_row), rows);
            }
        }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn tile<A: Left, S: Source<Self>, const M: usize, const P: usize>(
        range: Range<usize>,
        a: A,
        b: [S; P],
        epilogue: Epilogue,
    ) {
        // SAFETY: the promise of this function's caller is what `tile::tile` asks for; AVX-512 is available here.
        unsafe { tile::tile::<Avx512, A, S, M, P>(range, a, b, epilogue) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn dots<const J: usize>(len: usize, x: *const f32, rows: *const f32, row: usize, out: *mut f32) {
        // SAFETY: the promise of this function's caller is what `tile::dots` asks for; AVX-512 is available here.
        unsafe { tile::dots::<Avx512, J>(len, x, rows, row, out) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn chains(rounds: usize) -> f32 {
        // SAFETY: the promise of this function's caller is what `tile::chains` asks for; AVX-512 is available here.
        unsafe { tile::chains::<Avx512>(rounds) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn unpack<S: Source<Self>>(source: S, range: Range<usize>, to: *mut f32, row: usize) {
        // SAFETY: the promise of this function's caller is what `tile::unpack` asks for; AVX-512 is available here.
        unsafe { tile::unpack(source, range, to, row) }
    }
}

/// `(words & mask) | bits of 1.0`
///
/// # Safety
/// AVX-512 F is available.
#[inline(always)]
unsafe fn one_and(words: __m512i, mask: i32) -> __m512 {
    // SAFETY: as above. 0xea is (a & b) | c.
    unsafe {
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xea>(
            words,
            _mm512_set1_epi32(mask),
            _mm512_set1_epi32(0x3f80_0000),
        ))
    }
}

/// Rows become columns: pairs of 1, 2, 4 and 8 lanes change places.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(a: [__m512; 16]) -> [__m512; 16] {
    let mut b = a;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    let mut c = b;
    for i in 0..4 {
        let (w, x) = (_mm512_castps_pd(b[4 * i]), _mm512_castps_pd(b[4 * i + 1]));
        let (y, z) = (_mm512_castps_pd(b[4 * i + 2]), _mm512_castps_pd(b[4 * i + 3]));
        c[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(w, y));
        c[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(w, y));
        c[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, z));
        c[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, z));
    }
    // c[4 i + j] holds, in its lane group g, column 4 g + j of rows 4 i ..
    let mut d = c;
    for j in 0..4 {
        let low = _mm512_shuffle_f32x4::<0x88>(c[j], c[4 + j]);
        let high = _mm512_shuffle_f32x4::<0xdd>(c[j], c[4 + j]);
        let low_below = _mm512_shuffle_f32x4::<0x88>(c[8 + j], c[12 + j]);
        let high_below = _mm512_shuffle_f32x4::<0xdd>(c[8 + j], c[12 + j]);
        d[j] = _mm512_shuffle_f32x4::<0x88>(low, low_below);
        d[8 + j] = _mm512_shuffle_f32x4::<0xdd>(low, low_below);
        d[4 + j] = _mm512_shuffle_f32x4::<0x88>(high, high_below);
        d[12 + j] = _mm512_shuffle_f32x4::<0xdd>(high, high_below);
    }
    d
}
