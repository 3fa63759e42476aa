//! AdamW over flat parameters.

use crate::isa::{self, multiversion};
use crate::pool::{self, Parts};

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the second mean.
    pub eps: f32,
    /// Share of the parameter taken off for each unit of learning rate.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u32,
}

/// One step, in place, in the order of PyTorch's AdamW:
/// `p *= 1 - lr wd; m = m + (g - m)(1 - β₁); v = β₂ v + (1 - β₂) g²;
/// p -= lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)`.
///
/// # Panics
/// If the lengths differ or `step` is 0.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: AdamW) {
    assert!([param.len(), m.len(), v.len()] == [grad.len(); 3], "param, grad, m and v have the same length");
    assert!(settings.step > 0, "steps count from 1");
    let isa = isa::active();
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(settings.step.min(1 << 30) as i32);
    let step_size = (f64::from(settings.lr) / correction(settings.beta1)) as f32;
    let root = correction(settings.beta2).sqrt() as f32;
    let (tasks, range) = pool::split(grad.len(), 4096);
    let (param, m, v) = (Parts::new(param), Parts::new(m), Parts::new(v));
    pool::parallel_for(tasks, |task| {
        let at = range(task);
        // SAFETY: ranges are disjoint.
        let (param, m, v) = unsafe { (param.get(at.clone()), m.get(at.clone()), v.get(at.clone())) };
        step(isa, param, &grad[at], m, v, settings, step_size, root);
    });
}

multiversion! {
    fn step(
        param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], settings: AdamW, step_size: f32, root: f32,
    ) = step_body;
}

#[inline(always)]
fn step_body<const FMA: bool>(
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    settings: AdamW,
    step_size: f32,
    root: f32,
) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, .. } = settings;
    let keep = 1.0 - lr * weight_decay;
    for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        *m += (g - *m) * (1.0 - beta1);
        *v = *v * beta2 + (1.0 - beta2) * g * g;
        *p = *p * keep - step_size * (*m / (v.sqrt() / root + eps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, each_isa, values};

    #[test]
    fn steps_of_the_textbook() {
        each_isa(|isa| {
            for (len, weight_decay) in [(1, 0.0), (33, 0.1), (5000, 0.01)] {
                let start = values(len, 1);
                let (mut p, mut m, mut v) = (start.clone(), vec![0.0; len], vec![0.0; len]);
                let mut expected: Vec<[f64; 3]> = start.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
                for step in 1..=5 {
                    let grad = values(len, 10 + u64::from(step));
                    let (lr, beta1, beta2, eps) = (1e-2, 0.9, 0.999, 1e-8);
                    adamw(&mut p, &grad, &mut m, &mut v, AdamW { lr, beta1, beta2, eps, weight_decay, step });
                    for ([p, m, v], &g) in expected.iter_mut().zip(&grad) {
                        let g = f64::from(g);
                        *m = 0.9 * *m + 0.1 * g;
                        *v = 0.999 * *v + 0.001 * g * g;
                        let (m_hat, v_hat) = (
                            *m / (1.0 - 0.9_f64.powi(step as i32)),
                            *v / (1.0 - 0.999_f64.powi(step as i32)),
                        );
                        *p = *p * (1.0 - 1e-2 * f64::from(weight_decay))
                            - 1e-2 * m_hat / (v_hat.sqrt() + 1e-8);
                    }
                }
                let expected: Vec<f32> = expected.iter().map(|[p, ..]| *p as f32).collect();
                assert_near(&p, &expected, 1e-5, isa.name());
            }
        });
    }
}
