//! Plain Rust: the reference of the other instruction sets.

use std::ops::Range;

use super::left::Left;
use super::source::Source;
use super::tile::{self, Epilogue};
use super::vector::Vector;

const LANES: usize = 8;

/// Eight f32 values.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> Portable {
    Portable(std::array::from_fn(f))
}

// SAFETY: every function keeps to the lanes and blocks that the trait allows, without special instructions.
unsafe impl Vector for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 3 };
    type Words = [u32; LANES];

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: `from` has a register of values, by the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: `to` has room for a register of values, by the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        // SAFETY: only the first lanes of `from` are read, by the caller's promise.
        lanes(|i| if i < count { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        for (i, value) in self.0.into_iter().enumerate().take(count) {
            // SAFETY: only the first lanes of `to` are written, by the caller's promise.
            unsafe { *to.add(i) = value }
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        const FMA: bool = cfg!(target_arch = "aarch64");
        lanes(|i| crate::isa::fma::<FMA>(self.0[i], b.0[i], c.0[i]))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        crate::lanes::tree(self.0, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        lanes(|i| self.0[i] * b.0[i])
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        lanes(|i| self.0[i] + b.0[i])
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> Self::Words {
        // SAFETY: `from` has a word for each lane, by the caller's promise.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low_bf16(words: Self::Words) -> Self {
        lanes(|i| f32::from_bits(words[i] << 16))
    }
    #[inline(always)]
    unsafe fn high_bf16(words: Self::Words) -> Self {
        lanes(|i| f32::from_bits(words[i] & 0xffff_0000))
    }
    #[inline(always)]
    unsafe fn one_and_byte(words: Self::Words, index: u32) -> Self {
        lanes(|i| f32::from_bits(0x3f80_0000 | ((words[i] >> (8 * index)) & 0xff) << 15))
    }
    #[inline(always)]
    unsafe fn one_and_nibble(words: Self::Words, index: u32) -> Self {
        lanes(|i| f32::from_bits(0x3f80_0000 | ((words[i] >> (4 * index)) & 0xf) << 19))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: `from` has a half for each lane, by the caller's promise.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        lanes(|i| half::f16::from_bits(halves[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}

    unsafe fn transpose(
        rows: usize,
        cols: usize,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    ) {
        for i in 0..rows {
            for j in 0..cols {
                // SAFETY: `from` has `rows` rows of `cols`, `to` `cols` rows of `rows`, by the caller's promise.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) }
            }
        }
    }
    unsafe fn tile<A: Left, S: Source<Self>, const M: usize, const P: usize>(
        range: Range<usize>,
        a: A,
        b: [S; P],
        epilogue: Epilogue,
    ) {
        // SAFETY: the promise of this function's caller is what `tile::tile` asks for.
        unsafe { tile::tile::<Portable, A, S, M, P>(range, a, b, epilogue) }
    }
    unsafe fn dots<const J: usize>(len: usize, x: *const f32, rows: *const f32, row: usize, out: *mut f32) {
        // SAFETY: the promise of this function's caller is what `tile::dots` asks for.
        unsafe { tile::dots::<Portable, J>(len, x, rows, row, out) }
    }
    unsafe fn chains(rounds: usize) -> f32 {
        // SAFETY: the promise of this function's caller is what `tile::chains` asks for.
        unsafe { tile::chains::<Portable>(rounds) }
    }
    unsafe fn unpack<S: Source<Self>>(source: S, range: Range<usize>, to: *mut f32, row: usize) {
        // SAFETY: the promise of this function's caller is what `tile::unpack` asks for.
        unsafe { tile::unpack(source, range, to, row) }
    }
}
