//! Attention over ragged sequences.

use crate::harness::{Arg, Arg::*, dot, gradient, launch, near, skipped, values, wide};

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    d: usize,
    cap: f32,
    window: usize,
}

fn reference(shape: Shape, lengths: &[usize], q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let Shape { heads, kv_heads, d, cap, window } = shape;
    let mut o = vec![0.0; q.len()];
    let mut start = 0;
    for &len in lengths {
        for row in start..start + len {
            for head in 0..heads {
                let (own, shared) = ((row * heads + head) * d, head / (heads / kv_heads));
                let keys: Vec<usize> =
                    (start..=row).filter(|key| window == 0 || row - key < window).collect();
                let at = |key: usize| (key * kv_heads + shared) * d;
                let weights: Vec<f64> = keys
                    .iter()
                    .map(|&key| {
                        let score: f64 =
                            0.7_f32 as f64 * (0..d).map(|i| q[own + i] * k[at(key) + i]).sum::<f64>();
                        let cap = f64::from(cap);
                        if cap > 0.0 { (cap * (score / cap).tanh()).exp() } else { score.exp() }
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for (&key, weight) in keys.iter().zip(&weights) {
                    (0..d).for_each(|i| o[own + i] += weight / total * v[at(key) + i]);
                }
            }
        }
        start += len;
    }
    o
}

#[test]
fn values_and_gradients() {
    if skipped() {
        return;
    }
    let shape = |heads, kv_heads, d, cap, window| Shape { heads, kv_heads, d, cap, window };
    for (shape, lengths) in [
        (shape(1, 1, 4, 0.0, 0), vec![1]),
        (shape(4, 2, 8, 0.0, 0), vec![3, 1, 5]),
        (shape(3, 1, 33, 1.5, 0), vec![4, 2]),
        (shape(2, 2, 64, 0.0, 3), vec![7]),
        (shape(2, 1, 256, 2.0, 2), vec![2, 3]),
    ] {
        let Shape { heads, kv_heads, d, cap, window } = shape;
        let rows: usize = lengths.iter().sum();
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for &len in &lengths {
            let start = starts.len() as u32;
            starts.extend(vec![start; len]);
            ends.extend(vec![start + len as u32; len]);
        }
        let (q, d_o) = (values(rows * heads * d, 1), values(rows * heads * d, 2));
        let (k, v) = (values(rows * kv_heads * d, 3), values(rows * kv_heads * d, 4));
        let sizes = || -> Vec<Arg<'static>> {
            let counts = [rows, heads, kv_heads, d].map(|size| Int(size as i32));
            counts.into_iter().chain([Float(0.7), Float(cap), Int(window as i32)]).collect()
        };
        let run = |name: &str, at: &[u32], heads: usize, more: Vec<Arg<'_>>| {
            let mut args = vec![In(&q), In(&k), In(&v), Ids(at)];
            args.extend(sizes());
            args.extend(more);
            launch(name, [rows.div_ceil(4), heads], args);
        };
        let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * heads]);
        run("attention", &starts, heads, vec![Out(&mut o), Out(&mut lse)]);
        let (qw, kw, vw) = (wide(&q), wide(&k), wide(&v));
        near("attention", &o, &reference(shape, &lengths, &qw, &kw, &vw), 1e-5);

        let (mut dq, mut dk, mut dv) = (vec![7.0; q.len()], vec![7.0; k.len()], vec![7.0; v.len()]);
        run("attention_backward_q", &starts, heads, vec![In(&o), In(&lse), In(&d_o), Out(&mut dq)]);
        let outputs = vec![In(&o), In(&lse), In(&d_o), Out(&mut dk), Out(&mut dv)];
        run("attention_backward_kv", &ends, kv_heads, outputs);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| dot(&reference(shape, &lengths, q, k, v), &d_o);
        near("dq", &dq, &gradient(&q, |q| loss(q, &kw, &vw)), 1e-4);
        near("dk", &dk, &gradient(&k, |k| loss(&qw, k, &vw)), 1e-4);
        near("dv", &dv, &gradient(&v, |v| loss(&qw, &kw, v)), 1e-4);
    }
}
