use super::*;
use crate::testing::{each_isa, values};

/// The formula of the module documentation.
fn reference(x: &[f32], w: &Packed, y: &mut [f32], add: bool) {
    let (n, k) = (w.n(), w.k());
    let mut weights = vec![0.0; n * k];
    weights.chunks_mut(k).enumerate().for_each(|(i, row)| w.row(i, row));
    for (i, y) in y.iter_mut().enumerate() {
        let (x, w) = (&x[i / n * k..][..k], &weights[i % n * k..][..k]);
        let sum: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        *y = sum as f32 + if add { *y } else { 0.0 };
    }
}

/// (m, n, k): below, at and above the sizes of tiles, panels and groups.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 33, 15),
    (2, 31, 17),
    (3, 64, 32),
    (4, 16, 33),
    (5, 65, 64),
    (6, 100, 96),
    (7, 15, 63),
    (13, 48, 31),
    (17, 17, 160),
    (33, 40, 70),
    (64, 96, 288),
];

#[test]
fn products_are_those_of_rounded_activations_with_the_same_bits_everywhere() {
    for (m, n, k) in SHAPES {
        for storage in [Storage::Int8, Storage::Q4] {
            let w = Packed::pack(&values(n * k, 1), n, k, storage);
            let x: Vec<f32> =
                values(m * k, 2).iter().enumerate().map(|(i, x)| x * [1.0, 50.0, 1e-3][i / k % 3]).collect();
            for accumulate in [Accumulate::Overwrite, Accumulate::Add] {
                let start = values(m * n, 3);
                let mut expected = start.clone();
                reference(&seen(&x, k), &w, &mut expected, accumulate == Accumulate::Add);
                let portable = isa::with(Isa::Portable, || {
                    let mut y = start.clone();
                    matmul(&x, m, &w, &mut y, accumulate);
                    y
                });
                for (i, (y, expected)) in portable.iter().zip(&expected).enumerate() {
                    let size =
                        x[i / n * k..][..k].iter().fold(1.0f32, |most, x| most.max(x.abs())) * k as f32;
                    assert!(
                        (y - expected).abs() < 3e-7 * size,
                        "{storage:?} {m} x {n} x {k}: {y} not {expected}"
                    );
                }
                each_isa(|isa| {
                    let available = isa::active();
                    for dots in [Dots::of(available), Dots::Split] {
                        let mut y = start.clone();
                        matmul_with((available, dots), &x, m, &w, &mut y, accumulate);
                        assert_eq!(y, portable, "{isa} {dots:?} {storage:?} {m} x {n} x {k}");
                    }
                });
            }
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone() {
    let (n, k) = (70, 100);
    for storage in [Storage::Int8, Storage::Q4] {
        let w = Packed::pack(&values(n * k, 1), n, k, storage);
        let x = values(40 * k, 2);
        each_isa(|isa| {
            let mut alone = vec![0.0; 40 * n];
            for (x, y) in x.chunks(k).zip(alone.chunks_mut(n)) {
                matmul(x, 1, &w, y, Accumulate::Overwrite);
            }
            for (m, threads) in [(2, 1), (7, 3), (40, 2)] {
                pool::set_threads(threads);
                for (x, alone) in x.chunks(m * k).zip(alone.chunks(m * n)) {
                    let mut y = vec![f32::NAN; alone.len()];
                    matmul(x, alone.len() / n, &w, &mut y, Accumulate::Overwrite);
                    assert_eq!(y, alone, "{isa} {storage:?} {m} rows, {threads} threads");
                }
            }
            pool::set_threads(0);
        });
    }
}

#[test]
fn activations_are_rounded_by_row() {
    let check = |x: &[f32], expected: &[f32]| assert_eq!(seen(x, x.len()), expected, "{x:?}");
    check(&[0.0, 0.0], &[0.0, 0.0]);
    check(&[32767.0, -1.4, 2.6, 0.5, 1.5], &[32767.0, -1.0, 3.0, 0.0, 2.0]);
    check(&[-65534.0, 3.0, 5.0], &[-65534.0, 4.0, 4.0]);
    // Too small to divide by.
    check(&[1e-38, -1e-31], &[0.0, 0.0]);
}

#[test]
fn the_largest_operands_do_not_overflow() {
    let k = 64;
    for storage in [Storage::Int8, Storage::Q4] {
        let w = Packed::pack(&[vec![-1.0; k], vec![1.0; k]].concat(), 2, k, storage);
        each_isa(|isa| {
            let mut y = [0.0; 2];
            matmul(&vec![1.0; k], 1, &w, &mut y, Accumulate::Overwrite);
            assert!((y[0] + 64.0).abs() < 0.05 && (y[1] - 64.0).abs() < 0.05, "{isa} {storage:?} {y:?}");
        });
    }
}

#[test]
fn what_is_not_finite_stays_that() {
    let (n, k) = (33, 40);
    let w = Packed::pack(&values(n * k, 1), n, k, Storage::Int8);
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(2 * k, 2);
        x[k + 35] = fault;
        each_isa(|isa| {
            let mut y = vec![0.0; 2 * n];
            matmul(&x, 2, &w, &mut y, Accumulate::Overwrite);
            assert!(
                y[..n].iter().all(|y| y.is_finite()) && y[n..].iter().all(|y| !y.is_finite()),
                "{isa} {fault}"
            );
        });
    }
}
