//! One register of f32 lanes: what an instruction set gives to the tile kernel.

use std::ops::Range;

use super::left::Left;
use super::source::Source;
use super::tile::Epilogue;

/// A vector register of f32 values.
///
/// # Safety
/// The methods may use instructions beyond the target's baseline: call them only where the implementing instruction
/// set is available, from a function that enables it (they are inlined into it). Pointers must be valid for the lanes
/// that are read or written; they need no alignment.
pub(crate) unsafe trait Vector: Copy {
    /// Lanes of one register.
    const LANES: usize;
    /// The most rows of a tile that is two registers wide: 2 · ROWS accumulators fit beside the operands.
    const ROWS: usize;
    /// As many 32-bit words of packed weights as there are lanes.
    type Words: Copy;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The first `lanes` (0 ..= LANES) elements; zero in the other lanes.
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self;
    /// Writes the first `lanes` (0 ..= LANES) elements only.
    unsafe fn store_first(self, to: *mut f32, lanes: usize);
    /// `self * b + c`
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    /// The sum of all lanes, in a fixed order.
    unsafe fn sum(self) -> f32;

    unsafe fn load_words(from: *const u32) -> Self::Words;
    /// The lower 16 bits of each word as a bf16 value.
    unsafe fn low_bf16(words: Self::Words) -> Self;
    /// The upper 16 bits of each word as a bf16 value.
    unsafe fn high_bf16(words: Self::Words) -> Self;
    /// `1 + b / 256` for byte `index` (0 .. 4) of each word: the byte as the top of a mantissa.
    unsafe fn one_and_byte(words: Self::Words, index: u32) -> Self;
    /// `1 + q / 16` for the four bits `index` (0 .. 8) of each word.
    unsafe fn one_and_nibble(words: Self::Words, index: u32) -> Self;
    /// Half-precision values, widened.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Asks for the cache line of `address`, which need not be readable.
    unsafe fn prefetch(address: *const u8);

    /// Transposes a block of `rows` x `cols` (each at most LANES): `to[j][i] = from[i][j]`, rows `from_row` and `to_row`
    /// apart.
    unsafe fn transpose(
        rows: usize,
        cols: usize,
        from: *const f32,
        from_row: usize,
        to: *mut f32,
        to_row: usize,
    );
    /// [`super::tile::tile`], compiled for this instruction set.
    unsafe fn tile<A: Left, S: Source<Self>, const M: usize, const P: usize>(
        range: Range<usize>,
        a: A,
        b: [S; P],
        epilogue: Epilogue,
    );
    /// [`super::tile::dots`], compiled for this instruction set.
    unsafe fn dots<const J: usize>(len: usize, x: *const f32, rows: *const f32, row: usize, out: *mut f32);
    /// [`super::tile::unpack`], compiled for this instruction set.
    unsafe fn unpack<S: Source<Self>>(source: S, range: Range<usize>, to: *mut f32, row: usize);
    /// [`super::tile::chains`], compiled for this instruction set.
    unsafe fn chains(rounds: usize) -> f32;
}
