//! The tile kernel: a few rows of the left matrix times a few sub-panels of the right one, in registers.
//!
//! Every output element is a chain of fused multiply-adds over ascending k, whatever rows and columns are computed
//! beside it. That is why a row's result does not depend on the batch it stands in. Long products are cut into chains of
//! [`CHAIN`] steps that are added up one after another: errors of rounding grow with the length of a chain.

use std::ops::Range;

use super::left::Left;
use super::source::Source;
use super::vector::Vector;

/// Columns of a panel of packed weights. A sub-panel is two registers of an instruction set; it divides a panel.
pub(crate) const PANEL: usize = 32;

/// Steps of one chain of multiply-adds; that many rows of a panel stay in the first-level cache as f32.
pub(crate) const CHAIN: usize = 192;

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue {
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

impl Epilogue {
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
/// As for [`Vector`]; `a`, `b` and `epilogue` must cover the tile.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, A: Left, S: Source<V>, const M: usize, const P: usize>(
    range: Range<usize>,
    a: A,
    b: [S; P],
    epilogue: Epilogue,
) {
    // Larger tiles would not fit in registers; the drivers do not ask for them, and no code is made for them.
    if const { M > most_rows::<V, S>(P) } {
        unreachable!("a tile of {M} x {P} is too large");
    }
    // SAFETY: the caller's promise.
    unsafe {
        let lanes = |p: usize, v: usize| epilogue.cols.saturating_sub((2 * p + v) * V::LANES).min(V::LANES);
        let to = |row: usize, p: usize, v: usize| {
            epilogue.to.wrapping_add(row * epilogue.row + (2 * p + v) * V::LANES)
        };
        let full = epilogue.cols >= 2 * P * V::LANES;
        let mut sums = [[[V::zero(); 2]; P]; M];
        if epilogue.sums == Sums::Continue {
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
                    if epilogue.sums == Sums::Add {
                        sum = sum.add(if full { V::load(to) } else { V::load_first(to, lanes) });
                    }
                    if full { sum.store(to) } else { sum.store_first(to, lanes) }
                }
            }
        }
    }
}

/// Writes the sub-panel's weights of `range` as f32, rows `row` apart; the first k goes to `to`.
///
/// # Safety
/// As for [`Vector`]; `range.start` is a multiple of the source's group.
#[inline(always)]
pub(crate) unsafe fn unpack<V: Vector, S: Source<V>>(
    source: S,
    range: Range<usize>,
    to: *mut f32,
    row: usize,
) {
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
                    let to = to.add((k + index - range.start) * row);
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
