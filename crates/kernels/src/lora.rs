//! The narrow products of LoRA experts, with the gate of each token inside.
//!
//! One linear module with E experts of ranks r₁ … r_E: `y += Σᵢ gᵢ sᵢ Bᵢ (Aᵢ x)`, with a gate gᵢ for each token and
//! expert and a scale sᵢ for each expert. The experts' matrices lie one after another: `a` is `[R, k]` and `bt`
//! (B transposed) `[R, n]`, R = Σ rᵢ, so that all inner loops run over contiguous rows. An expert whose gate is 0 costs
//! nothing, so a mixture that selects one expert costs about as much as one expert.

use crate::gemm::left::Strided;
use crate::gemm::{Accumulate, Matrix, View, dots, gemm, strided};
use crate::isa::{self, Available};
use crate::pool::{self, Parts};
use crate::scratch;

/// Where each expert's rows begin, and its scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    offsets: Vec<usize>,
    scales: Vec<f32>,
}

impl Ranks {
    /// From each expert's (rank, scale); the scale is alpha / rank.
    pub fn new(experts: impl IntoIterator<Item = (usize, f32)>) -> Self {
        let mut ranks = Self { offsets: vec![0], scales: Vec::new() };
        for (rank, scale) in experts {
            ranks.offsets.push(ranks.total() + rank);
            ranks.scales.push(scale);
        }
        ranks
    }

    /// R, the sum of all ranks.
    pub fn total(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The number of experts.
    pub fn experts(&self) -> usize {
        self.scales.len()
    }

    /// The rows of expert `i`.
    fn rows(&self, i: usize) -> std::ops::Range<usize> {
        self.offsets[i]..self.offsets[i + 1]
    }
}

/// The experts' matrices of one linear module.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// Inputs of the module.
    pub k: usize,
    /// Outputs of the module.
    pub n: usize,
    /// `[R, k]`
    pub a: &'a [f32],
    /// B transposed, `[R, n]`.
    pub bt: &'a [f32],
    /// Which rows are whose.
    pub ranks: &'a Ranks,
}

/// For which experts `u` (forward) and the gradient of the gate (backward) are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Those with a gate other than 0; the others' entries are 0.
    Selected,
    /// All, as straight-through gradients of the gate need.
    All,
}

/// Rows of the batch that one thread takes at least, by the multiply-adds of a row.
fn grain(per_row: usize) -> usize {
    (32 * 1024 / per_row.max(1)).max(1)
}

impl Lora<'_> {
    fn check(&self, m: usize, gate: Option<&[f32]>) {
        let (r, experts) = (self.ranks.total(), self.ranks.experts());
        assert_eq!(self.a.len(), r * self.k, "a is [{r}, {}]", self.k);
        assert_eq!(self.bt.len(), r * self.n, "bt is [{r}, {}]", self.n);
        assert!(gate.is_none_or(|gate| gate.len() == m * experts), "gate is [{m}, {experts}]");
    }

    /// The gate of each expert for a token; without gates all are 1.
    fn gates<'g>(&self, gate: Option<&'g [f32]>, token: usize) -> impl Iterator<Item = f32> + use<'g> {
        let experts = self.ranks.experts();
        (0..experts).map(move |i| gate.map_or(1.0, |gate| gate[token * experts + i]))
    }

    /// Sets `c`, the factors of a token's rows, to `values` times gate and scale.
    fn scaled(&self, gate: Option<&[f32]>, token: usize, values: &[f32], c: &mut [f32]) {
        for (i, gate) in self.gates(gate, token).enumerate() {
            let factor = gate * self.ranks.scales[i];
            for (c, value) in c[self.ranks.rows(i)].iter_mut().zip(&values[self.ranks.rows(i)]) {
                *c = if gate == 0.0 { 0.0 } else { factor * value };
            }
        }
    }

    /// `out += c · right` for some rows, skipping experts with gate 0; `right` is `[R, width]`.
    ///
    /// Without gates it is one product; with gates one for each token and selected expert. Either way each element is
    /// one chain of multiply-adds over the selected rows in order, so both give the same bits.
    fn expand(
        &self,
        isa: Available,
        gate: Option<&[f32]>,
        tokens: std::ops::Range<usize>,
        c: &[f32],
        right: &[f32],
        out: &mut [f32],
    ) {
        let r = self.ranks.total();
        let width = out.len() / tokens.len().max(1);
        let product = |token: usize, count: usize, rows: std::ops::Range<usize>, out: &mut [f32]| {
            let left = Strided { start: c[token * r + rows.start..].as_ptr(), row: r, col: 1 };
            let to = &mut out[token * width..(token + count) * width];
            let out = Matrix { start: to.as_mut_ptr(), row: width, rows: count, cols: width };
            let right = &right[rows.start * width..rows.end * width];
            // SAFETY: `c` is `[tokens, R]`, `right` and `to` are cut to size.
            unsafe { strided(isa, left, rows.len(), right.as_ptr(), width, out, true) }
        };
        if r == 0 || width == 0 {
            return;
        }
        if gate.is_none() {
            return product(0, tokens.len(), 0..r, out);
        }
        for (local, token) in tokens.enumerate() {
            for (i, gate) in self.gates(gate, token).enumerate() {
                let rows = self.ranks.rows(i);
                if gate != 0.0 && !rows.is_empty() {
                    product(local, 1, rows, out);
                }
            }
        }
    }

    /// `out[j] = left · right[j]` for the rows j of the covered experts of a token, 0 for the others.
    fn contract(
        &self,
        isa: Available,
        (gate, coverage): (Option<&[f32]>, Coverage),
        token: usize,
        left: &[f32],
        right: &[f32],
        out: &mut [f32],
    ) {
        for (i, gate) in self.gates(gate, token).enumerate() {
            let rows = self.ranks.rows(i);
            if gate != 0.0 || coverage == Coverage::All {
                let right = &right[rows.start * left.len()..rows.end * left.len()];
                dots(isa, left, right, &mut out[rows]);
            } else {
                out[rows].fill(0.0);
            }
        }
    }
}

/// `u = A x` and `y += Σᵢ gᵢ sᵢ Bᵢ uᵢ`.
///
/// `x` is `[m, k]`, `gate` `[m, experts]` (`None`: all 1), `u` `[m, R]` (overwritten; entries of experts that `coverage`
/// leaves out become 0), `y` `[m, n]`.
///
/// # Panics
/// If the slices do not have these sizes.
pub fn lora_forward(
    lora: Lora<'_>,
    x: &[f32],
    m: usize,
    gate: Option<&[f32]>,
    coverage: Coverage,
    u: &mut [f32],
    y: &mut [f32],
) {
    lora.check(m, gate);
    let (k, n, r) = (lora.k, lora.n, lora.ranks.total());
    assert_eq!(x.len(), m * k, "x is [{m}, {k}]");
    assert_eq!(u.len(), m * r, "u is [{m}, {r}]");
    assert_eq!(y.len(), m * n, "y is [{m}, {n}]");
    let isa = isa::active();
    let (u, y) = (Parts::new(u), Parts::new(y));
    let (tasks, range) = pool::split(m, grain(r * (k + n) / lora.ranks.experts().max(1)));
    pool::parallel_for(tasks, |task| {
        let tokens = range(task);
        // SAFETY: ranges of tokens are disjoint.
        let (u, y) =
            unsafe { (u.get(tokens.start * r..tokens.end * r), y.get(tokens.start * n..tokens.end * n)) };
        scratch::with(tokens.len() * r, |c| {
            for (local, token) in tokens.clone().enumerate() {
                let u = &mut u[local * r..(local + 1) * r];
                lora.contract(isa, (gate, coverage), token, &x[token * k..][..k], lora.a, u);
                lora.scaled(gate, token, u, &mut c[local * r..(local + 1) * r]);
            }
            lora.expand(isa, gate, tokens, c, lora.bt, y);
        });
    });
}

/// What [`lora_backward`] computes; all are added to.
#[derive(Debug, Default)]
pub struct LoraGradients<'a> {
    /// Gradient of the input, `[m, k]`.
    pub dx: Option<&'a mut [f32]>,
    /// Gradient of `a`, `[R, k]`.
    pub da: Option<&'a mut [f32]>,
    /// Gradient of `bt`, `[R, n]`.
    pub dbt: Option<&'a mut [f32]>,
    /// Gradient of the gate, `[m, experts]`: `sᵢ Σⱼ uᵢⱼ vᵢⱼ`.
    pub dgate: Option<&'a mut [f32]>,
}

/// The gradients of [`lora_forward`], given its `x` and `u` and the gradient `dy` of `y`.
///
/// With `v = dy Bᵀ…` (`[m, R]`, row j is `dy · bt[j]`): `dx += Σᵢ gᵢ sᵢ Aᵢᵀ vᵢ`, `da += (g s v)ᵀ x`,
/// `dbt += (g s u)ᵀ dy`. Sums over tokens run in their order.
///
/// # Panics
/// If the slices do not have these sizes.
#[allow(clippy::too_many_arguments, reason = "the operands of the forward pass and the gradient")]
pub fn lora_backward(
    lora: Lora<'_>,
    x: &[f32],
    u: &[f32],
    dy: &[f32],
    m: usize,
    gate: Option<&[f32]>,
    coverage: Coverage,
    gradients: LoraGradients<'_>,
) {
    lora.check(m, gate);
    let (k, n, r, experts) = (lora.k, lora.n, lora.ranks.total(), lora.ranks.experts());
    let LoraGradients { dx, da, dbt, dgate } = gradients;
    assert_eq!(x.len(), m * k, "x is [{m}, {k}]");
    assert_eq!(u.len(), m * r, "u is [{m}, {r}]");
    assert_eq!(dy.len(), m * n, "dy is [{m}, {n}]");
    let size_is = |part: &Option<&mut [f32]>, size| part.as_ref().is_none_or(|part| part.len() == size);
    assert!(size_is(&dx, m * k), "dx is [{m}, {k}]");
    assert!(size_is(&da, r * k), "da is [{r}, {k}]");
    assert!(size_is(&dbt, r * n), "dbt is [{r}, {n}]");
    assert!(size_is(&dgate, m * experts), "dgate is [{m}, {experts}]");
    let isa = isa::active();
    scratch::with(m * r, |v| {
        // v becomes g s v, which is what dx and da need.
        let (tasks, range) = pool::split(m, grain(r * (k + n) / experts.max(1)));
        let (v_parts, dx, dgate) = (Parts::new(v), dx.map(Parts::new), dgate.map(Parts::new));
        pool::parallel_for(tasks, |task| {
            let tokens = range(task);
            // SAFETY: ranges of tokens are disjoint.
            let v = unsafe { v_parts.get(tokens.start * r..tokens.end * r) };
            scratch::with(r, |raw| {
                for (local, token) in tokens.clone().enumerate() {
                    lora.contract(isa, (gate, coverage), token, &dy[token * n..][..n], lora.bt, raw);
                    if let Some(dgate) = &dgate {
                        // SAFETY: tokens are disjoint.
                        let dgate = unsafe { dgate.get(token * experts..(token + 1) * experts) };
                        for (i, dgate) in dgate.iter_mut().enumerate() {
                            let rows = lora.ranks.rows(i);
                            let u = &u[token * r..][rows.clone()];
                            let sum: f32 = u.iter().zip(&raw[rows]).map(|(u, v)| u * v).sum();
                            *dgate += lora.ranks.scales[i] * sum;
                        }
                    }
                    lora.scaled(gate, token, raw, &mut v[local * r..(local + 1) * r]);
                }
            });
            if let Some(dx) = &dx {
                // SAFETY: ranges of tokens are disjoint.
                let dx = unsafe { dx.get(tokens.start * k..tokens.end * k) };
                lora.expand(isa, gate, tokens, v, lora.a, dx);
            }
        });
        if let Some(da) = da {
            gemm((r, k, m), View::transposed(v, r), x, k, da, k, Accumulate::Add);
        }
        if let Some(dbt) = dbt {
            let c = v;
            for (token, c) in c.chunks_exact_mut(r.max(1)).enumerate().take(m) {
                lora.scaled(gate, token, &u[token * r..][..r], c);
            }
            gemm((r, n, m), View::transposed(c, r), dy, n, dbt, n, Accumulate::Add);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, each_isa, finite_difference, values};

    struct Case {
        m: usize,
        k: usize,
        n: usize,
        ranks: Ranks,
        gate: Option<Vec<f32>>,
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (m, k, n, ranks) in [
            (1, 1, 1, vec![1]),
            (3, 17, 31, vec![8]),
            (5, 64, 33, vec![8, 8, 8, 8]),
            (20, 40, 70, vec![4, 0, 16, 3]),
            (9, 33, 15, vec![64, 9]),
        ] {
            let ranks =
                Ranks::new(ranks.into_iter().enumerate().map(|(i, rank)| (rank, 2.0 - 0.5 * i as f32)));
            let experts = ranks.experts();
            let top_1 =
                (0..m * experts).map(|at| if at % experts == at / experts % experts { 0.7 } else { 0.0 });
            let soft = values(m * experts, 9);
            for gate in [None, Some(top_1.collect()), Some(soft)] {
                cases.push(Case { m, k, n, ranks: ranks.clone(), gate });
            }
        }
        cases
    }

    fn reference(case: &Case, x: &[f32], a: &[f32], bt: &[f32], gate: Option<&[f32]>) -> Vec<f64> {
        let (k, n, experts) = (case.k, case.n, case.ranks.experts());
        let mut y = vec![0.0; case.m * n];
        for token in 0..case.m {
            for i in 0..experts {
                let factor = f64::from(gate.map_or(1.0, |g| g[token * experts + i]) * case.ranks.scales[i]);
                for row in case.ranks.rows(i) {
                    let u: f64 =
                        (0..k).map(|l| f64::from(x[token * k + l]) * f64::from(a[row * k + l])).sum();
                    for j in 0..n {
                        y[token * n + j] += factor * u * f64::from(bt[row * n + j]);
                    }
                }
            }
        }
        y
    }

    #[test]
    fn forward_and_gradients() {
        for case in cases() {
            let (m, k, n, r) = (case.m, case.k, case.n, case.ranks.total());
            let (x, a, bt, dy) = (values(m * k, 1), values(r * k, 2), values(r * n, 3), values(m * n, 4));
            let gate = case.gate.as_deref();
            each_isa(|isa| {
                let lora = Lora { k, n, a: &a, bt: &bt, ranks: &case.ranks };
                let (mut u, mut y) = (vec![f32::NAN; m * r], vec![1.0; m * n]);
                lora_forward(lora, &x, m, gate, Coverage::All, &mut u, &mut y);
                let expected: Vec<f32> =
                    reference(&case, &x, &a, &bt, gate).into_iter().map(|y| (y + 1.0) as f32).collect();
                assert_near(&y, &expected, 1e-4, &format!("{isa} {m} x {n} x {k}"));

                let mut selected = (vec![f32::NAN; m * r], vec![1.0; m * n]);
                lora_forward(lora, &x, m, gate, Coverage::Selected, &mut selected.0, &mut selected.1);
                assert_eq!(selected.1, y, "coverage changes u only");

                let experts = case.ranks.experts();
                let (mut dx, mut da) = (vec![0.0; m * k], vec![0.0; r * k]);
                let (mut dbt, mut dgate) = (vec![0.0; r * n], vec![0.0; m * experts]);
                let gradients = LoraGradients {
                    dx: Some(&mut dx),
                    da: Some(&mut da),
                    dbt: Some(&mut dbt),
                    dgate: Some(&mut dgate),
                };
                lora_backward(lora, &x, &u, &dy, m, gate, Coverage::All, gradients);
                let total = |x: &[f32], a: &[f32], bt: &[f32], gate: Option<&[f32]>| -> f64 {
                    reference(&case, x, a, bt, gate).iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
                };
                finite_difference(&x, &dx, 1e-2, |x| total(x, &a, &bt, gate));
                finite_difference(&a, &da, 1e-2, |a| total(&x, a, &bt, gate));
                finite_difference(&bt, &dbt, 1e-2, |bt| total(&x, &a, bt, gate));
                let ones = vec![1.0; m * experts];
                finite_difference(gate.unwrap_or(&ones), &dgate, 1e-2, |gate| total(&x, &a, &bt, Some(gate)));
            });
        }
    }

    #[test]
    fn no_gate_is_a_gate_of_ones_and_rows_stand_alone() {
        for case in cases().into_iter().filter(|case| case.gate.is_none()) {
            let (m, k, n, r) = (case.m, case.k, case.n, case.ranks.total());
            let (x, a, bt) = (values(m * k, 1), values(r * k, 2), values(r * n, 3));
            each_isa(|isa| {
                let lora = Lora { k, n, a: &a, bt: &bt, ranks: &case.ranks };
                let run = |x: &[f32], m: usize, gate: Option<&[f32]>| {
                    let (mut u, mut y) = (vec![0.0; m * r], vec![1.0; m * n]);
                    lora_forward(lora, x, m, gate, Coverage::Selected, &mut u, &mut y);
                    y
                };
                let ones = vec![1.0; m * case.ranks.experts()];
                let y = run(&x, m, None);
                assert_eq!(run(&x, m, Some(&ones)), y, "{isa}");
                for token in 0..m {
                    assert_eq!(
                        run(&x[token * k..][..k], 1, None),
                        y[token * n..][..n],
                        "{isa} token {token}"
                    );
                }
            });
        }
    }
}
