//! The right matrix of a product, as a tile reads it: sub-panels of frozen weights in every packed form, and of f32 values.

use super::tile::PANEL;
use super::vector::Vector;

/// A sub-panel of the right matrix: two registers of columns for each k.
///
/// # Safety
/// As for [`Vector`]; `k` must be inside the matrix (rounded up to a whole step for `raw`).
pub(crate) unsafe trait Source<V: Vector>: Copy {
    /// Values of k that one `raw` holds.
    const STEP: usize;
    /// Values of k that share `constants`; a multiple of `STEP`.
    const GROUP: usize;
    /// Packed words of `STEP` values of k.
    type Raw: Copy;
    /// Scales of `GROUP` values of k.
    type Constants: Copy;
    /// Registers that every sub-panel of a tile holds beside its sums and the two that become its weights.
    const HELD: usize = 0;
    /// Registers that a tile holds whatever its size.
    const SHARED: usize = 0;

    /// `k` is a multiple of `GROUP`.
    unsafe fn constants(self, k: usize) -> Self::Constants;
    /// `k` is a multiple of `STEP`.
    unsafe fn raw(self, k: usize) -> Self::Raw;
    /// The weights of step `index` (0 .. STEP) of `raw`.
    unsafe fn value(raw: Self::Raw, constants: Self::Constants, index: usize) -> [V; 2];
    /// Asks for what will be needed soon after `k`.
    unsafe fn prefetch(self, k: usize);
}

/// A source in packed form, which comes from memory.
pub(crate) trait Packing: Copy {
    /// Its first byte.
    fn start(self) -> *const u8;
    /// The same, with another prefetch.
    fn prefetching(self, prefetch: Prefetch) -> Self;
}

/// What a tile asks memory for while it reads a packed sub-panel.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    /// What is asked for at the sub-panel's beginning.
    start: *const u8,
    /// One byte more for 2^shift bytes that were read.
    shift: u32,
}

impl Prefetch {
    /// The bytes that follow soon.
    fn own(start: *const u8) -> Self {
        const BYTES: usize = 2048;
        Self { start: start.wrapping_add(BYTES), shift: 0 }
    }

    /// Part `part` of `parts` of the `bytes` that follow `start`, while as many bytes are read: several tiles over one
    /// sub-panel bring the next one from memory together.
    pub(crate) fn part(start: *const u8, bytes: usize, part: usize, parts: usize) -> Self {
        Self { start: start.wrapping_add(bytes * part / parts), shift: parts.ilog2() }
    }

    /// # Safety
    /// As for [`Vector`].
    #[inline(always)]
    unsafe fn ask<V: Vector>(self, read: usize) {
        let address = self.start.wrapping_add(read >> self.shift);
        // SAFETY: a prefetch may name any address.
        unsafe {
            V::prefetch(address);
            V::prefetch(address.wrapping_add(64));
        }
    }
}

/// f32 weights, `row` apart.
#[derive(Clone, Copy)]
pub(crate) struct Floats {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
}

// SAFETY: reads row k of a matrix with all columns of the sub-panel.
unsafe impl<V: Vector> Source<V> for Floats {
    const STEP: usize = 1;
    // Unrolled steps would be mixed by the compiler until their operands no longer fit in registers.
    const GROUP: usize = 1;
    type Raw = [V; 2];
    type Constants = ();

    #[inline(always)]
    unsafe fn constants(self, _k: usize) {}
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> [V; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let from = self.start.add(k * self.row);
            [V::load(from), V::load(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: [V; 2], _constants: (), _index: usize) -> [V; 2] {
        raw
    }
    #[inline(always)]
    unsafe fn prefetch(self, _k: usize) {}
}

/// f32 weights of which only the first `cols` columns exist.
#[derive(Clone, Copy)]
pub(crate) struct FewFloats {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) cols: usize,
}

// SAFETY: reads `cols` elements of row k.
unsafe impl<V: Vector> Source<V> for FewFloats {
    const STEP: usize = 1;
    const GROUP: usize = 1;
    type Raw = [V; 2];
    type Constants = ();

    #[inline(always)]
    unsafe fn constants(self, _k: usize) {}
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> [V; 2] {
        // SAFETY: the trait's contract; a masked-out address is not read.
        unsafe {
            let from = self.start.add(k * self.row);
            [
                V::load_first(from, self.cols.min(V::LANES)),
                V::load_first(from.wrapping_add(V::LANES), self.cols.saturating_sub(V::LANES).min(V::LANES)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: [V; 2], _constants: (), _index: usize) -> [V; 2] {
        raw
    }
    #[inline(always)]
    unsafe fn prefetch(self, _k: usize) {}
}

/// Packed f32 weights: `[k][32]`.
#[derive(Clone, Copy)]
pub(crate) struct PackedF32 {
    from: *const f32,
    prefetch: Prefetch,
}

impl PackedF32 {
    pub(crate) fn new(from: *const f32) -> Self {
        Self { from, prefetch: Prefetch::own(from.cast()) }
    }
}

impl Packing for PackedF32 {
    fn start(self) -> *const u8 {
        self.from.cast()
    }
    fn prefetching(self, prefetch: Prefetch) -> Self {
        Self { prefetch, ..self }
    }
}

// SAFETY: a panel holds 32 columns for every k.
unsafe impl<V: Vector> Source<V> for PackedF32 {
    const STEP: usize = 1;
    const GROUP: usize = 4;
    type Raw = [V; 2];
    type Constants = ();

    #[inline(always)]
    unsafe fn constants(self, _k: usize) {}
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> [V; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let from = self.from.add(k * PANEL);
            [V::load(from), V::load(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: [V; 2], _constants: (), _index: usize) -> [V; 2] {
        raw
    }
    #[inline(always)]
    unsafe fn prefetch(self, k: usize) {
        // SAFETY: the trait's contract.
        unsafe { self.prefetch.ask::<V>(k * PANEL * size_of::<f32>()) }
    }
}

/// Packed bf16 weights: `[k / 2][32]` words, the even k in the lower half. (Also the layout of AMX's right tiles.)
#[derive(Clone, Copy)]
pub(crate) struct PackedBf16 {
    from: *const u32,
    prefetch: Prefetch,
}

impl PackedBf16 {
    pub(crate) fn new(from: *const u32) -> Self {
        Self { from, prefetch: Prefetch::own(from.cast()) }
    }
}

impl Packing for PackedBf16 {
    fn start(self) -> *const u8 {
        self.from.cast()
    }
    fn prefetching(self, prefetch: Prefetch) -> Self {
        Self { prefetch, ..self }
    }
}

// SAFETY: a panel holds 32 columns for every pair of k.
unsafe impl<V: Vector> Source<V> for PackedBf16 {
    const STEP: usize = 2;
    const GROUP: usize = 2;
    type Raw = [V::Words; 2];
    type Constants = ();

    #[inline(always)]
    unsafe fn constants(self, _k: usize) {}
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> Self::Raw {
        // SAFETY: the trait's contract.
        unsafe {
            let from = self.from.add(k / 2 * PANEL);
            [V::load_words(from), V::load_words(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: Self::Raw, _constants: (), index: usize) -> [V; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            // No closure: it would not inherit the caller's instruction set.
            if index == 0 {
                [V::low_bf16(raw[0]), V::low_bf16(raw[1])]
            } else {
                [V::high_bf16(raw[0]), V::high_bf16(raw[1])]
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(self, k: usize) {
        // SAFETY: the trait's contract.
        unsafe { self.prefetch.ask::<V>(k / 2 * PANEL * size_of::<u32>()) }
    }
}

/// bf16 values in pairs of consecutive k, `[k / 2]` rows of words `row` apart, the even k in the lower half: keys and values
/// of attention.
#[derive(Clone, Copy)]
pub(crate) struct PairsBf16 {
    pub(crate) start: *const u32,
    pub(crate) row: usize,
}

// SAFETY: reads row k / 2 of a matrix with all columns of the sub-panel.
unsafe impl<V: Vector> Source<V> for PairsBf16 {
    const STEP: usize = 2;
    const GROUP: usize = 2;
    // The words that both values of k are made of.
    const HELD: usize = 2;
    type Raw = [V::Words; 2];
    type Constants = ();

    #[inline(always)]
    unsafe fn constants(self, _k: usize) {}
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> Self::Raw {
        // SAFETY: the trait's contract.
        unsafe {
            let from = self.start.add(k / 2 * self.row);
            [V::load_words(from), V::load_words(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: Self::Raw, constants: (), index: usize) -> [V; 2] {
        // SAFETY: the trait's contract.
        unsafe { <PackedBf16 as Source<V>>::value(raw, constants, index) }
    }
    #[inline(always)]
    unsafe fn prefetch(self, _k: usize) {}
}

/// Values of k that share a scale.
pub(crate) const GROUP: usize = 32;

/// Bytes of a group of packed int8 weights: 32 f16 scales, then `[8][32]` words of four k each.
pub(crate) const INT8_GROUP: usize = 2 * PANEL + GROUP * PANEL;

/// Packed int8 weights; the bytes are stored with 128 added. `cols` is the sub-panel's first column in its panel.
#[derive(Clone, Copy)]
pub(crate) struct PackedInt8 {
    panel: *const u8,
    col: usize,
    prefetch: Prefetch,
}

impl PackedInt8 {
    pub(crate) fn new(panel: *const u8, col: usize) -> Self {
        Self { panel, col, prefetch: Prefetch::own(panel) }
    }
}

impl Packing for PackedInt8 {
    fn start(self) -> *const u8 {
        self.panel
    }
    fn prefetching(self, prefetch: Prefetch) -> Self {
        Self { prefetch, ..self }
    }
}

// SAFETY: a panel holds 32 columns for every group of k.
unsafe impl<V: Vector> Source<V> for PackedInt8 {
    const STEP: usize = 4;
    const GROUP: usize = GROUP;
    // The scales; and the masks that make a float of a byte.
    const HELD: usize = 4;
    const SHARED: usize = 2;
    type Raw = [V::Words; 2];
    /// 256 s and -384 s: `(1 + (q + 128) / 256) · 256 s - 384 s = q s`, exactly, because s has 11 bits.
    type Constants = [[V; 2]; 2];

    #[inline(always)]
    unsafe fn constants(self, k: usize) -> Self::Constants {
        // SAFETY: the trait's contract.
        unsafe {
            let scales = self.panel.add(k / GROUP * INT8_GROUP).cast::<u16>().add(self.col);
            let (left, right) = (V::load_f16(scales), V::load_f16(scales.add(V::LANES)));
            [
                [left.mul(V::splat(256.0)), left.mul(V::splat(-384.0))],
                [right.mul(V::splat(256.0)), right.mul(V::splat(-384.0))],
            ]
        }
    }
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> Self::Raw {
        // SAFETY: the trait's contract.
        unsafe {
            let group = self.panel.add(k / GROUP * INT8_GROUP + 2 * PANEL).cast::<u32>();
            let from = group.add(k % GROUP / 4 * PANEL + self.col);
            [V::load_words(from), V::load_words(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: Self::Raw, constants: Self::Constants, index: usize) -> [V; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let [left, right] = constants;
            [
                V::one_and_byte(raw[0], index as u32).mul_add(left[0], left[1]),
                V::one_and_byte(raw[1], index as u32).mul_add(right[0], right[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(self, k: usize) {
        // SAFETY: the trait's contract.
        unsafe { self.prefetch.ask::<V>(k / GROUP * INT8_GROUP + k % GROUP / 4 * 4 * PANEL) }
    }
}

/// Bytes of a group of packed 4-bit weights: 32 f16 scales, 32 f16 minima, then `[4][32]` words of eight k each.
pub(crate) const Q4_GROUP: usize = 4 * PANEL + GROUP * PANEL / 2;

/// Packed 4-bit weights, `w = scale · q + minimum`.
#[derive(Clone, Copy)]
pub(crate) struct PackedQ4 {
    panel: *const u8,
    col: usize,
    prefetch: Prefetch,
}

impl PackedQ4 {
    pub(crate) fn new(panel: *const u8, col: usize) -> Self {
        Self { panel, col, prefetch: Prefetch::own(panel) }
    }
}

impl Packing for PackedQ4 {
    fn start(self) -> *const u8 {
        self.panel
    }
    fn prefetching(self, prefetch: Prefetch) -> Self {
        Self { prefetch, ..self }
    }
}

// SAFETY: a panel holds 32 columns for every group of k.
unsafe impl<V: Vector> Source<V> for PackedQ4 {
    const STEP: usize = 8;
    const GROUP: usize = GROUP;
    // Scales and minima; and the masks that make a float of four bits.
    const HELD: usize = 4;
    const SHARED: usize = 2;
    type Raw = [V::Words; 2];
    /// 16 s and m - 16 s: `(1 + q / 16) · 16 s + (m - 16 s) = q s + m`.
    type Constants = [[V; 2]; 2];

    #[inline(always)]
    unsafe fn constants(self, k: usize) -> Self::Constants {
        // SAFETY: the trait's contract.
        unsafe {
            let scales = self.panel.add(k / GROUP * Q4_GROUP).cast::<u16>().add(self.col);
            let (left, right) = (V::load_f16(scales), V::load_f16(scales.add(V::LANES)));
            let minima = scales.add(PANEL);
            let (low_left, low_right) = (V::load_f16(minima), V::load_f16(minima.add(V::LANES)));
            let less = V::splat(-16.0);
            [
                [left.mul(V::splat(16.0)), left.mul_add(less, low_left)],
                [right.mul(V::splat(16.0)), right.mul_add(less, low_right)],
            ]
        }
    }
    #[inline(always)]
    unsafe fn raw(self, k: usize) -> Self::Raw {
        // SAFETY: the trait's contract.
        unsafe {
            let group = self.panel.add(k / GROUP * Q4_GROUP + 4 * PANEL).cast::<u32>();
            let from = group.add(k % GROUP / 8 * PANEL + self.col);
            [V::load_words(from), V::load_words(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn value(raw: Self::Raw, constants: Self::Constants, index: usize) -> [V; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let [left, right] = constants;
            [
                V::one_and_nibble(raw[0], index as u32).mul_add(left[0], left[1]),
                V::one_and_nibble(raw[1], index as u32).mul_add(right[0], right[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(self, k: usize) {
        // SAFETY: the trait's contract.
        unsafe { self.prefetch.ask::<V>(k / GROUP * Q4_GROUP + k % GROUP / 8 * 4 * PANEL) }
    }
}
