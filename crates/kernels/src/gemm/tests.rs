use super::*;
use crate::isa::Isa;
use crate::pool;
use crate::testing::{isas, values};

/// The weights as the products see them.
fn dense(w: &Packed) -> Vec<f32> {
    let mut dense = vec![0.0; w.n() * w.k()];
    for (i, row) in dense.chunks_mut(w.k()).enumerate() {
        w.row(i, row);
    }
    dense
}

const STORAGES: [Storage; 4] = [Storage::F32, Storage::Bf16, Storage::Int8, Storage::Q4];

/// Σ a b in f64, and Σ |a b| to measure errors against.
fn dot(pairs: impl Iterator<Item = (f32, f32)>) -> (f64, f64) {
    pairs.fold((0.0, 0.0), |(sum, size), (a, b)| {
        let product = f64::from(a) * f64::from(b);
        (sum + product, size + product.abs())
    })
}

fn assert_close(value: f32, (sum, size): (f64, f64), what: &str) {
    let error = (f64::from(value) - sum).abs();
    assert!(error <= 1e-6 + 2e-6 * size, "{what}: {value} instead of {sum}");
}

/// The activations as a product sees them: AMX tiles take bf16.
fn seen(activations: &[f32], isa: Isa, storage: Storage) -> Vec<f32> {
    let rounds = isa == Isa::Amx && storage == Storage::Bf16;
    activations.iter().map(|&x| if rounds { half::bf16::from_f32(x).to_f32() } else { x }).collect()
}

fn check(m: usize, n: usize, k: usize) {
    let w = values(n * k, 1);
    let x = values(m * k, 2);
    let dy = values(m * n, 3);
    for storage in STORAGES {
        let packed = Packed::pack(&w, n, k, storage);
        let dense = dense(&packed);
        for isa in isas() {
            let (x_seen, dy_seen) = (seen(&x, isa, storage), seen(&dy, isa, storage));
            for (accumulate, start) in [(Accumulate::Overwrite, f32::NAN), (Accumulate::Add, 0.5)] {
                let offset = if accumulate == Accumulate::Add { 0.5 } else { 0.0 };
                let mut y = vec![start; m * n];
                isa::with(isa, || matmul(&x, m, &packed, &mut y, accumulate));
                for (at, &y) in y.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let terms = x_seen[i * k..][..k].iter().copied().zip(dense[j * k..][..k].iter().copied());
                    let what = format!("{isa} {storage:?} y[{i}, {j}] of {m} x {n} x {k}");
                    assert_close(y, dot(terms.chain([(offset, 1.0)])), &what);
                }
                let mut dx = vec![start; m * k];
                isa::with(isa, || matmul_transposed(&dy, m, &packed, &mut dx, accumulate));
                for (at, &dx) in dx.iter().enumerate() {
                    let (i, j) = (at / k, at % k);
                    let terms = (0..n).map(|l| (dy_seen[i * n + l], dense[l * k + j]));
                    let what = format!("{isa} {storage:?} dx[{i}, {j}] of {m} x {n} x {k}");
                    assert_close(dx, dot(terms.chain([(offset, 1.0)])), &what);
                }
            }
        }
    }
}

#[test]
fn products_of_odd_shapes() {
    for (m, n, k) in [
        (1, 1, 1),
        (1, 33, 15),
        (2, 31, 17),
        (3, 200, 64),
        (5, 64, 33),
        (7, 100, 96),
        (8, 65, 130),
        (13, 32, 31),
        (15, 48, 63),
        (16, 17, 16),
        (29, 40, 70),
    ] {
        check(m, n, k);
    }
}

#[test]
fn deep_products_are_blocked() {
    check(2, 3, 2100);
    check(17, 2100, 5);
}

#[test]
fn rows_do_not_depend_on_their_neighbours_or_threads() {
    let (n, k) = (130, 77);
    let w = values(n * k, 5);
    let x = values(130 * k, 6);
    for storage in STORAGES {
        let packed = Packed::pack(&w, n, k, storage);
        for isa in isas() {
            isa::with(isa, || {
                let mut all = vec![0.0; 130 * n];
                matmul(&x, 130, &packed, &mut all, Accumulate::Overwrite);
                for m in [1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 30, 64] {
                    for threads in [1, 3] {
                        pool::set_threads(threads);
                        let mut y = vec![0.0; m * n];
                        matmul(&x[..m * k], m, &packed, &mut y, Accumulate::Overwrite);
                        assert_eq!(y, all[..m * n], "{isa} {storage:?} {m} rows, {threads} threads");
                    }
                }
                pool::set_threads(0);
            });
        }
    }
}

#[test]
fn any_strides() {
    for (m, n, k) in [(1, 1, 1), (3, 33, 5), (8, 100, 40), (17, 31, 64), (40, 70, 9)] {
        let a = values(m * k, 1);
        let b = values(k * (n + 3), 2);
        for isa in isas() {
            for transposed in [false, true] {
                let view = if transposed { View::transposed(&a, m) } else { View::rows(&a, k) };
                let mut c = vec![7.0; m * (n + 1)];
                isa::with(isa, || gemm((m, n, k), view, &b, n + 3, &mut c, n + 1, Accumulate::Overwrite));
                for i in 0..m {
                    for j in 0..n {
                        let left = |l: usize| if transposed { a[l * m + i] } else { a[i * k + l] };
                        let terms = (0..k).map(|l| (left(l), b[l * (n + 3) + j]));
                        assert_close(c[i * (n + 1) + j], dot(terms), &format!("{isa} c[{i}, {j}]"));
                    }
                    assert_eq!(c[i * (n + 1) + n], 7.0, "the gap between rows is not written");
                }
            }
        }
    }
}
