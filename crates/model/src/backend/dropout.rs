//! LoRA dropout: what an adapter reads is thinned out while it is trained (PEFT's `lora_dropout`).
//!
//! The projection itself reads the whole input; `ΔW = s · B A` reads `x ⊙ m`, where an element of m is 0 with the rate's
//! probability and `1 / (1 − rate)` otherwise. Every module has a mask of its own. Experts that are trained side by side share it.

use std::sync::Arc;

use mixse_kernels::pool::for_each_chunk;

use crate::{expert::Module, random};

/// Resolution of the rate: four decisions are taken from 64 random bits.
const STEPS: u32 = 1 << 16;
const DECISIONS: usize = 4;

/// Which inputs of adapters are dropped in one pass. The masks are a function of the rows' keys, so that a pass that is
/// repeated (for the backward, or after a restart) drops the same ones.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Below this a decision drops.
    threshold: u32,
    keys: Arc<[u64]>,
}

impl Dropout {
    /// Drops with probability `rate` (0 to below 1, rounded to 1/65536); `keys` holds one number for every row of the pass.
    pub fn new(rate: f64, keys: impl Into<Arc<[u64]>>) -> Self {
        let threshold = (rate.clamp(0.0, 1.0) * f64::from(STEPS)).round() as u32;
        Self { threshold: threshold.min(STEPS - 1), keys: keys.into() }
    }

    /// The mask of one row of a module's input.
    fn row(&self, row: usize, stream: u64, mask: &mut [f32]) {
        let kept = STEPS as f32 / (STEPS - self.threshold) as f32;
        for (group, mask) in mask.chunks_mut(DECISIONS).enumerate() {
            let bits = random::bits(self.keys[row], stream, group as u64);
            for (decision, m) in mask.iter_mut().enumerate() {
                let drawn = (bits >> (16 * decision)) as u32 % STEPS;
                *m = if drawn < self.threshold { 0.0 } else { kept };
            }
        }
    }
}

/// The dropout of one block's adapters in a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockDropout<'a> {
    pub(crate) pass: &'a Dropout,
    pub(crate) block: usize,
}

impl BlockDropout<'_> {
    fn stream(&self, module: Module) -> u64 {
        (self.block * Module::ALL.len() + module.index()) as u64
    }

    /// The module's mask over `[rows, k]`.
    #[cfg(any(test, feature = "reference"))]
    pub(crate) fn mask(&self, module: Module, k: usize) -> Vec<f32> {
        let mut mask = vec![0.0; self.pass.keys.len() * k];
        for_each_chunk(&mut mask, k, |row, mask| self.pass.row(row, self.stream(module), mask));
        mask
    }

    /// `y = x ⊙ m` over `[rows, k]`; what was in `y` is lost.
    pub(crate) fn thin(&self, module: Module, x: &[f32], y: &mut [f32]) {
        let k = x.len() / self.pass.keys.len();
        for_each_chunk(y, k, |row, y| {
            self.pass.row(row, self.stream(module), y);
            y.iter_mut().zip(&x[row * k..]).for_each(|(y, x)| *y *= x);
        });
    }

    /// Backward of [`BlockDropout::thin`]: `dx += dy ⊙ m`; `dy` is lost.
    pub(crate) fn thin_backward(&self, module: Module, dy: &mut [f32], dx: &mut [f32]) {
        let k = dx.len() / self.pass.keys.len();
        for_each_chunk(dy, k, |row, dy| {
            let mut mask = vec![0.0; k];
            self.pass.row(row, self.stream(module), &mut mask);
            dy.iter_mut().zip(&mask).for_each(|(d, m)| *d *= m);
        });
        mixse_kernels::add_into(dy, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_their_rate_keep_the_mean_and_differ_by_row_module_and_block() {
        let pass = Dropout::new(0.25, vec![1, 2]);
        let mask = |block, module| BlockDropout { pass: &pass, block }.mask(module, 10_001);
        let m = mask(0, Module::Q);
        let dropped = m.iter().filter(|&&v| v == 0.0).count() as f64 / m.len() as f64;
        assert!((dropped - 0.25).abs() < 0.01, "{dropped}");
        assert!(m.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
        assert_ne!(m[..10_001], m[10_001..]);
        assert_ne!(m, mask(0, Module::K));
        assert_ne!(m, mask(1, Module::Q));
        assert_eq!(m, mask(0, Module::Q));
        assert!(BlockDropout { pass: &Dropout::new(0.0, vec![1]), block: 0 }.mask(Module::Q, 9) == [1.0; 9]);
    }

    #[test]
    fn thinning_and_its_backward_use_the_same_mask() {
        let pass = Dropout::new(0.5, vec![7, 8, 9]);
        let at = BlockDropout { pass: &pass, block: 3 };
        let (mask, x) = (at.mask(Module::Up, 5), vec![2.0; 15]);
        let (mut y, mut dx) = (vec![f32::NAN; 15], vec![1.0; 15]);
        at.thin(Module::Up, &x, &mut y);
        at.thin_backward(Module::Up, &mut x.clone(), &mut dx);
        for ((m, y), dx) in mask.iter().zip(y).zip(dx) {
            assert_eq!((y, dx), (2.0 * m, 1.0 + 2.0 * m));
        }
    }
}
