//! The gated activation of the MLP, and sums of vectors.

#[cfg(target_arch = "x86_64")]
use crate::gemm::amx;
use crate::gemm::{Accumulate, matmul};
use crate::isa::{self, Available, fma, multiversion};
use crate::packed::Packed;
#[cfg(target_arch = "x86_64")]
use crate::packed::Storage;
use crate::pool::{self, Parts};
use crate::scratch;
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

/// `y [m, n] = (act(x · Gᵀ) ⊙ x · Uᵀ) · Dᵀ` with the weights G, U `[inner, k]` and D `[n, inner]`: the whole MLP where nothing in
/// between is wanted. Its bits are those of [`matmul`] and [`gated`].
///
/// # Panics
/// If the sizes do not fit.
pub fn gated_mlp(x: &[f32], m: usize, [g, u, d]: [&Packed; 3], activation: Activation, y: &mut [f32]) {
    assert!(g.n() == u.n() && g.k() == u.k() && d.k() == g.n(), "G and U are [inner, k], D is [n, inner]");
    assert!(x.len() == m * g.k() && y.len() == m * d.n(), "x is [{m}, {}], y is [{m}, {}]", g.k(), d.n());
    #[cfg(target_arch = "x86_64")]
    if [g, u, d].iter().all(|w| w.storage() == Storage::Bf16)
        && let Some(tiles) = isa::active().tiles()
    {
        return amx::mlp((isa::active(), tiles), x, m, [g, u, d], activation, y);
    }
    scratch::with(m * g.n(), |gate| {
        scratch::with(m * g.n(), |up| {
            matmul(x, m, g, gate, Accumulate::Overwrite);
            matmul(x, m, u, up, Accumulate::Overwrite);
            let isa = isa::active();
            let (tasks, range) = pool::split(gate.len(), GRAIN);
            let parts = Parts::new(gate);
            pool::parallel_for(tasks, |task| {
                let at = range(task);
                // SAFETY: ranges are disjoint.
                gate_in_place(isa, activation, unsafe { parts.get(at.clone()) }, &up[at]);
            });
            matmul(gate, m, d, y, Accumulate::Overwrite);
        });
    });
}

/// `gate = act(gate) ⊙ up`, on the calling thread.
pub(crate) fn gate_in_place(isa: Available, activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => silu_in_place(isa, gate, up),
        Activation::GeluTanh => gelu_in_place(isa, gate, up),
    }
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
    fn silu_in_place(gate: &mut [f32], up: &[f32]) = silu_in_place_body;
    fn gelu_in_place(gate: &mut [f32], up: &[f32]) = gelu_in_place_body;
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
fn silu_in_place_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate * sigmoid::<FMA>(*gate) * up;
    }
}

#[inline(always)]
fn gelu_in_place_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = 0.5 * *gate * (1.0 + gelu_tanh::<FMA>(*gate)) * up;
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
    use crate::packed::Storage;
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
    fn a_whole_mlp_has_the_bits_of_its_operations() {
        for (m, k, inner, n) in
            [(1, 1, 1, 1), (3, 33, 65, 17), (16, 64, 96, 32), (37, 70, 40, 33), (70, 32, 64, 100)]
        {
            let x = values(m * k, 1);
            for storage in [Storage::F32, Storage::Bf16, Storage::Int8] {
                let pack = |n: usize, k: usize, seed| Packed::pack(&values(n * k, seed), n, k, storage);
                let (g, u, d) = (pack(inner, k, 2), pack(inner, k, 3), pack(n, inner, 4));
                for activation in [Activation::Silu, Activation::GeluTanh] {
                    each_isa(|isa| {
                        let (mut gate, mut up) = (vec![0.0; m * inner], vec![0.0; m * inner]);
                        matmul(&x, m, &g, &mut gate, Accumulate::Overwrite);
                        matmul(&x, m, &u, &mut up, Accumulate::Overwrite);
                        let (mut between, mut expected) = (vec![0.0; m * inner], vec![0.0; m * n]);
                        gated(&gate, &up, activation, &mut between);
                        matmul(&between, m, &d, &mut expected, Accumulate::Overwrite);
                        let mut y = vec![f32::NAN; m * n];
                        gated_mlp(&x, m, [&g, &u, &d], activation, &mut y);
                        assert_eq!(y, expected, "{isa} {storage:?} {activation:?} {m} x {k} x {inner} x {n}");
                    });
                }
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
