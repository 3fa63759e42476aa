//! Root-mean-square normalisation of rows: of the residual stream, or of each head.

use crate::isa::{self, multiversion};
use crate::lanes::dot;
use crate::pool::{self, Parts};

/// What multiplies a normalised row.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// `[d]`
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// Multiply by `1 + weight` (Gemma) instead of `weight`.
    pub plus_one: bool,
}

/// Rows that one thread takes at least.
const GRAIN: usize = 16;

/// `y = x · r · w` for each of the `m` rows of d = `norm.weight.len()` elements, with `r = (mean(x²) + eps)^-½`.
///
/// # Panics
/// If the slices do not have m · d elements.
pub fn rms_norm(x: &[f32], m: usize, norm: RmsNorm<'_>, y: &mut [f32]) {
    let d = norm.weight.len();
    assert!(x.len() == m * d && y.len() == m * d, "x and y are [{m}, {d}]");
    let isa = isa::active();
    let (tasks, rows) = pool::split(m, GRAIN);
    let y = Parts::new(y);
    pool::parallel_for(tasks, |task| {
        for row in rows(task) {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.get(row * d..(row + 1) * d) };
            forward(isa, &x[row * d..][..d], norm, y);
        }
    });
}

/// The gradient of [`rms_norm`] with respect to its input, written to `dx`:
/// `dx = r · w dy - x · r³ / d · Σ x w dy`.
///
/// # Panics
/// If the slices do not have m · d elements.
pub fn rms_norm_backward(x: &[f32], dy: &[f32], m: usize, norm: RmsNorm<'_>, dx: &mut [f32]) {
    let d = norm.weight.len();
    assert!(x.len() == m * d && dy.len() == m * d && dx.len() == m * d, "x, dy and dx are [{m}, {d}]");
    let isa = isa::active();
    let (tasks, rows) = pool::split(m, GRAIN);
    let dx = Parts::new(dx);
    pool::parallel_for(tasks, |task| {
        for row in rows(task) {
            // SAFETY: rows are disjoint.
            let dx = unsafe { dx.get(row * d..(row + 1) * d) };
            backward(isa, &x[row * d..][..d], &dy[row * d..][..d], norm, dx);
        }
    });
}

multiversion! {
    fn forward(x: &[f32], norm: RmsNorm<'_>, y: &mut [f32]) = forward_body;
    fn backward(x: &[f32], dy: &[f32], norm: RmsNorm<'_>, dx: &mut [f32]) = backward_body;
}

#[inline(always)]
fn inverse<const FMA: bool>(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot::<FMA>(x, x) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn forward_body<const FMA: bool>(x: &[f32], norm: RmsNorm<'_>, y: &mut [f32]) {
    let r = inverse::<FMA>(x, norm.eps);
    let one = if norm.plus_one { 1.0 } else { 0.0 };
    for ((y, x), w) in y.iter_mut().zip(x).zip(norm.weight) {
        *y = x * r * (one + w);
    }
}

#[inline(always)]
fn backward_body<const FMA: bool>(x: &[f32], dy: &[f32], norm: RmsNorm<'_>, dx: &mut [f32]) {
    let r = inverse::<FMA>(x, norm.eps);
    let one = if norm.plus_one { 1.0 } else { 0.0 };
    for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(norm.weight) {
        *dx = (one + w) * dy;
    }
    let slope = dot::<FMA>(dx, x) * r * r * r / x.len() as f32;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = r * *dx - slope * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, each_isa, finite_difference, values};

    fn reference(x: &[f32], norm: RmsNorm<'_>) -> Vec<f32> {
        let d = norm.weight.len();
        x.chunks(d)
            .flat_map(|x| {
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / d as f64;
                let r = (mean + f64::from(norm.eps)).sqrt().recip();
                let one = if norm.plus_one { 1.0 } else { 0.0 };
                x.iter()
                    .zip(norm.weight)
                    .map(move |(&x, &w)| (f64::from(x) * r * (one + f64::from(w))) as f32)
            })
            .collect()
    }

    #[test]
    fn forward_and_gradient() {
        for (m, d, plus_one) in
            [(1, 1, false), (3, 15, true), (40, 16, false), (5, 33, true), (70, 64, false)]
        {
            let (x, weight, dy) = (values(m * d, 1), values(d, 2), values(m * d, 3));
            let norm = RmsNorm { weight: &weight, eps: 1e-5, plus_one };
            each_isa(|isa| {
                let mut y = vec![0.0; m * d];
                rms_norm(&x, m, norm, &mut y);
                assert_near(&y, &reference(&x, norm), 1e-5, &format!("{isa} {m} x {d}"));
                let mut dx = vec![0.0; m * d];
                rms_norm_backward(&x, &dy, m, norm, &mut dx);
                finite_difference(&x, &dx, 1e-2, |x| {
                    reference(x, norm).iter().zip(&dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum()
                });
            });
        }
    }
}
