//! Products of integers: weights of 8 or 4 bits with activations rounded to 16 bits by row.
//!
//! ```text
//! x[i] ≈ step · a[i],  step = max |x| / 32767           a row of activations
//! w[i] = scale · q[i] + minimum                         32 weights of an output; 8 bits have no minimum
//! y = step · Σ over groups of 32 (scale · Σ a q + minimum · Σ a)
//! ```
//!
//! Sums within a group are integers and exact; over groups they are fused multiply-adds in f32 in ascending order. So every
//! instruction set gives the same bits, and a row's result depends on the row alone.
//!
//! (Activations of 8 bits would be twice as fast, but no model that was tried agrees with f32 then: see docs/performance.md.)

mod lanes;
mod tile;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use lanes::{Integers, Words};
use tile::Activations;
use weights::{Int8, Q4, Unpacked, Weights};

use super::source::GROUP;
use super::tile::{Epilogue, PANEL, Sums};
use super::{Accumulate, Matrix};
use crate::isa::{self, Available, Isa, multiversion};
use crate::packed::{Packed, Storage};
use crate::pool::{self, Parts};
use crate::scratch;

/// Pairs of weights (or of activations) in a group.
const PAIRS: usize = GROUP / 2;

/// Multiply-adds below which a product stays on the calling thread.
const SMALL: usize = 128 * 1024;

/// Panels of a thread's task: more than one, because a task begins with a cold cache.
const TASK_PANELS: usize = 4;

/// Instructions that multiply and add pairs in one step (VNNI), or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dots {
    /// One.
    Fused,
    /// Two: the products of a pair, and their sum.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there the compiler chooses"))]
    Split,
}

impl Dots {
    /// The best of this machine for an instruction set.
    fn of(isa: Available) -> Self {
        #[cfg(target_arch = "x86_64")]
        return if x86::has_vnni(isa) { Self::Fused } else { Self::Split };
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = isa;
            Self::Fused
        }
    }
}

/// [`super::matmul`] with weights of 8 or 4 bits, the activations rounded.
pub(super) fn matmul(x: &[f32], m: usize, w: &Packed, y: &mut [f32], accumulate: Accumulate) {
    let isa = isa::active();
    matmul_with((isa, Dots::of(isa)), x, m, w, y, accumulate);
}

fn matmul_with(
    (isa, dots): (Available, Dots),
    x: &[f32],
    m: usize,
    w: &Packed,
    y: &mut [f32],
    accumulate: Accumulate,
) {
    let groups = w.k().div_ceil(GROUP);
    // Pairs of 16 bits, the sums of groups, and the step of each row.
    let (words, width) = (m * groups * PAIRS, groups * PAIRS);
    scratch::with(words + m * groups + m, |buffer| {
        let (rounded, rest) = buffer.split_at_mut(words);
        let (sums, steps) = rest.split_at_mut(m * groups);
        let (rounded, sums, steps) = (Parts::new(rounded), Parts::new(sums), Parts::new(steps));
        let (tasks, range) = pool::split(m, 8);
        pool::parallel_for(tasks, |task| {
            for row in range(task) {
                // SAFETY: each row has its own place.
                let (pairs, sums, step) = unsafe {
                    let pairs = rounded.get(row * width..(row + 1) * width);
                    (pairs, sums.get(row * groups..(row + 1) * groups), steps.get(row..row + 1))
                };
                let x = &x[row * w.k()..(row + 1) * w.k()];
                step[0] = match w.storage() {
                    Storage::Q4 => round_for_q4(isa, x, pairs, sums),
                    _ => round_for_int8(isa, x, pairs, sums),
                };
            }
        });
        let rows = Activations {
            groups,
            pairs: rounded.as_ptr().cast(),
            sums: sums.as_ptr(),
            steps: steps.as_ptr(),
        };
        let out = Matrix { start: y.as_mut_ptr(), row: w.n(), rows: m, cols: w.n() };
        let product = Product { w, rows, out, add: accumulate == Accumulate::Add };
        // SAFETY: the sizes are those of the weight and were checked by the caller; `isa` and `dots` prove the instructions.
        unsafe {
            match (isa.isa(), dots) {
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, Dots::Fused) => product.run::<x86::Vnni512>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx512 | Isa::Amx, Dots::Split) => product.run::<x86::Pairs512>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, Dots::Fused) => product.run::<x86::Vnni256>(),
                #[cfg(target_arch = "x86_64")]
                (Isa::Avx2, Dots::Split) => product.run::<x86::Pairs256>(),
                _ => product.run::<Words>(),
            }
        }
    });
}

/// `out (+)= x · Wᵀ` with rounded x.
struct Product<'a> {
    w: &'a Packed,
    rows: Activations,
    out: Matrix,
    add: bool,
}

// SAFETY: tasks write disjoint columns of `out` and only read the rest.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// # Safety
    /// V is available, and the matrices are valid for their sizes.
    unsafe fn run<V: Integers>(&self) {
        let panels = self.w.panels();
        let each = if self.out.rows * self.out.cols * self.w.k() <= SMALL {
            panels
        } else {
            panels.div_ceil(pool::threads()).min(TASK_PANELS)
        };
        pool::parallel_for(panels.div_ceil(each.max(1)), |task| {
            let panels = task * each..((task + 1) * each).min(panels);
            // SAFETY: the caller's promise; tasks have their own columns.
            unsafe {
                match self.w.storage() {
                    Storage::Q4 => self.panels::<V, Q4>(panels),
                    _ => self.panels::<V, Int8>(panels),
                }
            }
        });
    }

    /// # Safety
    /// As for [`Product::run`]; `W` is how the weight is stored, and no other thread writes these panels' columns.
    unsafe fn panels<V: Integers, W: Weights<V>>(&self, panels: Range<usize>) {
        let sums = if self.add { Sums::Add } else { Sums::Write };
        let epilogue = Epilogue { to: self.out.start, row: self.out.row, cols: self.out.cols, sums };
        let words = self.rows.groups * PAIRS * PANEL;
        // Rows of several tiles share the pairs of weights.
        let shared = self.out.rows > V::TILE_ROWS;
        scratch::with(if shared { words } else { 0 }, |pairs| {
            for (panel, col) in panels.flat_map(|p| (0..PANEL).step_by(2 * V::LANES).map(move |col| (p, col)))
            {
                // What comes next is fetched while rows meet what is here.
                let ahead = if shared { self.w.panel_bytes() } else { weights::AHEAD };
                let weights = W::new(self.w.panel(panel), col, ahead);
                let epilogue = epilogue.shifted(0, panel * PANEL + col);
                if epilogue.cols == 0 {
                    continue;
                }
                // SAFETY: the caller's promise; `pairs` has room for a sub-panel.
                unsafe {
                    if shared {
                        let to = pairs.as_mut_ptr().cast::<u32>();
                        V::unpack(weights, self.rows.groups, to);
                        self.tiles::<V, _>(Unpacked { weights, pairs: to }, epilogue);
                    } else {
                        self.tiles::<V, _>(weights, epilogue);
                    }
                }
            }
        });
    }

    /// All rows times one sub-panel.
    ///
    /// # Safety
    /// As for [`Product::panels`].
    unsafe fn tiles<V: Integers, W: Weights<V>>(&self, weights: W, epilogue: Epilogue) {
        let tiles = self.out.rows.div_ceil(V::TILE_ROWS).max(1);
        let most = self.out.rows.div_ceil(tiles).max(1);
        for row in (0..self.out.rows).step_by(most) {
            let (rows, epilogue) = (self.rows.down(row), epilogue.shifted(row, 0));
            macro_rules! by_rows {
                ($($m:literal)*) => {
                    match (self.out.rows - row).min(most) {
                        // SAFETY: the caller's promise.
                        $($m => unsafe { V::tile::<W, $m>(rows, weights, epilogue) },)*
                        _ => unreachable!("no more than 6 rows in a tile"),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6);
        }
    }
}

multiversion! {
    /// Rounds a row, and puts it where pairs of 8-bit weights meet it; returns the step.
    fn round_for_int8(x: &[f32], pairs: &mut [f32], sums: &mut [f32]) -> f32 = round_for_int8_body;
    /// The same for pairs of 4-bit weights.
    fn round_for_q4(x: &[f32], pairs: &mut [f32], sums: &mut [f32]) -> f32 = round_for_q4_body;
}

/// Words of four bytes come apart as (0, 2) and (1, 3); what every group's sum starts from stands for the 128 that is added
/// to each weight.
#[inline(always)]
fn round_for_int8_body<const FMA: bool>(x: &[f32], pairs: &mut [f32], sums: &mut [f32]) -> f32 {
    let (step, inverse) = step(x);
    for ((x, pairs), sum) in x.chunks(GROUP).zip(pairs.chunks_exact_mut(PAIRS)).zip(sums) {
        let values = rounded(x, inverse);
        *sum = f32::from_bits(total(&values).wrapping_mul(-128) as u32);
        put(pairs, |p| p / 2 * 4 + p % 2, 2, &values);
    }
    step
}

/// Words of eight times four bits come apart as (0, 4), (1, 5), (2, 6) and (3, 7); a group's sum is that of its activations.
#[inline(always)]
fn round_for_q4_body<const FMA: bool>(x: &[f32], pairs: &mut [f32], sums: &mut [f32]) -> f32 {
    let (step, inverse) = step(x);
    for ((x, pairs), sum) in x.chunks(GROUP).zip(pairs.chunks_exact_mut(PAIRS)).zip(sums) {
        let values = rounded(x, inverse);
        *sum = total(&values) as f32;
        put(pairs, |p| p / 4 * 8 + p % 4, 4, &values);
    }
    step
}

/// (What came of something that is no number may be too large for a sum.)
#[inline(always)]
fn total(values: &[i32; GROUP]) -> i32 {
    values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
}

/// Writes a group's pairs, each two values of 16 bits in the bits of one f32: pair p is the values `low(p)` and `apart` behind it.
#[inline(always)]
fn put(pairs: &mut [f32], low: impl Fn(usize) -> usize, apart: usize, values: &[i32; GROUP]) {
    // Arrays of fixed length become shuffles of registers.
    let lows: [i32; PAIRS] = std::array::from_fn(|p| values[low(p)]);
    let highs: [i32; PAIRS] = std::array::from_fn(|p| values[low(p) + apart]);
    let words: [f32; PAIRS] =
        std::array::from_fn(|p| f32::from_bits((lows[p] & 0xffff | highs[p] << 16) as u32));
    pairs.copy_from_slice(&words);
}

/// A row's step and its inverse. What is not finite makes the step so, and with it the results; a row of zeros (and of values
/// too small to divide by) has none.
#[inline(always)]
fn step(x: &[f32]) -> (f32, f32) {
    // Of the bits: an infinity is greater than all numbers, and what is no number greater still.
    let most = x.iter().fold(0, |most, value| (value.to_bits() & 0x7fff_ffff).max(most));
    let most = f32::from_bits(most);
    if most < 1e-30 { (0.0, 0.0) } else { (most / 32767.0, 32767.0 / most) }
}

/// A group of a row as whole numbers of steps, to nearest even; behind the row's end 0.
#[inline(always)]
fn rounded(x: &[f32], inverse: f32) -> [i32; GROUP] {
    // Added to small numbers, this leaves whole ones in the lower bits.
    const WHOLE: f32 = 12_582_912.0;
    let whole = |value: f32| (value * inverse + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()) as i32;
    let mut values = [0; GROUP];
    match <&[f32; GROUP]>::try_from(x) {
        Ok(x) => values.iter_mut().zip(x).for_each(|(to, &value)| *to = whole(value)),
        Err(_) => values.iter_mut().zip(x).for_each(|(to, &value)| *to = whole(value)),
    }
    values
}

/// Activations as [`matmul`] sees them: for tests and checks.
pub(crate) fn seen(x: &[f32], k: usize) -> Vec<f32> {
    let row = |row: &[f32]| {
        let (step, inverse) = step(row);
        row.chunks(GROUP)
            .flat_map(|x| {
                rounded(x, inverse).into_iter().take(x.len()).map(|a| step * a as f32).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    x.chunks(k.max(1)).flat_map(row).collect()
}

#[cfg(test)]
mod tests;
