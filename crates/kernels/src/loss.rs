//! Cross-entropy over the vocabulary, in place, and what is read off logits.

use crate::isa::{self, fma, multiversion};
use crate::lanes::{LANES, map_sum, max, tree};
use crate::pool::{self, Parts};
use crate::vexp::{exp, tanh};

/// `cap · tanh(logit / cap)` on logits before the softmax (Gemma 2), or nothing.
pub type Softcap = Option<f32>;

/// Losses and, in place, gradients of some rows of logits.
///
/// `logits` is `[m, vocabulary]` and becomes `scale · d(-log p) / d logit = scale · (softmax - onehot)`, through the soft
/// cap if there is one. `losses` (`[m]`) becomes `-log p(target)`. Work through the tokens in chunks, so that logits of
/// all tokens never exist.
///
/// # Panics
/// If the slices do not have these sizes or a target is not in the vocabulary.
pub fn cross_entropy_chunk(
    logits: &mut [f32],
    targets: &[u32],
    softcap: Softcap,
    scale: f32,
    losses: &mut [f32],
) {
    let m = targets.len();
    let vocabulary = logits.len().checked_div(m).unwrap_or(0);
    assert_eq!(logits.len(), m * vocabulary, "logits are [{m}, vocabulary]");
    assert_eq!(losses.len(), m, "a loss for each target");
    assert!(targets.iter().all(|&target| (target as usize) < vocabulary), "targets are below {vocabulary}");
    let isa = isa::active();
    let (logits, losses) = (Parts::new(logits), Parts::new(losses));
    pool::parallel_for(m, |row| {
        // SAFETY: rows are disjoint.
        let (logits, loss) =
            unsafe { (logits.get(row * vocabulary..(row + 1) * vocabulary), losses.get(row..row + 1)) };
        loss[0] = cross_entropy(isa, logits, targets[row] as usize, softcap, scale);
    });
}

/// log p(target) under the softmax of one row of logits.
///
/// # Panics
/// If the target is not in the vocabulary.
pub fn log_softmax_at(logits: &[f32], target: u32, softcap: Softcap) -> f32 {
    assert!((target as usize) < logits.len(), "targets are below {}", logits.len());
    let capped = |x: f32| softcap.map_or(x, |cap| cap * (x / cap).tanh());
    capped(logits[target as usize]) - log_sum_exp(isa::active(), logits, softcap)
}

/// The index of the greatest logit; the lowest of equals; 0 if there is none.
pub fn argmax(logits: &[f32]) -> u32 {
    let greatest = maximum(isa::active(), logits);
    logits.iter().position(|&x| x == greatest).unwrap_or(0) as u32
}

/// Whether no value is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    zero_times(isa::active(), values) == 0.0
}

/// `logits = cap · tanh(logits / cap)`
pub fn cap_logits(logits: &mut [f32], cap: f32) {
    cap_all(isa::active(), logits, cap);
}

multiversion! {
    fn cross_entropy(logits: &mut [f32], target: usize, softcap: Softcap, scale: f32) -> f32 = cross_entropy_body;
    fn log_sum_exp(logits: &[f32], softcap: Softcap) -> f32 = log_sum_exp_body;
    pub(crate) fn maximum(values: &[f32]) -> f32 = maximum_body;
    fn zero_times(values: &[f32]) -> f32 = zero_times_body;
    fn cap_all(logits: &mut [f32], cap: f32) = cap_all_body;
}

#[inline(always)]
fn cap_all_body<const FMA: bool>(logits: &mut [f32], cap: f32) {
    for x in logits {
        *x = cap * tanh::<FMA>(*x / cap);
    }
}

/// Σ 0 · xᵢ: 0 of finite values, NaN if one is not.
#[inline(always)]
fn zero_times_body<const FMA: bool>(values: &[f32]) -> f32 {
    let mut sums = [[0.0; LANES]; 4];
    let mut chunks = values.chunks_exact(4 * LANES);
    for values in &mut chunks {
        for (sums, values) in sums.iter_mut().zip(values.chunks_exact(LANES)) {
            for (sum, x) in sums.iter_mut().zip(values) {
                *sum = fma::<FMA>(*x, 0.0, *sum);
            }
        }
    }
    let rest: f32 = chunks.remainder().iter().map(|x| x * 0.0).sum();
    sums.into_iter().map(|sums| tree(sums, |a, b| a + b)).sum::<f32>() + rest
}

#[inline(always)]
fn maximum_body<const FMA: bool>(values: &[f32]) -> f32 {
    max(values)
}

/// With z the capped logits: loss = log Σ e^z - z_target, d loss / d z = p - onehot, dz / dx = 1 - (z / cap)².
#[inline(always)]
fn cross_entropy_body<const FMA: bool>(
    logits: &mut [f32],
    target: usize,
    softcap: Softcap,
    scale: f32,
) -> f32 {
    if let Some(cap) = softcap {
        cap_all_body::<FMA>(logits, cap);
    }
    let greatest = max(logits);
    let of_target = logits[target];
    // The capped logits are needed again for the slope of the cap; it follows from e^(z - greatest), but not precisely.
    let Some(cap) = softcap else {
        let sum = map_sum(logits, |x| exp::<FMA>(x - greatest));
        let factor = scale / sum;
        for x in logits.iter_mut() {
            *x *= factor;
        }
        logits[target] -= scale;
        return sum.ln() + greatest - of_target;
    };
    let sum = sum_exp::<FMA>(logits, greatest);
    let factor = scale / sum;
    for (i, z) in logits.iter_mut().enumerate() {
        let onehot = if i == target { scale } else { 0.0 };
        let slope = 1.0 - (*z / cap) * (*z / cap);
        *z = (factor * exp::<FMA>(*z - greatest) - onehot) * slope;
    }
    sum.ln() + greatest - of_target
}

#[inline(always)]
fn sum_exp<const FMA: bool>(values: &[f32], greatest: f32) -> f32 {
    let mut sums = [0.0; crate::lanes::LANES];
    for values in values.chunks(crate::lanes::LANES) {
        for (sum, x) in sums.iter_mut().zip(values) {
            *sum += exp::<FMA>(x - greatest);
        }
    }
    crate::lanes::tree(sums, |a, b| a + b)
}

#[inline(always)]
fn log_sum_exp_body<const FMA: bool>(logits: &[f32], softcap: Softcap) -> f32 {
    let Some(cap) = softcap else {
        let greatest = max(logits);
        return sum_exp::<FMA>(logits, greatest).ln() + greatest;
    };
    let mut capped = logits.to_vec();
    cap_all_body::<FMA>(&mut capped, cap);
    log_sum_exp_body::<FMA>(&capped, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, each_isa, finite_difference, values};

    fn reference(logits: &[f32], target: usize, softcap: Softcap) -> f64 {
        let z: Vec<f64> = logits
            .iter()
            .map(|&x| {
                softcap.map_or(f64::from(x), |cap| f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh())
            })
            .collect();
        z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[target]
    }

    #[test]
    fn losses_and_gradients() {
        for (m, vocabulary) in [(1, 1), (3, 17), (5, 1000), (2, 33)] {
            for softcap in [None, Some(3.0)] {
                let x: Vec<f32> = values(m * vocabulary, 1).iter().map(|x| 8.0 * x).collect();
                let targets: Vec<u32> = (0..m).map(|i| (i * 7 % vocabulary) as u32).collect();
                each_isa(|isa| {
                    let mut logits = x.clone();
                    let mut losses = vec![0.0; m];
                    cross_entropy_chunk(&mut logits, &targets, softcap, 0.5, &mut losses);
                    let rows = x.chunks(vocabulary).zip(&targets);
                    let expected: Vec<f32> =
                        rows.clone().map(|(x, &t)| reference(x, t as usize, softcap) as f32).collect();
                    assert_near(&losses, &expected, 1e-5, isa.name());
                    for (i, (x, &target)) in rows.enumerate() {
                        assert_near(
                            &[-log_softmax_at(x, target, softcap)],
                            &expected[i..=i],
                            1e-5,
                            "log_softmax",
                        );
                    }
                    finite_difference(&x, &logits, 1e-2, |x| {
                        let rows = x.chunks(vocabulary).zip(&targets);
                        rows.map(|(x, &t)| 0.5 * reference(x, t as usize, softcap)).sum()
                    });
                });
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_seen_anywhere() {
        each_isa(|isa| {
            for len in [0, 1, 15, 16, 17, 63, 64, 65, 200] {
                let fine: Vec<f32> =
                    (0..len).map(|i| if i % 2 == 0 { f32::MAX } else { -f32::MIN_POSITIVE }).collect();
                assert!(all_finite(&fine), "{isa} {len}");
                for at in 0..len {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut values = fine.clone();
                        values[at] = bad;
                        assert!(!all_finite(&values), "{isa} {len} {at} {bad}");
                    }
                }
            }
        });
    }

    #[test]
    fn greatest() {
        let check = |logits: &[f32], expected: u32| each_isa(|_| assert_eq!(argmax(logits), expected));
        check(&[], 0);
        check(&[-1.0], 0);
        check(&[1.0, 2.0, 2.0], 1);
        let mut many = values(100, 1);
        many[77] = 5.0;
        many[93] = 5.0;
        check(&many, 77);
    }
}
