//! The inner loop: a few rows of rounded activations times two registers of weights, in registers.

use super::PAIRS;
use super::lanes::Integers;
use super::weights::Weights;
use crate::gemm::tile::{Epilogue, Sums};
use crate::gemm::vector::Vector;

/// Rows of rounded activations.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// Groups of 32 in a row.
    pub(super) groups: usize,
    /// `[rows][groups][16]` pairs, in the order of [`Weights::pairs`].
    pub(super) pairs: *const u32,
    /// `[rows][groups]`: what the weights make of the group's sum.
    pub(super) sums: *const f32,
    /// Of each row.
    pub(super) steps: *const f32,
}

impl Activations {
    /// From row `row` on.
    pub(super) fn down(self, row: usize) -> Self {
        Self {
            pairs: self.pairs.wrapping_add(row * self.groups * PAIRS),
            sums: self.sums.wrapping_add(row * self.groups),
            steps: self.steps.wrapping_add(row),
            ..self
        }
    }
}

/// `M` rows times one sub-panel.
///
/// # Safety
/// V is available, and the function inlined where its instructions are enabled; rows, weights and `epilogue` cover the tile.
#[inline(always)]
pub(super) unsafe fn tile<V: Integers, W: Weights<V>, const M: usize>(
    rows: Activations,
    weights: W,
    epilogue: Epilogue,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::Floats::zero(); 2]; M];
        let width = rows.groups * PAIRS;
        for group in 0..rows.groups {
            let mut dots = [[V::splat(0); 2]; M];
            let own = rows.sums.add(group);
            if W::STARTS {
                for (row, dots) in dots.iter_mut().enumerate() {
                    *dots = [V::splat((*own.add(row * rows.groups)).to_bits()); 2];
                }
            }
            let pairs = rows.pairs.add(group * PAIRS);
            for raw in 0..PAIRS / W::PAIRS_OF_A_WORD {
                let words = weights.words(group, raw);
                for index in 0..W::PAIRS_OF_A_WORD {
                    let weights = W::pairs(words, index);
                    let at = raw * W::PAIRS_OF_A_WORD + index;
                    for (row, dots) in dots.iter_mut().enumerate() {
                        let activations = V::splat(*pairs.add(row * width + at));
                        for (dots, weights) in dots.iter_mut().zip(weights) {
                            *dots = dots.add_pairs(activations, weights);
                        }
                    }
                }
            }
            let scales = weights.scales(group);
            for (sums, dots) in sums.iter_mut().zip(dots) {
                for ((sum, dots), scale) in sums.iter_mut().zip(dots).zip(scales) {
                    *sum = V::fused(dots.floats(), scale, *sum);
                }
            }
            if W::MINIMA {
                let minima = weights.minima(group);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let total = V::Floats::splat(*own.add(row * rows.groups));
                    for (sum, minimum) in sums.iter_mut().zip(minima) {
                        *sum = V::fused(total, minimum, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let step = V::Floats::splat(*rows.steps.add(row));
            for (v, sum) in sums.into_iter().enumerate() {
                let to = epilogue.to.wrapping_add(row * epilogue.row + v * V::LANES);
                let lanes = epilogue.cols.saturating_sub(v * V::LANES).min(V::LANES);
                let mut result = sum.mul(step);
                if epilogue.sums == Sums::Add {
                    result = V::Floats::load_first(to, lanes).add(result);
                }
                if lanes == V::LANES { result.store(to) } else { result.store_first(to, lanes) }
            }
        }
    }
}

/// Writes a sub-panel's pairs of 16 bits, two registers for each.
///
/// # Safety
/// As for [`tile`]; `to` has room.
#[inline(always)]
pub(super) unsafe fn unpack<V: Integers, W: Weights<V>>(weights: W, groups: usize, to: *mut u32) {
    let mut to = to;
    for group in 0..groups {
        for raw in 0..PAIRS / W::PAIRS_OF_A_WORD {
            // SAFETY: the caller's promise.
            unsafe {
                let words = weights.words(group, raw);
                for index in 0..W::PAIRS_OF_A_WORD {
                    for pair in W::pairs(words, index) {
                        pair.store(to);
                        to = to.add(V::LANES);
                    }
                }
            }
        }
    }
}
