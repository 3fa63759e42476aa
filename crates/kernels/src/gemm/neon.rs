//! NEON: two registers of 4 lanes work as one of 8, in the layout of packed weights that AVX2 uses; of 32 registers, tiles of
//! 6 x 16 take 24 for their sums.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::left::Left;
use super::source::Source;
use super::tile::{self, Epilogue};
use super::vector::Vector;

const LANES: usize = 8;

/// Two 128-bit registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t, float32x4_t);

/// Two 128-bit registers of words.
type Words = (uint32x4_t, uint32x4_t);

/// The words as f32 values.
#[inline]
#[target_feature(enable = "neon")]
fn floats((low, high): Words) -> Neon {
    Neon(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
}

/// `(words >> right << left) & mask | bits of 1.0`
#[inline]
#[target_feature(enable = "neon")]
fn one_and((low, high): Words, right: u32, left: i32, mask: u32) -> Neon {
    let moved = |words| vshlq_u32(vshlq_u32(words, vdupq_n_s32(-(right as i32))), vdupq_n_s32(left));
    let part = |words| vorrq_u32(vandq_u32(moved(words), vdupq_n_u32(mask)), vdupq_n_u32(0x3f80_0000));
    floats((part(low), part(high)))
}

// SAFETY: every function keeps to the lanes and blocks that the trait allows, with instructions of NEON alone.
unsafe impl Vector for Neon {
    const LANES: usize = LANES;
    const ROWS: usize = 6;
    type Words = Words;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: callers have NEON.
        unsafe { Self(vdupq_n_f32(0.0), vdupq_n_f32(0.0)) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: callers have NEON.
        unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: callers have NEON; `from` has a register of values.
        unsafe { Self(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: callers have NEON; `to` has room for a register of values.
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self {
        let mut values = [0f32; LANES];
        for (i, value) in values.iter_mut().enumerate().take(lanes) {
            // SAFETY: callers have NEON; only the first lanes of `from` are read.
            *value = unsafe { *from.add(i) };
        }
        // SAFETY: callers have NEON; only the first lanes of `from` are read.
        unsafe { Self::load(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, lanes: usize) {
        let mut values = [0f32; LANES];
        // SAFETY: callers have NEON; only the first lanes of `to` are written.
        unsafe { self.store(values.as_mut_ptr()) };
        for (i, value) in values.into_iter().enumerate().take(lanes) {
            // SAFETY: callers have NEON; only the first lanes of `to` are written.
            unsafe { *to.add(i) = value };
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: callers have NEON.
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: callers have NEON.
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: callers have NEON.
        unsafe { Self(vmulq_f32(self.0, b.0), vmulq_f32(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: callers have NEON.
        unsafe { Self(vaddq_f32(self.0, b.0), vaddq_f32(self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> Words {
        // SAFETY: callers have NEON; `from` has a word for each lane.
        unsafe { (vld1q_u32(from), vld1q_u32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn low_bf16(words: Words) -> Self {
        // SAFETY: callers have NEON.
        unsafe { floats((vshlq_n_u32::<16>(words.0), vshlq_n_u32::<16>(words.1))) }
    }
    #[inline(always)]
    unsafe fn high_bf16(words: Words) -> Self {
        // SAFETY: callers have NEON.
        unsafe {
            let top = vdupq_n_u32(0xffff_0000);
            floats((vandq_u32(words.0, top), vandq_u32(words.1, top)))
        }
    }
    #[inline(always)]
    unsafe fn one_and_byte(words: Words, index: u32) -> Self {
        // SAFETY: callers have NEON.
        unsafe { one_and(words, 8 * index, 15, 0xff << 15) }
    }
    #[inline(always)]
    unsafe fn one_and_nibble(words: Words, index: u32) -> Self {
        // SAFETY: callers have NEON.
        unsafe { one_and(words, 4 * index, 19, 0xf << 19) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // Half precision values are no type of stable Rust; the conversion itself is part of the baseline.
        let (low, high): (float32x4_t, float32x4_t);
        // SAFETY: callers have NEON; `from` has a half for each lane.
        unsafe {
            let halves = vld1q_u16(from);
            asm!(
                "fcvtl {low:v}.4s, {halves:v}.4h",
                "fcvtl2 {high:v}.4s, {halves:v}.8h",
                halves = in(vreg) halves,
                low = out(vreg) low,
                high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        Self(low, high)
    }
    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: callers have NEON; any address may be asked for.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags));
        }
    }

    unsafe fn transpose(
        rows: usize,
        cols: usize,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    ) {
        for row in (0..rows).step_by(4) {
            for col in (0..cols).step_by(4) {
                let (height, width) = ((rows - row).min(4), (cols - col).min(4));
                // SAFETY: callers have NEON; `from` has `rows` rows of `cols`, `to` `cols` rows of `rows`.
                unsafe {
                    let from = from.add(row * from_row + col);
                    let to = to.add(col * to_row + row);
                    if height == 4 && width == 4 {
                        transpose_four(from, from_row, to, to_row);
                        continue;
                    }
                    for i in 0..height {
                        for j in 0..width {
                            *to.add(j * to_row + i) = *from.add(i * from_row + j);
                        }
                    }
                }
            }
        }
    }
    unsafe fn tile<A: Left, S: Source<Self>, const M: usize, const P: usize>(
        range: Range<usize>,
        a: A,
        b: [S; P],
        epilogue: Epilogue,
    ) {
        // SAFETY: the promise of this function's caller is what `tile::tile` asks for; NEON is available here.
        unsafe { tile::tile::<Neon, A, S, M, P>(range, a, b, epilogue) }
    }
    unsafe fn dots<const J: usize>(len: usize, x: *const f32, rows: *const f32, row: usize, out: *mut f32) {
        // SAFETY: the promise of this function's caller is what `tile::dots` asks for; NEON is available here.
        unsafe { tile::dots::<Neon, J>(len, x, rows, row, out) }
    }
    unsafe fn chains(rounds: usize) -> f32 {
        // SAFETY: the promise of this function's caller is what `tile::chains` asks for; NEON is available here.
        unsafe { tile::chains::<Neon>(rounds) }
    }
    unsafe fn unpack<S: Source<Self>>(source: S, range: Range<usize>, to: *mut f32, row: usize) {
        // SAFETY: the promise of this function's caller is what `tile::unpack` asks for; NEON is available here.
        unsafe { tile::unpack(source, range, to, row) }
    }
}

/// A block of 4 x 4: pairs of 1 and 2 lanes change places.
///
/// # Safety
/// The pointers are valid for four rows of four values each.
#[inline(always)]
unsafe fn transpose_four(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let row = |i: usize| vld1q_f32(from.add(i * from_row));
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let pairs = |x, y| (vreinterpretq_f64_f32(vtrn1q_f32(x, y)), vreinterpretq_f64_f32(vtrn2q_f32(x, y)));
        let ((ab_even, ab_odd), (cd_even, cd_odd)) = (pairs(a, b), pairs(c, d));
        let columns = [
            vtrn1q_f64(ab_even, cd_even),
            vtrn1q_f64(ab_odd, cd_odd),
            vtrn2q_f64(ab_even, cd_even),
            vtrn2q_f64(ab_odd, cd_odd),
        ];
        for (j, column) in columns.into_iter().enumerate() {
            vst1q_f32(to.add(j * to_row), vreinterpretq_f32_f64(column));
        }
    }
}
