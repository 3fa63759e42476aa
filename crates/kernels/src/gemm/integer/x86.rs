//! AVX-512 and AVX2, each with VNNI (one instruction for the products of a pair and their sum) and without.

use std::arch::asm;
use std::arch::x86_64::*;

use super::lanes::Integers;
use super::tile::{self, Activations};
use super::weights::Weights;
use crate::gemm::avx2::Avx2;
use crate::gemm::avx512::Avx512;
use crate::gemm::tile::Epilogue;
use crate::gemm::vector::Vector;
use crate::isa::{Available, Isa};

/// Whether this machine has VNNI for the vectors of an instruction set.
pub(super) fn has_vnni(isa: Available) -> bool {
    match isa.isa() {
        Isa::Avx512 | Isa::Amx => is_x86_feature_detected!("avx512vnni"),
        Isa::Avx2 => is_x86_feature_detected!("avxvnni"),
        Isa::Portable | Isa::Neon => false,
    }
}

/// `sum + a · b` of pairs in one instruction. (The compiler takes the intrinsic apart into two.)
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni512(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: works on registers alone, with instructions that are enabled here.
    unsafe {
        asm!("vpdpwssd {sum}, {a}, {b}", sum = inout(zmm_reg) sum, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// [`vnni512`] with half as many lanes.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn vnni256(mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: as above.
    unsafe {
        asm!("{{vex}} vpdpwssd {sum}, {a}, {b}", sum = inout(ymm_reg) sum, a = in(ymm_reg) a, b = in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Implements [`Integers`] for a register; the last two arguments are `self + a · b` of pairs, and the instructions in use.
macro_rules! integers {
    ($(#[$meta:meta])* $name:ident, $register:ty, $floats:ident, $rows:literal, $features:literal,
        $splat:ident, $load:ident, $store:ident, $shift:ident, $and:ident, $convert:ident,
        |$sum:ident, $a:ident, $b:ident| $dots:expr) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(super) struct $name($register);

        // SAFETY: every function keeps to the lanes that the trait allows, with instructions that callers have.
        unsafe impl Integers for $name {
            const TILE_ROWS: usize = $rows;
            type Floats = $floats;

            #[inline(always)]
            unsafe fn splat(word: u32) -> Self {
                // SAFETY: callers have the instructions.
                unsafe { Self($splat(word as i32)) }
            }
            #[inline(always)]
            unsafe fn load(from: *const u32) -> Self {
                // SAFETY: as above; `from` has a word for each lane.
                unsafe { Self($load(from.cast())) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u32) {
                // SAFETY: as above; `to` has room for each lane.
                unsafe { $store(to.cast(), self.0) }
            }
            #[inline(always)]
            unsafe fn part(self, bits: u32, mask: u32) -> Self {
                // SAFETY: as above.
                unsafe {
                    let moved = match bits {
                        0 => self.0,
                        4 => $shift::<4>(self.0),
                        8 => $shift::<8>(self.0),
                        _ => $shift::<12>(self.0),
                    };
                    Self($and(moved, $splat(mask as i32)))
                }
            }
            #[inline(always)]
            unsafe fn add_pairs(self, a: Self, b: Self) -> Self {
                let ($sum, $a, $b) = (self.0, a.0, b.0);
                // SAFETY: as above.
                unsafe { Self($dots) }
            }
            #[inline(always)]
            unsafe fn floats(self) -> $floats {
                // SAFETY: as above.
                unsafe { $floats::of($convert(self.0)) }
            }
            #[inline(always)]
            unsafe fn fused(a: $floats, b: $floats, c: $floats) -> $floats {
                // SAFETY: as above.
                unsafe { a.mul_add(b, c) }
            }
            #[target_feature(enable = $features)]
            unsafe fn tile<W: Weights<Self>, const M: usize>(rows: Activations, weights: W, epilogue: Epilogue) {
                // SAFETY: the promise of this function's caller is what `tile::tile` asks for.
                unsafe { tile::tile::<Self, W, M>(rows, weights, epilogue) }
            }
            #[target_feature(enable = $features)]
            unsafe fn unpack<W: Weights<Self>>(weights: W, groups: usize, to: *mut u32) {
                // SAFETY: the promise of this function's caller is what `tile::unpack` asks for.
                unsafe { tile::unpack::<Self, W>(weights, groups, to) }
            }
        }
    };
}

integers! {
    /// AVX-512 with VNNI.
    Vnni512, __m512i, Avx512, 6, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
    _mm512_set1_epi32, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_srli_epi32, _mm512_and_si512, _mm512_cvtepi32_ps,
    |sum, a, b| vnni512(sum, a, b)
}

integers! {
    /// AVX-512 without it.
    Pairs512, __m512i, Avx512, 6, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    _mm512_set1_epi32, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_srli_epi32, _mm512_and_si512, _mm512_cvtepi32_ps,
    |sum, a, b| _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
}

integers! {
    /// AVX2 with AVX-VNNI.
    Vnni256, __m256i, Avx2, 3, "avxvnni,avx2,fma,f16c",
    _mm256_set1_epi32, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_srli_epi32, _mm256_and_si256, _mm256_cvtepi32_ps,
    |sum, a, b| vnni256(sum, a, b)
}

integers! {
    /// AVX2 without it.
    Pairs256, __m256i, Avx2, 3, "avx2,fma,f16c",
    _mm256_set1_epi32, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_srli_epi32, _mm256_and_si256, _mm256_cvtepi32_ps,
    |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}
