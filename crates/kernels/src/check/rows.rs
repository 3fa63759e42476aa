//! What works row by row or element by element.

use super::{Amount, Sum, Trial, values};
use crate::adamw::{AdamW, adamw};
use crate::loss::{argmax, cap_logits, cross_entropy_chunk, log_softmax_at};
use crate::mlp::{Activation, add_into, gated, gated_backward, sum};
use crate::norm::{RmsNorm, rms_norm, rms_norm_backward};
use crate::rope::{Angles, Direction, rope};
use crate::sample::{Sampling, sample};

/// Rows and their width; the last one's speed is told.
const ROWS: [(usize, usize); 5] = [(1, 1), (3, 17), (17, 33), (2, 1000), (64, 576)];

/// Lengths of vectors; the last one's speed is told.
const LENGTHS: [usize; 5] = [1, 15, 33, 5000, 65_536];

/// Bytes of so many f32 elements.
fn bytes(elements: usize) -> Amount {
    Amount::Bytes(4.0 * elements as f64)
}

/// A row's `(mean(x²) + eps)^-½`.
fn inverse_root(x: &[f32], eps: f32) -> f64 {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (squares / x.len() as f64 + f64::from(eps)).powf(-0.5)
}

/// What multiplies element `i` of a normalised row.
fn factor(norm: RmsNorm<'_>, i: usize) -> f64 {
    f64::from(norm.weight[i]) + if norm.plus_one { 1.0 } else { 0.0 }
}

pub(super) fn norm(trial: &mut Trial) {
    for (m, d) in ROWS {
        let (x, weight, mut y) = (values(m * d, 1), values(d, 2), vec![f32::NAN; m * d]);
        for plus_one in [false, true] {
            let norm = RmsNorm { weight: &weight, eps: 1e-5, plus_one };
            rms_norm(&x, m, norm, &mut y);
            let roots: Vec<f64> = x.chunks(d).map(|x| inverse_root(x, norm.eps)).collect();
            trial.compare(&format!("{m} x {d}, plus one: {plus_one}"), &y, |at| {
                Sum::of(f64::from(x[at]) * roots[at / d] * factor(norm, at % d))
            });
        }
        let norm = RmsNorm { weight: &weight, eps: 1e-5, plus_one: false };
        trial.time(bytes(2 * m * d), || rms_norm(&x, m, norm, &mut y));
    }
}

pub(super) fn norm_backward(trial: &mut Trial) {
    for (m, d) in ROWS {
        let (x, dy, weight) = (values(m * d, 1), values(m * d, 3), values(d, 2));
        let mut dx = vec![f32::NAN; m * d];
        for plus_one in [false, true] {
            let norm = RmsNorm { weight: &weight, eps: 1e-5, plus_one };
            rms_norm_backward(&x, &dy, m, norm, &mut dx);
            let of_row = |row: usize| {
                let (x, dy) = (&x[row * d..][..d], &dy[row * d..][..d]);
                let term = |i: usize| Sum::of(f64::from(x[i]) * factor(norm, i) * f64::from(dy[i]));
                (inverse_root(x, norm.eps), (0..d).map(term).sum::<Sum>())
            };
            let of_rows: Vec<(f64, Sum)> = (0..m).map(of_row).collect();
            trial.compare(&format!("{m} x {d}, plus one: {plus_one}"), &dx, |at| {
                let (r, sum) = of_rows[at / d];
                let direct = Sum::of(r * factor(norm, at % d) * f64::from(dy[at]));
                direct + sum.times(-f64::from(x[at]) * r.powi(3) / d as f64)
            });
        }
        let norm = RmsNorm { weight: &weight, eps: 1e-5, plus_one: false };
        trial.time(bytes(3 * m * d), || rms_norm_backward(&x, &dy, m, norm, &mut dx));
    }
}

pub(super) fn rotation(trial: &mut Trial) {
    for (tokens, heads, half) in [(1, 1, 1), (3, 2, 4), (33, 1, 5), (20, 3, 16), (64, 9, 32)] {
        let inv_freq: Vec<f32> = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
        let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 1000 + 7).collect();
        let angles = Angles::new(&positions, &inv_freq);
        let x = values(tokens * heads * half * 2, 1);
        for (direction, sign) in [(Direction::Forward, 1.0), (Direction::Backward, -1.0)] {
            let mut y = x.clone();
            rope(&mut y, heads, &angles, direction);
            trial.compare(
                &format!("{tokens} tokens, {heads} heads of {}, {direction:?}", 2 * half),
                &y,
                |at| {
                    let (head, i) = (at / (2 * half), at % (2 * half));
                    let angle = sign * f64::from(positions[head / heads] as f32 * inv_freq[i % half]);
                    let pair = &x[head * 2 * half..][..2 * half];
                    let (a, b) = (f64::from(pair[i % half]), f64::from(pair[i % half + half]));
                    let (first, second) = if i < half { (a, -b) } else { (b, a) };
                    Sum::of(first * angle.cos()) + Sum::of(second * angle.sin())
                },
            );
        }
        let mut y = x;
        trial.time(bytes(2 * y.len()), || rope(&mut y, heads, &angles, Direction::Forward));
    }
}

/// An activation and its slope.
fn activated(activation: Activation, x: f64) -> (f64, f64) {
    match activation {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let inner = root * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
        }
    }
}

const ACTIVATIONS: [Activation; 2] = [Activation::GeluTanh, Activation::Silu];

/// Gates from -5 to 5, where activations bend.
fn gates(len: usize) -> Vec<f32> {
    values(len, 1).into_iter().map(|x| 5.0 * x).collect()
}

pub(super) fn activation(trial: &mut Trial) {
    for len in LENGTHS {
        let (gate, up, mut out) = (gates(len), values(len, 2), vec![f32::NAN; len]);
        for activation in ACTIVATIONS {
            gated(&gate, &up, activation, &mut out);
            trial.compare(&format!("{len} elements, {activation:?}"), &out, |i| {
                Sum::of(f64::from(up[i]) * activated(activation, f64::from(gate[i])).0)
            });
            trial.time(bytes(3 * len), || gated(&gate, &up, activation, &mut out));
        }
    }
}

pub(super) fn activation_backward(trial: &mut Trial) {
    for len in LENGTHS {
        let (gate, up, dout) = (gates(len), values(len, 2), values(len, 3));
        let (mut dgate, mut dup) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        for activation in ACTIVATIONS {
            gated_backward(&gate, &up, &dout, activation, &mut dgate, &mut dup);
            let of = |i: usize| (f64::from(dout[i]), activated(activation, f64::from(gate[i])));
            trial.compare(&format!("{len} elements, {activation:?}, gate"), &dgate, |i| {
                let (dout, (_, slope)) = of(i);
                Sum::of(dout * f64::from(up[i]) * slope)
            });
            trial.compare(&format!("{len} elements, {activation:?}, up"), &dup, |i| {
                let (dout, (value, _)) = of(i);
                Sum::of(dout * value)
            });
            trial.time(bytes(5 * len), || {
                gated_backward(&gate, &up, &dout, activation, &mut dgate, &mut dup);
            });
        }
    }
}

pub(super) fn sums(trial: &mut Trial) {
    for len in LENGTHS {
        let (a, b, mut y) = (values(len, 1), values(len, 2), vec![f32::NAN; len]);
        let expected = |i: usize| Sum::of(f64::from(a[i])) + Sum::of(f64::from(b[i]));
        sum(&a, &b, &mut y);
        trial.compare(&format!("{len} elements, sum"), &y, expected);
        y.copy_from_slice(&a);
        add_into(&b, &mut y);
        trial.compare(&format!("{len} elements, added"), &y, expected);
        trial.time(bytes(3 * len), || sum(&a, &b, &mut y));
    }
}

pub(super) fn losses(trial: &mut Trial) {
    for (m, vocabulary) in [(1, 1), (3, 17), (2, 33), (5, 1000), (4, 49_152)] {
        let x: Vec<f32> = values(m * vocabulary, 1).into_iter().map(|x| 8.0 * x).collect();
        let targets: Vec<u32> = (0..m).map(|i| (i * 7 % vocabulary) as u32).collect();
        let mut losses = vec![f32::NAN; m];
        for softcap in [None, Some(3.0_f32)] {
            let what = format!("{m} rows of {vocabulary}, softcap {softcap:?}");
            let capped = |x: f32| {
                softcap.map_or(f64::from(x), |cap| f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh())
            };
            let totals: Vec<f64> =
                x.chunks(vocabulary).map(|row| row.iter().map(|&x| capped(x).exp()).sum()).collect();
            let loss = |row: usize| totals[row].ln() - capped(x[row * vocabulary + targets[row] as usize]);
            let mut logits = x.clone();
            cross_entropy_chunk(&mut logits, &targets, softcap, 0.5, &mut losses);
            trial.compare(&format!("{what}, losses"), &losses, |row| Sum::of(loss(row)));
            trial.compare(&format!("{what}, gradient"), &logits, |at| {
                let (row, token) = (at / vocabulary, at % vocabulary);
                let onehot = if token == targets[row] as usize { 1.0 } else { 0.0 };
                let slope = softcap.map_or(1.0, |cap| 1.0 - (capped(x[at]) / f64::from(cap)).powi(2));
                Sum::of(0.5 * (capped(x[at]).exp() / totals[row] - onehot) * slope)
            });
            let scores: Vec<f32> = (0..m)
                .map(|row| log_softmax_at(&x[row * vocabulary..][..vocabulary], targets[row], softcap))
                .collect();
            trial.compare(&format!("{what}, scores"), &scores, |row| Sum::of(-loss(row)));
            if let Some(cap) = softcap {
                let mut logits = x.clone();
                cap_logits(&mut logits, cap);
                trial.compare(&format!("{what}, capped"), &logits, |at| Sum::of(capped(x[at])));
            }
        }
        let mut logits = x;
        trial.time(bytes(2 * logits.len()), || {
            cross_entropy_chunk(&mut logits, &targets, None, 0.5, &mut losses);
        });
    }
}

/// Each token's share of 0 .. 1 as [`sample`] documents it, by sorting: where it begins and ends; `None` if it is not kept.
fn shares(logits: &[f32], Sampling { temperature, top_p, .. }: Sampling) -> Vec<Option<(f64, f64)>> {
    let weights: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let (mut kept, mut mass) = (vec![false; logits.len()], 0.0);
    for id in order {
        kept[id] = true;
        mass += weights[id];
        if mass >= f64::from(top_p) * total {
            break;
        }
    }
    let mut end = 0.0;
    let share = |(weight, kept): (&f64, bool)| {
        kept.then(|| {
            end += weight / mass;
            (end - weight / mass, end)
        })
    };
    weights.iter().zip(kept).map(share).collect()
}

pub(super) fn choices(trial: &mut Trial) {
    for len in [1, 2, 17, 1000, 49_152] {
        let logits: Vec<f32> = values(len, 3).into_iter().map(|x| 10.0 * x).collect();
        let greatest = (0..len).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        for chosen in
            [argmax(&logits), sample(&logits, Sampling { temperature: 0.0, ..Sampling::default() }, 0.9)]
        {
            let error = if chosen as usize == greatest { 0.0 } else { f64::INFINITY };
            trial.record(error, || format!("{len} logits: {chosen} instead of {greatest}"));
        }
        for (temperature, top_p) in [(1.0, 0.98), (0.7, 0.5), (2.0, 0.9), (1.0, 1.0)] {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            let shares = shares(&logits, sampling);
            for i in 0..40 {
                let uniform = (i as f32 + 0.5) / 40.0;
                let id = sample(&logits, sampling, uniform);
                let at = f64::from(uniform);
                let error = shares
                    .get(id as usize)
                    .copied()
                    .flatten()
                    .map_or(f64::INFINITY, |(start, end)| (start - at).max(at - end).max(0.0));
                trial.record(error, || format!("{len} logits, {sampling:?}, {uniform}: token {id}"));
            }
        }
        trial.time(bytes(len), || {
            std::hint::black_box(sample(&logits, Sampling { top_p: 0.98, ..Sampling::default() }, 0.5));
        });
    }
}

pub(super) fn step(trial: &mut Trial) {
    for len in LENGTHS {
        for (step, weight_decay) in [(1, 0.0), (100, 0.1)] {
            let settings = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, step };
            let start = (values(len, 1), values(len, 2), values(len, 3));
            let grad = values(len, 4);
            let (mut p, mut m) = (start.0.clone(), start.1.clone());
            // Means of squares are positive; well away from 0, or a quotient of nothing would be compared.
            let squares: Vec<f32> = start.2.iter().map(|x| x * x + 0.1).collect();
            let mut v = squares.clone();
            adamw(&mut p, &grad, &mut m, &mut v, settings);
            let means = |i: usize| {
                let (g, beta1, beta2) =
                    (f64::from(grad[i]), f64::from(settings.beta1), f64::from(settings.beta2));
                let m = f64::from(start.1[i]) * beta1 + g * (1.0 - beta1);
                (m, f64::from(squares[i]) * beta2 + g * g * (1.0 - beta2))
            };
            let what = format!("{len} parameters, step {step}");
            trial.compare(&format!("{what}, mean"), &m, |i| Sum::of(means(i).0));
            trial.compare(&format!("{what}, mean of squares"), &v, |i| Sum::of(means(i).1));
            trial.compare(&what, &p, |i| {
                let (m, v) = means(i);
                let correction = |beta: f32| 1.0 - f64::from(beta).powi(step as i32);
                let (lr, eps) = (f64::from(settings.lr), f64::from(settings.eps));
                let kept = f64::from(start.0[i]) * (1.0 - lr * f64::from(weight_decay));
                let root = (v / correction(settings.beta2)).sqrt() + eps;
                Sum::of(kept) + Sum::of(-lr * m / correction(settings.beta1) / root)
            });
            trial.time(bytes(7 * len), || adamw(&mut p, &grad, &mut m, &mut v, settings));
        }
    }
}
