//! The tile kernel: a few rows of the left matrix times a few sub-panels of the right one, in registers.
//!
//! Every output element is a chain of fused multiply-adds over ascending k, whatever rows and columns are computed
//! beside it. That is why a row's result does not depend on the batch it stands in. Long products are cut into chains of
//! [`CHAIN`] steps that are added up one after another: errors of rounding grow with the length of a chain.

use std::ops::Range;

use super::vector::Vector;

/// Columns of a panel of packed weights. A sub-panel is two registers of an instruction set; it divides a panel.
pub(crate) const PANEL: usize = 32;

/// Steps of one chain of multiply-adds; that many rows of a panel stay in the first-level cache as f32.
pub(crate) const CHAIN: usize = 192;

/// Element (row, k) of the left matrix.
pub(crate) trait Left: Copy {
    /// # Safety
    /// The element is inside the matrix.
    unsafe fn at(self, row: usize, k: usize) -> f32;
}

/// A left matrix that can be entered at any row.
pub(crate) trait Rows: Left {
    /// The matrix from `rows` down.
    fn down(self, rows: usize) -> Self;
}

/// Any two strides.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Left for Strided {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(row * self.row + k * self.col) }
    }
}

impl Rows for Strided {
    #[inline(always)]
    fn down(self, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(rows * self.row), ..self }
    }
}

/// Contiguous rows.
#[derive(Clone, Copy)]
pub(crate) struct RowMajor {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
}

impl Left for RowMajor {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(row * self.row + k) }
    }
}

impl Rows for RowMajor {
    #[inline(always)]
    fn down(self, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(rows * self.row), ..self }
    }
}

/// Contiguous columns: the transpose of contiguous rows.
#[derive(Clone, Copy)]
pub(crate) struct ColMajor {
    pub(crate) start: *const f32,
    pub(crate) col: usize,
}

impl Left for ColMajor {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(k * self.col + row) }
    }
}

impl Rows for ColMajor {
    #[inline(always)]
    fn down(self, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(rows), ..self }
    }
}

/// `[k][M]`: the M values of one step side by side.
#[derive(Clone, Copy)]
pub(crate) struct Interleaved<const M: usize>(pub(crate) *const f32);

impl<const M: usize> Left for Interleaved<M> {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(k * M + row) }
    }
}

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
    /// The same, asking for other bytes ahead.
    fn asking(self, ahead: Ahead) -> Self;
}

/// What a tile asks for while it reads a packed sub-panel.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// What is asked for at the sub-panel's beginning.
    start: *const u8,
    /// One byte more for 2^shift bytes that were read.
    shift: u32,
}

impl Ahead {
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
    unsafe fn prefetch<V: Vector>(self, read: usize) {
        let address = self.start.wrapping_add(read >> self.shift);
        // SAFETY: a prefetch may name any address.
        unsafe {
            V::prefetch(address);
            V::prefetch(address.wrapping_add(64));
        }
    }
}

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) to: *mut f32,
    pub(crate) row: usize,
    /// Columns that exist, of all sub-panels together.
    pub(crate) cols: usize,
    pub(crate) sums: Sums,
}

/// What becomes of the values in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    /// They are overwritten.
    Write,
    /// Finished chains are added to them.
    Add,
    /// The chains start from them, so that a chain may be computed in several calls with the same bits.
    Continue,
}

impl Ends {
    /// The same for a tile `rows` down and `cols` to the right.
    #[inline(always)]
    pub(crate) fn shifted(self, rows: usize, cols: usize) -> Self {
        Self {
            to: self.to.wrapping_add(rows * self.row + cols),
            cols: self.cols.saturating_sub(cols),
            ..self
        }
    }
}

/// The most rows of a tile that is `subs` sub-panels wide: its sums, a step's weights with what they are made of, and one
/// value of the left matrix fit in registers.
pub(crate) const fn most_rows<V: Vector, S: Source<V>>(subs: usize) -> usize {
    let registers = 2 * V::ROWS + 3;
    let rows = registers.saturating_sub((2 + S::HELD) * subs + S::SHARED + 1) / (2 * subs);
    // One row must go through, if not all in registers.
    if rows == 0 && subs == 1 { 1 } else { rows }
}

/// One value for each source, without a closure (it would not inherit the caller's instruction set) and without moving
/// the array through an iterator (it would stay in memory).
macro_rules! gather {
    ($sources:expr, $source:ident => $value:expr) => {{
        let $source = $sources[0];
        let mut values = [$value; P];
        for (p, value) in values.iter_mut().enumerate().skip(1) {
            let $source = $sources[p];
            *value = $value;
        }
        values
    }};
}

/// `M` rows times `P` sub-panels over some values of k: one chain each. `k` starts at a multiple of the source's group.
///
/// # Safety
/// As for [`Vector`]; `a`, `b` and `ends` must cover the tile.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, A: Left, S: Source<V>, const M: usize, const P: usize>(
    range: Range<usize>,
    a: A,
    b: [S; P],
    ends: Ends,
) {
    // Larger tiles would not fit in registers; the drivers do not ask for them, and no code is made for them.
    if const { M > most_rows::<V, S>(P) } {
        unreachable!("a tile of {M} x {P} is too large");
    }
    // SAFETY: the caller's promise.
    unsafe {
        let lanes = |p: usize, v: usize| ends.cols.saturating_sub((2 * p + v) * V::LANES).min(V::LANES);
        let to =
            |row: usize, p: usize, v: usize| ends.to.wrapping_add(row * ends.row + (2 * p + v) * V::LANES);
        let full = ends.cols >= 2 * P * V::LANES;
        let mut sums = [[[V::zero(); 2]; P]; M];
        if ends.sums == Sums::Continue {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let (to, lanes) = (to(row, p, v), lanes(p, v));
                        *sum = if full { V::load(to) } else { V::load_first(to, lanes) };
                    }
                }
            }
        }
        let Range { start: mut k, end } = range;
        while k + S::GROUP <= end {
            let constants = gather!(b, source => source.constants(k));
            for step in 0..S::GROUP / S::STEP {
                let k = k + step * S::STEP;
                let raw = gather!(b, source => source.raw(k));
                for source in &b {
                    source.prefetch(k);
                }
                for index in 0..S::STEP {
                    let mut values = [[V::zero(); 2]; P];
                    for (p, value) in values.iter_mut().enumerate() {
                        *value = S::value(raw[p], constants[p], index);
                    }
                    multiply(&mut sums, a, k + index, &values);
                }
            }
            k += S::GROUP;
        }
        if k < end {
            let constants = gather!(b, source => source.constants(k));
            for k in k..end {
                let start = k / S::STEP * S::STEP;
                let mut values = [[V::zero(); 2]; P];
                for (p, value) in values.iter_mut().enumerate() {
                    *value = S::value(b[p].raw(start), constants[p], k - start);
                }
                multiply(&mut sums, a, k, &values);
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (p, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let (to, lanes) = (to(row, p, v), lanes(p, v));
                    let mut sum = sum;
                    if ends.sums == Sums::Add {
                        sum = sum.add(if full { V::load(to) } else { V::load_first(to, lanes) });
                    }
                    if full { sum.store(to) } else { sum.store_first(to, lanes) }
                }
            }
        }
    }
}

/// Writes the sub-panel's weights of `range` as f32, `PANEL` columns apart; the first k goes to `to`.
///
/// # Safety
/// As for [`Vector`]; `range.start` is a multiple of the source's group.
#[inline(always)]
pub(crate) unsafe fn unpack<V: Vector, S: Source<V>>(source: S, range: Range<usize>, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut group = range.start;
        while group < range.end {
            let constants = source.constants(group);
            let end = (group + S::GROUP).min(range.end);
            let mut k = group;
            while k < end {
                let raw = source.raw(k);
                for index in 0..S::STEP.min(end - k) {
                    let [left, right] = S::value(raw, constants, index);
                    let to = to.add((k + index - range.start) * PANEL);
                    left.store(to);
                    right.store(to.add(V::LANES));
                }
                k += S::STEP;
            }
            group = end;
        }
    }
}

/// One step of k for the whole tile.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn multiply<V: Vector, A: Left, const M: usize, const P: usize>(
    sums: &mut [[[V; 2]; P]; M],
    a: A,
    k: usize,
    values: &[[V; 2]; P],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for (row, sums) in sums.iter_mut().enumerate() {
            let left = V::splat(a.at(row, k));
            for (sums, values) in sums.iter_mut().zip(values) {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = left.mul_add(*value, *sum);
                }
            }
        }
    }
}

/// `out[j] = x · rows[j]` for J rows; each sum runs over the lanes of one register, which are added up at the end.
///
/// # Safety
/// As for [`Vector`]; `x` and the rows have `len` elements, `out` has J.
#[inline(always)]
pub(crate) unsafe fn dots<V: Vector, const J: usize>(
    len: usize,
    x: *const f32,
    rows: *const f32,
    row: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [V::zero(); J];
        let mut at = 0;
        while at + V::LANES <= len {
            let left = V::load(x.add(at));
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = left.mul_add(V::load(rows.add(j * row + at)), *sum);
            }
            at += V::LANES;
        }
        if at < len {
            let left = V::load_first(x.add(at), len - at);
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = left.mul_add(V::load_first(rows.add(j * row + at), len - at), *sum);
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            *out.add(j) = sum.sum();
        }
    }
}

/// Independent chains of [`chains`]: more than latency times units needs, and few enough for 16 registers.
pub(crate) const CHAINS: usize = 12;

/// `CHAINS` multiply-adds of whole registers a round, each on its own register.
///
/// # Safety
/// As for [`Vector`].
#[inline(always)]
pub(crate) unsafe fn chains<V: Vector>(rounds: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [V::zero(); CHAINS];
        for (i, sum) in sums.iter_mut().enumerate() {
            // Equal chains, and one that starts at the fixed point 2, would be left out by the compiler.
            *sum = V::splat(3.0 + i as f32);
        }
        let (half, one) = (V::splat(0.5), V::splat(1.0));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = sum.mul_add(half, one);
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += sum.sum();
        }
        total
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
    ahead: Ahead,
}

impl PackedF32 {
    pub(crate) fn new(from: *const f32) -> Self {
        Self { from, ahead: Ahead::own(from.cast()) }
    }
}

impl Packing for PackedF32 {
    fn start(self) -> *const u8 {
        self.from.cast()
    }
    fn asking(self, ahead: Ahead) -> Self {
        Self { ahead, ..self }
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
        unsafe { self.ahead.prefetch::<V>(k * PANEL * size_of::<f32>()) }
    }
}

/// Packed bf16 weights: `[k / 2][32]` words, the even k in the lower half. (Also the layout of AMX's right tiles.)
#[derive(Clone, Copy)]
pub(crate) struct PackedBf16 {
    from: *const u32,
    ahead: Ahead,
}

impl PackedBf16 {
    pub(crate) fn new(from: *const u32) -> Self {
        Self { from, ahead: Ahead::own(from.cast()) }
    }
}

impl Packing for PackedBf16 {
    fn start(self) -> *const u8 {
        self.from.cast()
    }
    fn asking(self, ahead: Ahead) -> Self {
        Self { ahead, ..self }
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
        unsafe { self.ahead.prefetch::<V>(k / 2 * PANEL * size_of::<u32>()) }
    }
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
    ahead: Ahead,
}

impl PackedInt8 {
    pub(crate) fn new(panel: *const u8, col: usize) -> Self {
        Self { panel, col, ahead: Ahead::own(panel) }
    }
}

impl Packing for PackedInt8 {
    fn start(self) -> *const u8 {
        self.panel
    }
    fn asking(self, ahead: Ahead) -> Self {
        Self { ahead, ..self }
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
        unsafe { self.ahead.prefetch::<V>(k / GROUP * INT8_GROUP + k % GROUP / 4 * 4 * PANEL) }
    }
}

/// Bytes of a group of packed 4-bit weights: 32 f16 scales, 32 f16 minima, then `[4][32]` words of eight k each.
pub(crate) const Q4_GROUP: usize = 4 * PANEL + GROUP * PANEL / 2;

/// Packed 4-bit weights, `w = scale · q + minimum`.
#[derive(Clone, Copy)]
pub(crate) struct PackedQ4 {
    panel: *const u8,
    col: usize,
    ahead: Ahead,
}

impl PackedQ4 {
    pub(crate) fn new(panel: *const u8, col: usize) -> Self {
        Self { panel, col, ahead: Ahead::own(panel) }
    }
}

impl Packing for PackedQ4 {
    fn start(self) -> *const u8 {
        self.panel
    }
    fn asking(self, ahead: Ahead) -> Self {
        Self { ahead, ..self }
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
        unsafe { self.ahead.prefetch::<V>(k / GROUP * Q4_GROUP + k % GROUP / 8 * 4 * PANEL) }
    }
}
