//! How the learning rate moves over a training.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls to zero on a straight line.
    Linear,
    /// Falls to zero on half a cosine.
    Cosine,
}

/// Factor of the peak learning rate at `step` (from 0) of `steps`: rises linearly over `warmup` steps, then follows the
/// schedule. The first step of a warm-up of w has 1/w, so no step has a rate of zero.
pub(super) fn factor(schedule: Schedule, warmup: usize, step: usize, steps: usize) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - done,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors() {
        let check = |schedule, warmup, expected: [f64; 6]| {
            for (step, want) in expected.into_iter().enumerate() {
                let got = factor(schedule, warmup, step, 6);
                assert!(
                    (got - want).abs() < 1e-9,
                    "{schedule:?} warm-up {warmup} step {step}: {got} is not {want}"
                );
            }
        };
        check(Schedule::Constant, 0, [1.0; 6]);
        check(Schedule::Constant, 2, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        check(Schedule::Linear, 2, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let half = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        check(Schedule::Cosine, 2, [0.5, 1.0, 1.0, 0.5 + half, 0.5, 0.5 - half]);
        check(Schedule::Constant, 10, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    }
}
