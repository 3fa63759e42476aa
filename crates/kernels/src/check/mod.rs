//! Every kernel held against its formula in f64, with each instruction set of the machine that this runs on.
//!
//! `mixse doctor --check` runs [`CHECKS`] and prints what comes of it; so do the tests. A check is a kernel's name, its
//! tolerance with the reason, and a function that runs the kernel on odd shapes and once more on a larger one for its speed. A
//! new kernel gets a line in [`CHECKS`], a kernel that rounds its operands compares with the rounded ones
//! ([`Trial::activations`]) instead of a wider tolerance.

mod attention;
mod experts;
mod products;
mod rows;

use std::time::{Duration, Instant};

use half::bf16;

use crate::isa::{self, Isa};
use crate::packed::Storage;

/// A kernel's check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The kernel's name, with what distinguishes its variants.
    pub kernel: &'static str,
    /// The largest error with which it passes: of an element relative to its size, which is the sum of its terms' magnitudes
    /// (or its own magnitude where it is no sum), or absolute where the size is below 1.
    pub tolerance: f64,
    /// Where that comes from.
    pub reason: &'static str,
    run: fn(&mut Trial),
}

/// What came of a check with one instruction set.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// [`Check::kernel`]
    pub kernel: &'static str,
    /// What ran it.
    pub isa: Isa,
    /// The largest error, infinite where a value is not a number.
    pub error: f64,
    /// The shape and the element that has it.
    pub at: String,
    /// [`Check::tolerance`]
    pub tolerance: f64,
    /// How fast the kernel was on its larger shape.
    pub speed: Amount,
}

impl Outcome {
    /// Whether the kernel is right.
    pub fn agrees(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// An amount of work, or in an [`Outcome`] the work of a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Additions and multiplications.
    Operations(f64),
    /// Bytes read and written, of kernels that do little else.
    Bytes(f64),
}

impl Check {
    /// Runs it with `isa`, in some hundredths of a second.
    ///
    /// # Panics
    /// If `isa` is not available here.
    pub fn run(&self, isa: Isa) -> Outcome {
        let mut trial = Trial { isa, error: 0.0, at: String::new(), speed: Amount::Operations(0.0) };
        isa::with(isa, || (self.run)(&mut trial));
        let Trial { isa, error, at, speed } = trial;
        Outcome { kernel: self.kernel, isa, error, at, tolerance: self.tolerance, speed }
    }
}

// Each tolerance is some two to four times the error on the processors that were tried, so that a wrong order of operations or
// a lost term is found; a unit in the last place of f32 is 1.2e-7, half of it the error of one rounding.

/// Each addition of a chain rounds once; errors cancel, and longer sums are cut into chains.
const SUMS: &str = "f32 sums in chains";

/// Why attention with keys and values of bf16 is less exact.
const BF16_WEIGHTS: &str =
    "AMX tiles take the softmax's weights as bf16, 2^-9 of each; other instruction sets are exact";

/// The checks of all kernels.
pub const CHECKS: &[Check] = &[
    Check {
        kernel: "matmul f32",
        tolerance: 5e-7,
        reason: SUMS,
        run: |t| products::forward(t, Storage::F32),
    },
    Check {
        kernel: "matmul bf16",
        tolerance: 5e-7,
        reason: "f32 sums in chains; AMX sees activations rounded to bf16, and so does the formula",
        run: |t| products::forward(t, Storage::Bf16),
    },
    Check {
        kernel: "matmul int8",
        tolerance: 5e-7,
        reason: SUMS,
        run: |t| products::forward(t, Storage::Int8),
    },
    Check {
        kernel: "matmul int4",
        tolerance: 5e-7,
        reason: SUMS,
        run: |t| products::forward(t, Storage::Q4),
    },
    Check {
        kernel: "matmul int8, integers",
        tolerance: 5e-7,
        reason: "exact sums of 32 in f32 chains; activations are rounded to 16 bits, and so does the formula",
        run: |t| products::rounding(t, Storage::Int8),
    },
    Check {
        kernel: "matmul int4, integers",
        tolerance: 5e-7,
        reason: "as for int8, integers",
        run: |t| products::rounding(t, Storage::Q4),
    },
    Check {
        kernel: "matmul_transposed f32",
        tolerance: 5e-7,
        reason: SUMS,
        run: |t| products::backward(t, Storage::F32),
    },
    Check {
        kernel: "matmul_transposed bf16",
        tolerance: 5e-7,
        reason: "as for matmul bf16",
        run: |t| products::backward(t, Storage::Bf16),
    },
    Check {
        kernel: "matmul_transposed int8",
        tolerance: 5e-7,
        reason: SUMS,
        run: |t| products::backward(t, Storage::Int8),
    },
    Check {
        kernel: "matmul_transposed int4",
        tolerance: 5e-7,
        reason: SUMS,
        run: |t| products::backward(t, Storage::Q4),
    },
    Check { kernel: "gemm", tolerance: 5e-7, reason: SUMS, run: products::plain },
    Check {
        kernel: "attention",
        tolerance: 1e-6,
        reason: "scores rounded to f32 before their exponential",
        run: attention::whole,
    },
    Check {
        kernel: "attention paged",
        tolerance: 1e-6,
        reason: "as for attention; writing the pages is part of it",
        run: attention::paged,
    },
    Check {
        kernel: "attention backward",
        tolerance: 2e-6,
        reason: "the weights' relative error is that of attention",
        run: attention::backward,
    },
    Check { kernel: "attention bf16", tolerance: 4e-3, reason: BF16_WEIGHTS, run: attention::whole_rounded },
    Check {
        kernel: "attention paged bf16",
        tolerance: 4e-3,
        reason: BF16_WEIGHTS,
        run: attention::paged_rounded,
    },
    Check {
        kernel: "attention backward bf16",
        tolerance: 8e-3,
        reason: BF16_WEIGHTS,
        run: attention::backward_rounded,
    },
    Check { kernel: "lora forward", tolerance: 5e-7, reason: SUMS, run: experts::forward },
    Check { kernel: "lora backward", tolerance: 5e-7, reason: SUMS, run: experts::backward },
    Check { kernel: "rms_norm", tolerance: 5e-7, reason: "a root and two products of f32", run: rows::norm },
    Check {
        kernel: "rms_norm backward",
        tolerance: 5e-7,
        reason: "a root cubed and two sums of f32",
        run: rows::norm_backward,
    },
    Check { kernel: "rope", tolerance: 3e-7, reason: "two products and a sum of f32", run: rows::rotation },
    Check {
        kernel: "gated",
        tolerance: 5e-7,
        reason: "an exponential with a relative error of 1e-7, and a few products",
        run: rows::activation,
    },
    Check {
        kernel: "gated backward",
        tolerance: 1e-6,
        reason: "as for gated, in more products",
        run: rows::activation_backward,
    },
    Check { kernel: "add, sum", tolerance: 1e-7, reason: "one rounding", run: rows::sums },
    Check {
        kernel: "cross entropy",
        tolerance: 1e-6,
        reason: "an f32 sum of exponentials over the vocabulary and its logarithm",
        run: rows::losses,
    },
    Check {
        kernel: "argmax, sample",
        tolerance: 1e-6,
        reason: "how far the number that points at a token may lie outside of its share of the f32 probabilities",
        run: rows::choices,
    },
    Check {
        kernel: "adamw",
        tolerance: 3e-7,
        reason: "means rounded to f32, a quotient and a root",
        run: rows::step,
    },
];

/// A check at work: gathers the largest error and measures the speed.
struct Trial {
    isa: Isa,
    error: f64,
    at: String,
    speed: Amount,
}

/// Rounded to bf16.
fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

impl Trial {
    /// Activations as the products with weights of this storage see them: AMX tiles take bf16.
    fn activations(&self, values: &[f32], storage: Storage) -> Vec<f32> {
        let rounds = self.isa == Isa::Amx && storage == Storage::Bf16;
        values.iter().map(|&x| if rounds { bf16::from_f32(x).to_f32() } else { x }).collect()
    }

    /// Compares each value with what the formula gives for its index.
    fn compare(&mut self, what: &str, values: &[f32], formula: impl Fn(usize) -> Sum) {
        for (i, &value) in values.iter().enumerate() {
            let Sum { value: expected, size } = formula(i);
            self.record((f64::from(value) - expected).abs() / size.max(1.0), || {
                format!("{what}, element {i}: {value} instead of {expected}")
            });
        }
    }

    /// Takes an error of something else than an element.
    fn record(&mut self, error: f64, at: impl FnOnce() -> String) {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > self.error {
            (self.error, self.at) = (error, at());
        }
    }

    /// Sets the speed: of the shortest of some runs.
    fn time(&mut self, work: Amount, mut run: impl FnMut()) {
        run();
        let begin = Instant::now();
        let (mut best, mut runs) = (f64::INFINITY, 0);
        while runs < 3 || begin.elapsed() < Duration::from_millis(8) {
            let start = Instant::now();
            run();
            best = best.min(start.elapsed().as_secs_f64());
            runs += 1;
        }
        self.speed = match work {
            Amount::Operations(operations) => Amount::Operations(operations / best),
            Amount::Bytes(bytes) => Amount::Bytes(bytes / best),
        };
    }
}

/// A sum in f64, and that of its terms' magnitudes, which errors are measured by.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    value: f64,
    size: f64,
}

impl Sum {
    /// Something that is no sum.
    fn of(value: f64) -> Self {
        Self { value, size: value.abs() }
    }

    fn dot(pairs: impl Iterator<Item = (f32, f32)>) -> Self {
        pairs.map(|(a, b)| Self::of(f64::from(a) * f64::from(b))).sum()
    }

    fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, size: self.size * factor.abs() }
    }
}

impl std::ops::Add for Sum {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { value: self.value + other.value, size: self.size + other.size }
    }
}

impl std::iter::Sum for Sum {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        terms.fold(Self::default(), std::ops::Add::add)
    }
}

/// Deterministic values in -1 .. 1.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::isas;

    #[test]
    fn every_kernel_agrees_with_its_formula() {
        for isa in isas() {
            for check in CHECKS {
                let outcome = check.run(isa);
                println!("{isa:8} {:24} {:.1e} of {:.0e}", check.kernel, outcome.error, outcome.tolerance);
                assert!(outcome.agrees(), "{outcome:?}");
                let (Amount::Operations(speed) | Amount::Bytes(speed)) = outcome.speed;
                assert!(speed.is_finite() && speed > 0.0, "{outcome:?}");
            }
        }
    }

    #[test]
    fn a_wrong_value_is_found() {
        let check = |values: &[f32], agrees: bool| {
            let mut trial =
                Trial { isa: Isa::Portable, error: 0.0, at: String::new(), speed: Amount::Bytes(1.0) };
            trial.compare("test", values, |i| Sum::of(100.0 * i as f64));
            assert_eq!(trial.error <= 1e-6, agrees, "{values:?}: {}", trial.at);
        };
        check(&[0.0, 100.0, 200.0], true);
        check(&[0.0, 100.00001, 200.0], true);
        check(&[0.0, 100.0, 200.001], false);
        check(&[1e-3, 100.0, 200.0], false);
        check(&[0.0, f32::NAN, 200.0], false);
        check(&[0.0, f32::INFINITY, 200.0], false);
    }
}
