//! Values and gradients of the kernels, run on the processor, against plain f64 on odd shapes. No card is needed or used.
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

mod attention;
mod harness;
mod routing;

use harness::{Arg, Arg::*, blocks, dot, gradient, launch, near, skipped, values, wide};

#[test]
fn norms() {
    if skipped() {
        return;
    }
    for (rows, d, plus_one) in [(1, 1, false), (3, 33, true), (2, 127, false), (2, 300, true)] {
        let (x, w, dy) = (values(rows * d, 1), values(d, 2), values(rows * d, 3));
        let norm = |x: &[f64]| -> Vec<f64> {
            x.chunks(d)
                .flat_map(|x| {
                    let r = (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + f64::from(1e-5_f32))
                        .sqrt()
                        .recip();
                    x.iter()
                        .zip(&w)
                        .map(move |(x, &w)| x * r * (f64::from(w) + f64::from(plus_one)))
                        .collect::<Vec<_>>()
                })
                .collect()
        };
        let (mut y, mut dx) = (vec![0.0; rows * d], vec![7.0; rows * d]);
        let settings = || -> [Arg<'static>; 3] { [Float(1e-5), Int(i32::from(plus_one)), Int(d as i32)] };
        let mut args = vec![In(&x), In(&w)];
        args.extend(settings());
        args.push(Out(&mut y));
        launch("rms_norm", [rows, 1], args);
        near("rms_norm", &y, &norm(&wide(&x)), 1e-5);
        let mut args = vec![In(&x), In(&w), In(&dy)];
        args.extend(settings());
        args.push(Out(&mut dx));
        launch("rms_norm_backward", [rows, 1], args);
        near("rms_norm_backward", &dx, &gradient(&x, |x| dot(&norm(x), &dy)), 2e-4);
    }
}

#[test]
fn rotary_embedding_and_back() {
    if skipped() {
        return;
    }
    for (heads, half) in [(1, 1), (3, 5), (5, 32)] {
        let (positions, inv_freq) = ([0, 1, 900], values(half, 4));
        let x = values(3 * heads * half * 2, 5);
        let mut expected = wide(&x);
        for (head, x) in expected.chunks_mut(2 * half).enumerate() {
            for i in 0..half {
                // The angle is rounded to f32 on either side.
                let angle = f64::from(positions[head / heads] as f32 * inv_freq[i]);
                let (a, b) = (x[i], x[half + i]);
                (x[i], x[half + i]) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
            }
        }
        let mut y = x.clone();
        for (direction, expected) in [(1.0, &expected), (-1.0, &wide(&x))] {
            let sizes = [Int(heads as i32), Int(half as i32), Float(direction)];
            launch(
                "rope",
                [3, 1],
                [Out(&mut y), Ids(&positions), In(&inv_freq)].into_iter().chain(sizes).collect(),
            );
            near("rope", &y, expected, 1e-5);
        }
    }
}

#[test]
fn gated_activations() {
    if skipped() {
        return;
    }
    for (n, kind) in [(1, 0), (129, 0), (257, 1)] {
        let gate: Vec<f32> = values(n, 6).iter().map(|v| v * 4.0).collect();
        let (up, dy) = (values(n, 7), values(n, 8));
        let act = |x: f64| match kind {
            0 => x / (1.0 + (-x).exp()),
            _ => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        };
        let f = |g: &[f64], u: &[f64]| g.iter().zip(u).map(|(&g, u)| act(g) * u).collect::<Vec<_>>();
        let (mut y, mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        launch("gated", [blocks(n), 1], vec![In(&gate), In(&up), Int(kind), Long(n as u64), Out(&mut y)]);
        near("gated", &y, &f(&wide(&gate), &wide(&up)), 1e-5);
        let args =
            vec![In(&gate), In(&up), In(&dy), Int(kind), Long(n as u64), Out(&mut dgate), Out(&mut dup)];
        launch("gated_backward", [blocks(n), 1], args);
        near("dgate", &dgate, &gradient(&gate, |g| dot(&f(g, &wide(&up)), &dy)), 1e-5);
        near("dup", &dup, &gradient(&up, |u| dot(&f(&wide(&gate), u), &dy)), 1e-5);
    }
}

#[test]
fn products_of_rows_and_of_transposes() {
    if skipped() {
        return;
    }
    for (m, n, k) in [(1, 1, 1), (8, 16, 16), (9, 17, 33), (3, 40, 5)] {
        for (a_turned, b_turned, add) in [(false, false, false), (false, true, true), (true, false, true)] {
            let (a, b, c) = (values(m * k, 9), values(k * n, 10), values(m * n, 11));
            let strides =
                |turned: bool, rows: usize, columns: usize| if turned { (1, rows) } else { (columns, 1) };
            let ((ar, ac), (br, bc)) = (strides(a_turned, m, k), strides(b_turned, k, n));
            let expected: Vec<f64> = (0..m * n)
                .map(|at| {
                    let (i, j) = (at / n, at % n);
                    let sum: f64 =
                        (0..k).map(|l| f64::from(a[i * ar + l * ac]) * f64::from(b[l * br + j * bc])).sum();
                    sum + if add { f64::from(c[at]) } else { 0.0 }
                })
                .collect();
            let mut y = c.clone();
            let args = vec![
                In(&a),
                Long(ar as u64),
                Long(ac as u64),
                In(&b),
                Long(br as u64),
                Long(bc as u64),
                Int(m as i32),
                Int(n as i32),
                Int(k as i32),
                Int(i32::from(add)),
                Out(&mut y),
            ];
            launch("matmul", [n.div_ceil(16), m.div_ceil(8)], args);
            near("matmul", &y, &expected, 1e-5);
        }
    }
}

#[test]
fn embedding_rows() {
    if skipped() {
        return;
    }
    let (table, mut y) = (values(5 * 131, 12), vec![0.0; 3 * 131]);
    launch("embedding", [3, 1], vec![Ids(&[4, 0, 4]), In(&table), Float(2.0), Int(131), Out(&mut y)]);
    let expected: Vec<f64> =
        [4, 0, 4].iter().flat_map(|&id| wide(&table[id * 131..][..131])).map(|v| 2.0 * v).collect();
    near("embedding", &y, &expected, 0.0);
}

#[test]
fn cross_entropy_and_its_gradient() {
    if skipped() {
        return;
    }
    for vocabulary in [1, 31, 129, 1000] {
        let z: Vec<f32> = values(2 * vocabulary, 13).iter().map(|v| v * 9.0).collect();
        let targets = [vocabulary as u32 / 2, 0];
        let loss = |z: &[f64]| -> Vec<f64> {
            let of = |(z, &t): (&[f64], &u32)| z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[t as usize];
            z.chunks(vocabulary).zip(&targets).map(of).collect()
        };
        let (mut dz, mut losses) = (z.clone(), vec![0.0; 2]);
        let args = vec![Out(&mut dz), Ids(&targets), Float(0.5), Int(vocabulary as i32), Out(&mut losses)];
        launch("cross_entropy", [2, 1], args);
        near("loss", &losses, &loss(&wide(&z)), 1e-5);
        near("dz", &dz, &gradient(&z, |z| 0.5 * loss(z).iter().sum::<f64>()), 1e-5);
    }
}

#[test]
fn steps_of_the_optimiser() {
    if skipped() {
        return;
    }
    let n = 200;
    let (mut p, mut m, mut v) = (values(n, 14), vec![0.0; n], vec![0.0; n]);
    let mut expected: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
    for step in 1..=4 {
        let g = values(n, 20 + step as u64);
        let (first, second) = (1.0 - 0.9_f64.powi(step), 1.0 - 0.999_f64.powi(step));
        let args = vec![
            Out(&mut p),
            In(&g),
            Out(&mut m),
            Out(&mut v),
            Float(1.0 - 1e-3),
            Float(0.9),
            Float(0.999),
            Float(1e-8),
            Float((1e-2 / first) as f32),
            Float(second.sqrt() as f32),
            Long(n as u64),
        ];
        launch("adamw", [blocks(n), 1], args);
        for ([p, m, v], g) in expected.iter_mut().zip(wide(&g)) {
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *p = *p * (1.0 - 1e-3) - 1e-2 * (*m / first) / ((*v / second).sqrt() + 1e-8);
        }
    }
    near("adamw", &p, &expected.iter().map(|[p, ..]| *p).collect::<Vec<_>>(), 1e-5);
}
