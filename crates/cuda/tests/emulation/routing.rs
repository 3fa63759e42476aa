//! Gates, what they do to adapters, and dropout.

use crate::harness::{Arg::*, blocks, dot, gradient, launch, near, skipped, values, wide};

fn softmax(z: &[f64]) -> Vec<f64> {
    let sum: f64 = z.iter().map(|z| z.exp()).sum();
    z.iter().map(|z| z.exp() / sum).collect()
}

/// Gates of one row; with `through`, what the straight-through gradient takes for the gates.
fn gates(z: &[f64], experts: usize, top_k: usize, scale: i32, through: bool) -> Vec<f64> {
    let p = softmax(z);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    let kept: f64 = order[..top_k].iter().map(|&i| p[i]).sum();
    let mut gates = vec![0.0; p.len()];
    for &i in &order[..top_k] {
        gates[i] = match scale {
            1 => p[i] / kept,
            2 if !through => 1.0,
            _ => p[i],
        };
    }
    gates.truncate(experts);
    gates
}

#[test]
fn gates_of_every_scale_and_their_gradients() {
    if skipped() {
        return;
    }
    for (rows, choices, experts, top_k) in [(1, 1, 1, 1), (130, 4, 4, 1), (5, 5, 4, 3), (3, 8, 8, 8)] {
        for scale in 0..3 {
            let (mut z, dg) = (values(rows * choices, 1), values(rows * experts, 2));
            if choices == 4 {
                z[..4].copy_from_slice(&[0.5, 0.9, 0.9, 0.1]); // equals: the lower index is kept
            }
            let all = |z: &[f64], through| -> Vec<f64> {
                z.chunks(choices).flat_map(|z| gates(z, experts, top_k, scale, through)).collect()
            };
            let (mut p, mut g) = (vec![0.0; z.len()], vec![0.0; dg.len()]);
            let sizes = || {
                [rows, choices, experts, top_k].map(|size| Int(size as i32)).into_iter().chain([Int(scale)])
            };
            let args = [In(&z)].into_iter().chain(sizes()).chain([Out(&mut p), Out(&mut g)]).collect();
            launch("router_gates", [blocks(rows), 1], args);
            near(
                "probabilities",
                &p,
                &z.chunks(choices).flat_map(|z| softmax(&wide(z))).collect::<Vec<_>>(),
                1e-6,
            );
            near("gates", &g, &all(&wide(&z), false), 1e-6);
            let mut dz = vec![7.0; z.len()];
            let args = [In(&p), In(&dg)].into_iter().chain(sizes()).chain([Out(&mut dz)]).collect();
            launch("router_gates_backward", [blocks(rows), 1], args);
            // At the equal pair a difference quotient would change sides.
            let skip = if choices == 4 { choices } else { 0 };
            near("dz", &dz[skip..], &gradient(&z, |z| dot(&all(z, true), &dg))[skip..], 1e-5);
        }
    }
}

#[test]
fn gates_and_scaling_of_adapters() {
    if skipped() {
        return;
    }
    let (rows, experts) = (7, 3);
    let (owner, scale) = ([0, 0, 2, 2, 2, 1], [2.0, 2.0, 0.5, 0.5, 0.5, 1.0]);
    let rank = owner.len();
    let (u, dv, g) = (values(rows * rank, 3), values(rows * rank, 4), values(rows * experts, 5));
    let f = |g: &[f64]| -> Vec<f64> {
        (0..rows * rank)
            .map(|at| {
                let r = at % rank;
                g[at / rank * experts + owner[r] as usize] * f64::from(scale[r]) * f64::from(u[at])
            })
            .collect()
    };
    for gates in [Some(&g), None] {
        let mut v = vec![0.0; rows * rank];
        let gate = gates.map_or(Null, |g| In(g));
        let sizes = [Int(experts as i32), Int(rank as i32), Long((rows * rank) as u64)];
        let args =
            [In(&u), gate, Ids(&owner), In(&scale)].into_iter().chain(sizes).chain([Out(&mut v)]).collect();
        launch("lora_scale", [blocks(rows * rank), 1], args);
        near("lora_scale", &v, &f(&gates.map_or(vec![1.0; g.len()], |g| wide(g))), 1e-6);
    }
    let mut dg = vec![1.0; g.len()];
    let sizes = [Int(experts as i32), Int(rank as i32), Long(dg.len() as u64)];
    let args =
        [In(&u), In(&dv), Ids(&owner), In(&scale)].into_iter().chain(sizes).chain([Out(&mut dg)]).collect();
    launch("lora_gate_backward", [blocks(g.len()), 1], args);
    let expected: Vec<f64> = gradient(&g, |g| dot(&f(g), &dv)).iter().map(|d| d + 1.0).collect();
    near("dgates", &dg, &expected, 1e-5);
}

/// SplitMix64's finaliser over each coordinate, as the processor's dropout has it.
fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    let mix = |x: u64| {
        let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    mix(mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(stream)).wrapping_add(index))
}

#[test]
fn dropout_by_the_counter() {
    if skipped() {
        return;
    }
    let (k, keys, threshold) = (131, [3, u64::MAX, 1 << 40], 20_000_u32);
    let x = values(3 * k, 6);
    for add in [false, true] {
        let mut y = vec![1.0; x.len()];
        let sizes = [Long(17), Unsigned(threshold), Int(k as i32), Int(i32::from(add))];
        launch(
            "dropout",
            [3, 1],
            [In(&x), Keys(&keys)].into_iter().chain(sizes).chain([Out(&mut y)]).collect(),
        );
        let expected: Vec<f64> = (0..x.len())
            .map(|at| {
                let drawn = bits(keys[at / k], 17, (at % k / 4) as u64) >> (16 * (at % k % 4)) & 0xffff;
                let kept = f64::from(65_536.0_f32 / (65_536 - threshold) as f32);
                let thinned = if drawn < u64::from(threshold) { 0.0 } else { f64::from(x[at]) * kept };
                thinned + f64::from(u8::from(add))
            })
            .collect();
        near("dropout", &y, &expected, 1e-6);
    }
}
