//! The narrow products of LoRA experts, forward and backward.

use super::{Amount, Sum, Trial, values};
use crate::lora::{Coverage, Lora, LoraGradients, Ranks, lora_backward, lora_forward};

struct Case {
    m: usize,
    k: usize,
    n: usize,
    /// (rank, scale) of each expert.
    experts: Vec<(usize, f32)>,
    /// `[m, experts]`
    gate: Option<Vec<f32>>,
}

/// All experts, one for each token, and all with gates.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (m, k, n, ranks) in [
        (1, 1, 1, vec![1]),
        (3, 17, 31, vec![8]),
        (5, 64, 33, vec![8, 8, 8, 8]),
        (20, 40, 70, vec![4, 0, 16, 3]),
        (33, 33, 15, vec![64, 9]),
    ] {
        let experts: Vec<_> =
            ranks.into_iter().enumerate().map(|(i, rank)| (rank, 2.0 - 0.5 * i as f32)).collect();
        let count = experts.len();
        let top_1 = (0..m * count).map(|at| if at % count == at / count % count { 0.7 } else { 0.0 });
        for gate in [None, Some(top_1.collect()), Some(values(m * count, 9))] {
            cases.push(Case { m, k, n, experts: experts.clone(), gate });
        }
    }
    cases
}

/// The case whose speed is told.
fn large() -> Case {
    Case { m: 64, k: 576, n: 576, experts: vec![(8, 2.0); 4], gate: Some(vec![0.25; 64 * 4]) }
}

impl Case {
    fn name(&self) -> String {
        let ranks: Vec<usize> = self.experts.iter().map(|expert| expert.0).collect();
        format!("{} x {} x {}, ranks {ranks:?}", self.m, self.k, self.n)
    }

    /// The expert of each row of A and B.
    fn owners(&self) -> Vec<usize> {
        self.experts.iter().enumerate().flat_map(|(i, &(rank, _))| vec![i; rank]).collect()
    }

    fn gate(&self, token: usize, expert: usize) -> f64 {
        self.gate.as_ref().map_or(1.0, |gate| f64::from(gate[token * self.experts.len() + expert]))
    }

    /// Whether a row's products with this token are computed.
    fn covers(&self, coverage: Coverage, token: usize, expert: usize) -> bool {
        coverage == Coverage::All || self.gate(token, expert) != 0.0
    }

    /// Gate times scale.
    fn factor(&self, token: usize, expert: usize) -> f64 {
        self.gate(token, expert) * f64::from(self.experts[expert].1)
    }

    /// `[m, R]`: rows of `left` (`[m, width]`) times rows of `right` (`[R, width]`); 0 where not covered.
    fn contract(&self, coverage: Coverage, left: &[f32], right: &[f32], width: usize) -> Vec<Sum> {
        let owners = self.owners();
        let product = |at: usize| {
            let (token, row) = (at / owners.len(), at % owners.len());
            if !self.covers(coverage, token, owners[row]) {
                return Sum::default();
            }
            let (left, right) = (&left[token * width..][..width], &right[row * width..][..width]);
            Sum::dot(left.iter().copied().zip(right.iter().copied()))
        };
        (0..self.m * owners.len()).map(product).collect()
    }

    fn operations(&self) -> f64 {
        (2 * self.m * self.owners().len() * (self.k + self.n)) as f64
    }
}

/// A, B transposed, x, and the gradient of y.
fn operands(case: &Case) -> [Vec<f32>; 4] {
    let r = case.owners().len();
    [values(r * case.k, 1), values(r * case.n, 2), values(case.m * case.k, 3), values(case.m * case.n, 4)]
}

pub(super) fn forward(trial: &mut Trial) {
    for case in cases() {
        let [a, bt, x, start] = operands(&case);
        let (owners, ranks) = (case.owners(), Ranks::new(case.experts.iter().copied()));
        let (m, k, n, r) = (case.m, case.k, case.n, owners.len());
        for coverage in [Coverage::Selected, Coverage::All] {
            let (mut u, mut y) = (vec![f32::NAN; m * r], start.clone());
            let lora = Lora { k, n, a: &a, bt: &bt, ranks: &ranks };
            lora_forward(lora, &x, m, case.gate.as_deref(), coverage, &mut u, &mut y);
            let expected = case.contract(coverage, &x, &a, k);
            let what = format!("{}, {coverage:?}", case.name());
            trial.compare(&format!("{what}, u"), &u, |at| expected[at]);
            trial.compare(&what, &y, |at| {
                let (token, column) = (at / n, at % n);
                let terms = owners.iter().enumerate().map(|(row, &expert)| {
                    let factor = case.factor(token, expert) * f64::from(bt[row * n + column]);
                    expected[token * r + row].times(factor)
                });
                Sum::of(f64::from(start[at])) + terms.sum()
            });
        }
    }
    let case = large();
    let ([a, bt, x, mut y], ranks) = (operands(&case), Ranks::new(case.experts.iter().copied()));
    let lora = Lora { k: case.k, n: case.n, a: &a, bt: &bt, ranks: &ranks };
    let mut u = vec![0.0; case.m * ranks.total()];
    trial.time(Amount::Operations(case.operations()), || {
        y.fill(0.0);
        lora_forward(lora, &x, case.m, case.gate.as_deref(), Coverage::Selected, &mut u, &mut y);
    });
}

pub(super) fn backward(trial: &mut Trial) {
    for case in cases() {
        let [a, bt, x, dy] = operands(&case);
        let (owners, ranks) = (case.owners(), Ranks::new(case.experts.iter().copied()));
        let (m, k, n, r, experts) = (case.m, case.k, case.n, owners.len(), case.experts.len());
        let u = values(m * r, 5);
        for coverage in [Coverage::Selected, Coverage::All] {
            let [mut dx, mut da, mut dbt, mut dgate] =
                [m * k, r * k, r * n, m * experts].map(|len| vec![0.5; len]);
            let lora = Lora { k, n, a: &a, bt: &bt, ranks: &ranks };
            let gradients = LoraGradients {
                dx: Some(&mut dx),
                da: Some(&mut da),
                dbt: Some(&mut dbt),
                dgate: Some(&mut dgate),
            };
            lora_backward(lora, &x, &u, &dy, m, case.gate.as_deref(), coverage, gradients);
            let v = case.contract(coverage, &dy, &bt, n);
            let what = format!("{}, {coverage:?}", case.name());
            let start = Sum::of(0.5);
            let scaled = |token: usize, row: usize| v[token * r + row].times(case.factor(token, owners[row]));
            trial.compare(&format!("{what}, dx"), &dx, |at| {
                let (token, column) = (at / k, at % k);
                let terms = (0..r).map(|row| scaled(token, row).times(f64::from(a[row * k + column])));
                start + terms.sum()
            });
            trial.compare(&format!("{what}, da"), &da, |at| {
                let (row, column) = (at / k, at % k);
                start + (0..m).map(|t| scaled(t, row).times(f64::from(x[t * k + column]))).sum()
            });
            trial.compare(&format!("{what}, dbt"), &dbt, |at| {
                let (row, column) = (at / n, at % n);
                let term = |t: usize| {
                    let factor = case.factor(t, owners[row]) * f64::from(u[t * r + row]);
                    Sum::of(factor * f64::from(dy[t * n + column]))
                };
                start + (0..m).map(term).sum()
            });
            trial.compare(&format!("{what}, dgate"), &dgate, |at| {
                let (token, expert) = (at / experts, at % experts);
                let scale = f64::from(case.experts[expert].1);
                let rows = (0..r).filter(|&row| owners[row] == expert);
                start + rows.map(|row| v[token * r + row].times(scale * f64::from(u[token * r + row]))).sum()
            });
        }
    }
    let case = large();
    let ([a, bt, x, dy], ranks) = (operands(&case), Ranks::new(case.experts.iter().copied()));
    let lora = Lora { k: case.k, n: case.n, a: &a, bt: &bt, ranks: &ranks };
    let u = values(case.m * ranks.total(), 5);
    let [mut dx, mut da, mut dbt] = [x.len(), a.len(), bt.len()].map(|len| vec![0.0; len]);
    trial.time(Amount::Operations(2.0 * case.operations()), || {
        let gradients =
            LoraGradients { dx: Some(&mut dx), da: Some(&mut da), dbt: Some(&mut dbt), dgate: None };
        lora_backward(lora, &x, &u, &dy, case.m, case.gate.as_deref(), Coverage::Selected, gradients);
    });
}
