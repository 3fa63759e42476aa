//! What an instruction set gives to products of integers.

use super::tile::{self, Activations};
use super::weights::Weights;
use crate::gemm::portable::Portable;
use crate::gemm::tile::Epilogue;
use crate::gemm::vector::Vector;

/// A vector of words with a vector of f32 as wide.
///
/// # Safety
/// As for [`Vector`].
pub(super) unsafe trait Integers: Copy {
    /// Lanes of one register.
    const LANES: usize = <Self::Floats as Vector>::LANES;
    /// The most rows of a tile of two registers: sums of f32, sums of integers and the operands fit in registers.
    const TILE_ROWS: usize;
    /// The f32 values of the instruction set.
    type Floats: Vector;

    unsafe fn splat(word: u32) -> Self;
    unsafe fn load(from: *const u32) -> Self;
    unsafe fn store(self, to: *mut u32);
    /// `self >> bits & mask` in each word; `bits` is 0, 4, 8 or 12.
    unsafe fn part(self, bits: u32, mask: u32) -> Self;
    /// `self + a₀ b₀ + a₁ b₁`, the words of a and b being pairs of signed 16 bits.
    unsafe fn add_pairs(self, a: Self, b: Self) -> Self;
    /// Signed words as f32, to nearest even.
    unsafe fn floats(self) -> Self::Floats;
    /// `a * b + c` in one rounding.
    unsafe fn fused(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// [`tile::tile`], compiled for this instruction set.
    unsafe fn tile<W: Weights<Self>, const M: usize>(rows: Activations, weights: W, epilogue: Epilogue);
    /// [`tile::unpack`], compiled for this instruction set.
    unsafe fn unpack<W: Weights<Self>>(weights: W, groups: usize, to: *mut u32);
}

/// Two times 16 bits, signed.
fn halves(word: u32) -> [i32; 2] {
    [i32::from(word as u16 as i16), i32::from((word >> 16) as u16 as i16)]
}

/// Words of the portable vector.
#[derive(Clone, Copy)]
pub(super) struct Words([u32; Portable::LANES]);

// SAFETY: every function keeps to the lanes that the trait allows, without special instructions.
unsafe impl Integers for Words {
    const TILE_ROWS: usize = 4;
    type Floats = Portable;

    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        Self([word; Portable::LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self {
        // SAFETY: `from` has a word for each lane, by the caller's promise.
        Self(unsafe { from.cast::<[u32; Portable::LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32) {
        // SAFETY: `to` has room for each lane, by the caller's promise.
        unsafe { to.cast::<[u32; Portable::LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn part(self, bits: u32, mask: u32) -> Self {
        Self(self.0.map(|word| word >> bits & mask))
    }
    #[inline(always)]
    unsafe fn add_pairs(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| {
            let ([a0, a1], [b0, b1]) = (halves(a.0[i]), halves(b.0[i]));
            self.0[i].wrapping_add((a0 * b0 + a1 * b1) as u32)
        }))
    }
    #[inline(always)]
    unsafe fn floats(self) -> Portable {
        let floats = self.0.map(|word| word as i32 as f32);
        // SAFETY: the array is a register of values.
        unsafe { Portable::load(floats.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn fused(a: Portable, b: Portable, c: Portable) -> Portable {
        let values = |v: Portable| {
            let mut values = [0.0; Portable::LANES];
            // SAFETY: the array is a register of values.
            unsafe { v.store(values.as_mut_ptr()) };
            values
        };
        let (a, b, c) = (values(a), values(b), values(c));
        // One rounding, as the other instruction sets have it; where the processor cannot, a function does.
        let sums: [f32; Portable::LANES] = std::array::from_fn(|i| a[i].mul_add(b[i], c[i]));
        // SAFETY: as above.
        unsafe { Portable::load(sums.as_ptr()) }
    }
    unsafe fn tile<W: Weights<Self>, const M: usize>(rows: Activations, weights: W, epilogue: Epilogue) {
        // SAFETY: the promise of this function's caller is what `tile::tile` asks for.
        unsafe { tile::tile::<Self, W, M>(rows, weights, epilogue) }
    }
    unsafe fn unpack<W: Weights<Self>>(weights: W, groups: usize, to: *mut u32) {
        // SAFETY: the promise of this function's caller is what `tile::unpack` asks for.
        unsafe { tile::unpack::<Self, W>(weights, groups, to) }
    }
}
