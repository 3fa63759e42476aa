//! AVX2 and FMA: 8 lanes, 16 registers, so tiles of 6 x 16.

use std::arch::x86_64::*;
use std::ops::Range;

use super::left::Left;
use super::source::Source;
use super::tile::{self, Epilogue};
use super::vector::Vector;

/// A 256-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256);

impl Avx2 {
    /// Of a register.
    #[inline(always)]
    pub(super) fn of(values: __m256) -> Self {
        Self(values)
    }
}

/// The sign bit of the first `lanes` lanes is set.
///
/// # Safety
/// AVX2 is available.
#[inline(always)]
unsafe fn mask(lanes: usize) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// `(words & mask) | bits of 1.0`
///
/// # Safety
/// AVX2 is available.
#[inline(always)]
unsafe fn one_and(words: __m256i, mask: i32) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let top = _mm256_and_si256(words, _mm256_set1_epi32(mask));
        _mm256_castsi256_ps(_mm256_or_si256(top, _mm256_set1_epi32(0x3f80_0000)))
    }
}

// SAFETY: every function keeps to the lanes and blocks that the trait allows, with instructions of AVX2, FMA and F16C alone.
unsafe impl Vector for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    type Words = __m256i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe { Self(_mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe { Self(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C; `from` has a register of values.
        unsafe { Self(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: callers have AVX2, FMA and F16C; `to` has room for a register of values.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C; only the first lanes of `from` are read.
        unsafe { Self(_mm256_maskload_ps(from, mask(lanes))) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, lanes: usize) {
        // Not a masked store: those are slow on AMD's processors.
        // SAFETY: callers have AVX2, FMA and F16C; only the first lanes of `to` are written.
        unsafe {
            if lanes == 8 {
                return self.store(to);
            }
            let mut four = _mm256_castps256_ps128(self.0);
            let mut at = to;
            if lanes & 4 != 0 {
                _mm_storeu_ps(at, four);
                four = _mm256_extractf128_ps::<1>(self.0);
                at = at.add(4);
            }
            if lanes & 2 != 0 {
                _mm_storel_pd(at.cast(), _mm_castps_pd(four));
                four = _mm_movehl_ps(four, four);
                at = at.add(2);
            }
            if lanes & 1 != 0 {
                _mm_store_ss(at, four);
            }
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe { Self(_mm256_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe { Self(_mm256_mul_ps(self.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> Self::Words {
        // SAFETY: callers have AVX2, FMA and F16C; `from` has a word for each lane.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn low_bf16(words: Self::Words) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe { Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))) }
    }
    #[inline(always)]
    unsafe fn high_bf16(words: Self::Words) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe {
            Self(_mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }
    #[inline(always)]
    unsafe fn one_and_byte(words: Self::Words, index: u32) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe {
            let byte = _mm256_srl_epi32(words, _mm_cvtsi32_si128(8 * index as i32));
            Self(one_and(_mm256_slli_epi32::<15>(byte), 0xff << 15))
        }
    }
    #[inline(always)]
    unsafe fn one_and_nibble(words: Self::Words, index: u32) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C.
        unsafe {
            let nibble = _mm256_srl_epi32(words, _mm_cvtsi32_si128(4 * index as i32));
            Self(one_and(_mm256_slli_epi32::<19>(nibble), 0xf << 19))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: callers have AVX2, FMA and F16C; `from` has a half for each lane.
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: callers have AVX2, FMA and F16C; any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn transpose(
        rows: usize,
        cols: usize,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    ) {
        // SAFETY: callers have AVX2, FMA and F16C; `from` has `rows` rows of `cols`, `to` `cols` rows of `rows`.
        unsafe {
            let mut a = [_mm256_setzero_ps(); 8];
            for (i, a) in a.iter_mut().enumerate().take(rows) {
                let from = from.add(i * from_row);
                *a = if cols == 8 { Self::load(from).0 } else { Self::load_first(from, cols).0 };
            }
            for (j, column) in transposed(a).into_iter().enumerate().take(cols) {
                Self(column).store_first(to.add(j * to_row), rows);
            }
        }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<A: Left, S: Source<Self>, const M: usize, const P: usize>(
        range: Range<usize>,
        a: A,
        b: [S; P],
        epilogue: Epilogue,
    ) {
        // SAFETY: the promise of this function's caller is what `tile::tile` asks for; AVX2, FMA and F16C are available here.
        unsafe { tile::tile::<Avx2, A, S, M, P>(range, a, b, epilogue) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const J: usize>(len: usize, x: *const f32, rows: *const f32, row: usize, out: *mut f32) {
        // SAFETY: the promise of this function's caller is what `tile::dots` asks for; AVX2, FMA and F16C are available here.
        unsafe { tile::dots::<Avx2, J>(len, x, rows, row, out) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn chains(rounds: usize) -> f32 {
        // SAFETY: the promise of this function's caller is what `tile::chains` asks for; AVX2, FMA and F16C are available here.
        unsafe { tile::chains::<Avx2>(rounds) }
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn unpack<S: Source<Self>>(source: S, range: Range<usize>, to: *mut f32, row: usize) {
        // SAFETY: the promise of this function's caller is what `tile::unpack` asks for; AVX2, FMA and F16C are available here.
        unsafe { tile::unpack(source, range, to, row) }
    }
}

/// Rows become columns: pairs of 1, 2 and 4 lanes change places.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(a: [__m256; 8]) -> [__m256; 8] {
    let mut b = a;
    for i in 0..4 {
        b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    let mut c = b;
    for i in 0..2 {
        let (w, x) = (_mm256_castps_pd(b[4 * i]), _mm256_castps_pd(b[4 * i + 1]));
        let (y, z) = (_mm256_castps_pd(b[4 * i + 2]), _mm256_castps_pd(b[4 * i + 3]));
        c[4 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(w, y));
        c[4 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(w, y));
        c[4 * i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, z));
        c[4 * i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, z));
    }
    let mut d = c;
    for j in 0..4 {
        d[j] = _mm256_permute2f128_ps::<0x20>(c[j], c[4 + j]);
        d[4 + j] = _mm256_permute2f128_ps::<0x31>(c[j], c[4 + j]);
    }
    d
}
