//! Products: with weights in every storage, and of f32 matrices.

use super::{Amount, Sum, Trial, values};
use crate::gemm::{Accumulate, View, gemm, integer, matmul, matmul_transposed};
use crate::packed::{Packed, Storage};

/// (m, n, k): below, at and above the sizes of tiles, panels and chains.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (1, 33, 15),
    (2, 31, 17),
    (7, 100, 96),
    (15, 48, 63),
    (16, 17, 16),
    (33, 40, 70),
    (65, 65, 130),
    (3, 5, 2100),
    (3, 2100, 5),
];

/// The shape whose speed is told.
const LARGE: (usize, usize, usize) = (64, 576, 576);

fn operations((m, n, k): (usize, usize, usize)) -> Amount {
    Amount::Operations(2.0 * (m * n * k) as f64)
}

/// What is in the output before, and which part of it counts.
const STARTS: [(Accumulate, f32, f64); 2] =
    [(Accumulate::Overwrite, f32::NAN, 0.0), (Accumulate::Add, 0.5, 0.5)];

/// A packed weight and its elements as the products see them.
fn weight(n: usize, k: usize, storage: Storage) -> (Packed, Vec<f32>) {
    let packed = Packed::pack(&values(n * k, 1), n, k, storage);
    let mut dense = vec![0.0; n * k];
    for (i, row) in dense.chunks_mut(k).enumerate() {
        packed.row(i, row);
    }
    (packed, dense)
}

pub(super) fn forward(trial: &mut Trial, storage: Storage) {
    for (m, n, k) in SHAPES {
        let (packed, dense) = weight(n, k, storage);
        let x = values(m * k, 2);
        let seen = trial.activations(&x, storage);
        for (accumulate, start, counts) in STARTS {
            let mut y = vec![start; m * n];
            matmul(&x, m, &packed, &mut y, accumulate);
            trial.compare(&format!("{m} x {n} x {k}, {accumulate:?}"), &y, |at| {
                let (x, w) = (&seen[at / n * k..][..k], &dense[at % n * k..][..k]);
                Sum::of(counts) + Sum::dot(x.iter().copied().zip(w.iter().copied()))
            });
        }
    }
    let (m, n, k) = LARGE;
    let (x, (packed, _), mut y) = (values(m * k, 2), weight(n, k, storage), vec![0.0; m * n]);
    trial.time(operations(LARGE), || matmul(&x, m, &packed, &mut y, Accumulate::Overwrite));
}

/// With activations rounded to 16 bits, against the formula of the rounded ones.
pub(super) fn rounding(trial: &mut Trial, storage: Storage) {
    for (m, n, k) in SHAPES {
        let (packed, dense) = weight(n, k, storage);
        let packed = packed.rounding_activations();
        let x = values(m * k, 2);
        let seen = integer::seen(&x, k);
        for (accumulate, start, counts) in STARTS {
            let mut y = vec![start; m * n];
            matmul(&x, m, &packed, &mut y, accumulate);
            trial.compare(&format!("{m} x {n} x {k}, {accumulate:?}"), &y, |at| {
                let (x, w) = (&seen[at / n * k..][..k], &dense[at % n * k..][..k]);
                Sum::of(counts) + Sum::dot(x.iter().copied().zip(w.iter().copied()))
            });
        }
    }
    let (m, n, k) = LARGE;
    let packed = weight(n, k, storage).0.rounding_activations();
    let (x, mut y) = (values(m * k, 2), vec![0.0; m * n]);
    trial.time(operations(LARGE), || matmul(&x, m, &packed, &mut y, Accumulate::Overwrite));
}

pub(super) fn backward(trial: &mut Trial, storage: Storage) {
    for (m, n, k) in SHAPES {
        let (packed, dense) = weight(n, k, storage);
        let dy = values(m * n, 3);
        let seen = trial.activations(&dy, storage);
        for (accumulate, start, counts) in STARTS {
            let mut dx = vec![start; m * k];
            matmul_transposed(&dy, m, &packed, &mut dx, accumulate);
            trial.compare(&format!("{m} x {n} x {k}, {accumulate:?}"), &dx, |at| {
                let (dy, column) = (&seen[at / k * n..][..n], at % k);
                Sum::of(counts) + Sum::dot(dy.iter().enumerate().map(|(j, &dy)| (dy, dense[j * k + column])))
            });
        }
    }
    let (m, n, k) = LARGE;
    let (dy, (packed, _), mut dx) = (values(m * n, 3), weight(n, k, storage), vec![0.0; m * k]);
    trial.time(operations(LARGE), || matmul_transposed(&dy, m, &packed, &mut dx, Accumulate::Overwrite));
}

/// With rows that are further apart than they are wide; what lies between must stay.
pub(super) fn plain(trial: &mut Trial) {
    for (m, n, k) in SHAPES {
        let (a, b) = (values(m * k, 1), values(k * (n + 3), 2));
        for transposed in [false, true] {
            let view = if transposed { View::transposed(&a, m) } else { View::rows(&a, k) };
            for (accumulate, start, counts) in STARTS {
                let mut c = vec![start; m * (n + 1)];
                c.chunks_mut(n + 1).for_each(|row| row[n] = 7.0);
                gemm((m, n, k), view, &b, n + 3, &mut c, n + 1, accumulate);
                let what = format!("{m} x {n} x {k}, {accumulate:?}, transposed: {transposed}");
                trial.compare(&what, &c, |at| {
                    let (i, j) = (at / (n + 1), at % (n + 1));
                    if j == n {
                        return Sum::of(7.0);
                    }
                    let left = |l: usize| if transposed { a[l * m + i] } else { a[i * k + l] };
                    Sum::of(counts) + Sum::dot((0..k).map(|l| (left(l), b[l * (n + 3) + j])))
                });
            }
        }
    }
    let (m, n, k) = LARGE;
    let (a, b, mut c) = (values(m * k, 1), values(k * n, 2), vec![0.0; m * n]);
    trial.time(operations(LARGE), || {
        gemm(LARGE, View::rows(&a, k), &b, n, &mut c, n, Accumulate::Overwrite);
    });
}
