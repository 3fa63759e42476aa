//! The gated activation of the MLP, and sums of vectors.

use crate::isa::{self, fma, multiversion};
use crate::pool::{self, Parts};
use crate::vexp::{sigmoid, tanh};

/// The activation of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))
    GeluTanh,
}

/// Elements that one thread takes at least.
const GRAIN: usize = 4096;

/// √(2/π)
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// `out = act(gate) · up`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn gated(gate: &[f32], up: &[f32], activation: Activation, out: &mut [f32]) {
    let len = gate.len();
    assert!(up.len() == len && out.len() == len, "gate, up and out have the same length");
    let isa = isa::active();
    let (tasks, range) = pool::split(len, GRAIN);
    let out = Parts::new(out);
    pool::parallel_for(tasks, |task| {
        let at = range(task);
        // SAFETY: ranges are disjoint.
        let out = unsafe { out.get(at.clone()) };
        let kernel = match activation {
            Activation::Silu => silu,
            Activation::GeluTanh => gelu,
        };
        kernel(isa, &gate[at.clone()], &up[at], out);
    });
}

/// The gradients of [`gated`]: `dgate = dout · up · act'(gate)`, `dup = dout · act(gate)`.
///
/// # Panics
/// If the lengths differ.
pub fn gated_backward(
    gate: &[f32],
    up: &[f32],
    dout: &[f32],
    activation: Activation,
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    let len = gate.len();
    assert!(
        [up.len(), dout.len(), dgate.len(), dup.len()] == [len; 4],
        "gate, up, dout, dgate and dup have the same length"
    );
    let isa = isa::active();
    let (tasks, range) = pool::split(len, GRAIN);
    let (dgate, dup) = (Parts::new(dgate), Parts::new(dup));
    pool::parallel_for(tasks, |task| {
        let at = range(task);
        // SAFETY: ranges are disjoint.
        let (dgate, dup) = unsafe { (dgate.get(at.clone()), dup.get(at.clone())) };
        let kernel = match activation {
            Activation::Silu => silu_backward,
            Activation::GeluTanh => gelu_backward,
        };
        kernel(isa, &gate[at.clone()], &up[at.clone()], &dout[at], dgate, dup);
    });
}

/// `y += x`
///
/// # Panics
/// If the lengths differ.
pub fn add_into(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y have the same length");
    let isa = isa::active();
    let (tasks, range) = pool::split(x.len(), GRAIN);
    let y = Parts::new(y);
    pool::parallel_for(tasks, |task| {
        let at = range(task);
        // SAFETY: ranges are disjoint.
        add(isa, &x[at.clone()], unsafe { y.get(at) });
    });
}

/// `y = a + b`
///
/// # Panics
/// If the lengths differ.
pub fn sum(a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == y.len() && b.len() == y.len(), "a, b and y have the same length");
    let isa = isa::active();
    let (tasks, range) = pool::split(y.len(), GRAIN);
    let y = Parts::new(y);
    pool::parallel_for(tasks, |task| {
        let at = range(task);
        // SAFETY: ranges are disjoint.
        add_two(isa, &a[at.clone()], &b[at.clone()], unsafe { y.get(at) });
    });
}

multiversion! {
    fn silu(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_body;
    fn gelu(gate: &[f32], up: &[f32], out: &mut [f32]) = gelu_body;
    fn silu_backward(gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) = silu_backward_body;
    fn gelu_backward(gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) = gelu_backward_body;
    fn add(x: &[f32], y: &mut [f32]) = add_body;
    fn add_two(a: &[f32], b: &[f32], y: &mut [f32]) = add_two_body;
}

#[inline(always)]
fn silu_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid::<FMA>(*gate) * up;
    }
}

#[inline(always)]
fn silu_backward_body<const FMA: bool>(
    gate: &[f32],
    up: &[f32],
    dout: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    for ((((gate, up), dout), dgate), dup) in gate.iter().zip(up).zip(dout).zip(dgate).zip(dup) {
        let s = sigmoid::<FMA>(*gate);
        *dup = dout * gate * s;
        // (x s)' = s + x s (1 - s)
        *dgate = dout * up * s * (1.0 + gate * (1.0 - s));
    }
}

/// tanh(√(2/π) (x + 0.044715 x³))
#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    tanh::<FMA>(ROOT * x * fma::<FMA>(CUBE * x, x, 1.0))
}

#[inline(always)]
fn gelu_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = 0.5 * gate * (1.0 + gelu_tanh::<FMA>(*gate)) * up;
    }
}

#[inline(always)]
fn gelu_backward_body<const FMA: bool>(
    gate: &[f32],
    up: &[f32],
    dout: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    for ((((gate, up), dout), dgate), dup) in gate.iter().zip(up).zip(dout).zip(dgate).zip(dup) {
        let t = gelu_tanh::<FMA>(*gate);
        *dup = dout * 0.5 * gate * (1.0 + t);
        // (x/2 (1 + t))' = (1 + t)/2 + x/2 (1 - t²) √(2/π) (1 + 3 · 0.044715 x²)
        let inner = ROOT * (1.0 + 3.0 * CUBE * gate * gate);
        *dgate = dout * up * 0.5 * (1.0 + t + gate * (1.0 - t * t) * inner);
    }
}

#[inline(always)]
fn add_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

#[inline(always)]
fn add_two_body<const FMA: bool>(a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a + b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, each_isa, finite_difference, values};

    fn reference(gate: f32, up: f32, activation: Activation) -> f64 {
        let (x, up) = (f64::from(gate), f64::from(up));
        up * match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
        }
    }

    #[test]
    fn values_and_gradients() {
        for len in [1, 15, 33, 5000] {
            let gate: Vec<f32> = values(len, 1).iter().map(|x| 5.0 * x).collect();
            let (up, dout) = (values(len, 2), values(len, 3));
            for activation in [Activation::Silu, Activation::GeluTanh] {
                each_isa(|isa| {
                    let mut out = vec![0.0; len];
                    gated(&gate, &up, activation, &mut out);
                    let expected: Vec<f32> =
                        gate.iter().zip(&up).map(|(&g, &u)| reference(g, u, activation) as f32).collect();
                    assert_near(&out, &expected, 2e-6, &format!("{isa} {activation:?}"));
                    let (mut dgate, mut dup) = (vec![0.0; len], vec![0.0; len]);
                    gated_backward(&gate, &up, &dout, activation, &mut dgate, &mut dup);
                    let total = |gate: &[f32], up: &[f32]| {
                        (0..len)
                            .map(|i| reference(gate[i], up[i], activation) * f64::from(dout[i]))
                            .sum::<f64>()
                    };
                    if len < 100 {
                        finite_difference(&gate, &dgate, 1e-2, |gate| total(gate, &up));
                        finite_difference(&up, &dup, 1e-2, |up| total(&gate, up));
                    }
                });
            }
        }
    }

    #[test]
    fn sums() {
        each_isa(|isa| {
            let mut y = values(100, 1);
            let (x, before) = (values(100, 2), y.clone());
            add_into(&x, &mut y);
            let expected: Vec<f32> = x.iter().zip(before).map(|(x, y)| y + x).collect();
            assert_eq!(y, expected, "{isa}");
            let mut total = vec![f32::NAN; 100];
            sum(&x, &y, &mut total);
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            assert_eq!(total, expected, "{isa}");
        });
    }
}
