//! The kernels on the shapes of SmolLM2-135M, for the example that prints speeds and for the benchmarks.

use mixse_kernels::*;

fn values(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Gives every kernel whose name contains `filter` to `report`: its name, its operations, the bytes that it must read or
/// write (0 where that says nothing), and a run of it.
pub(crate) fn each(filter: &str, mut report: impl FnMut(&str, f64, f64, &mut dyn FnMut())) {
    let mut report = |name: &str, flops: f64, bytes: f64, run: &mut dyn FnMut()| {
        if name.contains(filter) {
            report(name, flops, bytes, run);
        }
    };
    products(filter, &mut report);
    attentions(&mut report);
    experts(&mut report);
    rows(&mut report);
    vocabularies(&mut report);
}

type Report<'a> = dyn FnMut(&str, f64, f64, &mut dyn FnMut()) + 'a;

fn products(filter: &str, report: &mut Report<'_>) {
    let float = [Storage::F32, Storage::Bf16, Storage::Int8, Storage::Q4].map(|storage| (storage, false));
    for (storage, integers) in float.into_iter().chain([(Storage::Int8, true), (Storage::Q4, true)]) {
        let kind = format!("{storage:?}{}", if integers { " integers" } else { "" });
        for (k, n) in [(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152)] {
            let copies = ((64 << 20) / (n * k * 2)).clamp(1, 64);
            let w: Vec<Packed> = {
                let dense = values(n * k);
                let used = filter.is_empty() || filter.contains(&kind);
                let pack = || {
                    let packed = Packed::pack(&dense, n, k, storage);
                    if integers { packed.rounding_activations() } else { packed }
                };
                (0..copies).filter(|_| used).map(|_| pack()).collect()
            };
            if w.is_empty() {
                continue;
            }
            for m in [1, 4, 16, 64, 256, 2048] {
                if m * n > 16 << 20 {
                    continue;
                }
                let x = values(m * k);
                let mut y = vec![0.0; m * n];
                let mut at = 0;
                let flops = 2.0 * (m * n * k) as f64;
                let bytes = w[0].bytes() as f64;
                report(&format!("matmul {kind} {m}x{k}x{n}"), flops, bytes, &mut || {
                    at = (at + 1) % copies;
                    matmul(&x, m, &w[at], &mut y, Accumulate::Overwrite);
                });
                if m >= 64 && storage == Storage::Bf16 {
                    let mut dx = vec![0.0; m * k];
                    report(&format!("transposed {storage:?} {m}x{k}x{n}"), flops, bytes, &mut || {
                        at = (at + 1) % copies;
                        matmul_transposed(&y, m, &w[at], &mut dx, Accumulate::Overwrite);
                    });
                }
            }
        }
    }
}

fn attentions(report: &mut Report<'_>) {
    for (m, len, heads, kv_heads, dim) in [(8, 512, 9, 3, 64), (8, 256, 9, 3, 64)] {
        let t = m * len;
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim: dim,
            scale: 0.125,
            window: None,
            softcap: None,
            bf16: true,
        };
        let (q, k, v) = (values(t * heads * dim), values(t * kv_heads * dim), values(t * kv_heads * dim));
        let segments: Vec<Segment> = (0..m).map(|i| Segment { start: i * len, len }).collect();
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
        let flops = (m * len * len * heads * dim * 2) as f64;
        report(&format!("attention {m}x{len}"), flops, 0.0, &mut || {
            attention((&q, &k, &v), &segments, shape, &mut out, &mut lse);
        });
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        report(&format!("attention backward {m}x{len}"), 2.5 * flops, 0.0, &mut || {
            let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            attention_backward((&q, &k, &v), (&out, &q, &lse), &segments, shape, gradients);
        });
    }
    // Of so many tokens so many in pages that all rows share.
    for (rows, len, shared) in
        [(64, 128, 0), (1, 128, 0), (1, 4096, 0), (16, 1152, 0), (16, 1152, 1024), (64, 1152, 1024)]
    {
        let shape = AttentionShape {
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            scale: 0.125,
            window: None,
            softcap: None,
            bf16: true,
        };
        let pages_each = len / 64;
        // The bits of f32 values are fine numbers as pairs of bf16 too, once their lower halves are cleared.
        let clear = |values: Vec<f32>| {
            values.into_iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect()
        };
        let (k, v): (Vec<f32>, Vec<f32>) = (clear(values(rows * len * 192)), clear(values(rows * len * 192)));
        let pages: Vec<Vec<u32>> = (0..rows)
            .map(|r| {
                (0..pages_each).map(|p| if p < shared / 64 { p } else { r * pages_each + p } as u32).collect()
            })
            .collect();
        let segments: Vec<PagedSegment> =
            (0..rows).map(|r| PagedSegment { q_start: r, q_len: 1, kv_len: len, pages: &pages[r] }).collect();
        let q = values(rows * 576);
        let mut out = q.clone();
        let pool = KvPool { k: &k, v: &v, page_tokens: 64, storage: shape.kv_storage() };
        let flops = (4 * rows * len * 576) as f64;
        report(
            &format!("attention paged {rows} rows of {len}, {shared} shared"),
            flops,
            ((rows * (len - shared) + shared) * 192 * 8) as f64,
            &mut || {
                attention_paged(&q, &segments, pool, shape, &mut out);
            },
        );
    }
}

fn experts(report: &mut Report<'_>) {
    for (experts, m) in [(1, 1), (4, 1), (32, 1), (1, 64), (4, 64), (32, 64), (1, 2048), (4, 2048)] {
        let ranks = Ranks::new((0..experts).map(|_| (8, 2.0)));
        let (k, n, r) = (576, 1536, ranks.total());
        let (a, bt, x) = (values(r * k), values(r * n), values(m * k));
        let gate: Vec<f32> = (0..m * experts)
            .map(|i| if i % experts == (i / experts) % experts { 0.9 } else { 0.0 })
            .collect();
        let (mut u, mut y) = (vec![0.0; m * r], vec![0.0; m * n]);
        let lora = Lora { k, n, a: &a, bt: &bt, ranks: &ranks };
        let gate = (experts > 1).then_some(&gate[..]);
        let flops = (2 * m * 8 * (n + k)) as f64;
        report(&format!("lora {experts} experts {m}x{k}x{n}"), flops, 0.0, &mut || {
            lora_forward(lora, &x, m, gate, Coverage::Selected, &mut u, &mut y);
        });
        if m == 2048 {
            let (mut dx, mut da, mut dbt) = (x.clone(), a.clone(), bt.clone());
            report(&format!("lora backward {experts} experts {m}x{k}x{n}"), 2.0 * flops, 0.0, &mut || {
                let gradients =
                    LoraGradients { dx: Some(&mut dx), da: Some(&mut da), dbt: Some(&mut dbt), dgate: None };
                lora_backward(lora, &x, &u, &y, m, gate, Coverage::Selected, gradients);
            });
        }
    }
}

fn rows(report: &mut Report<'_>) {
    for m in [1, 64, 2048] {
        let (d, mlp) = (576, 1536);
        let (x, weight) = (values(m * d), values(d));
        let mut y = x.clone();
        report(&format!("rms_norm {m}"), 0.0, (8 * m * d) as f64, &mut || {
            rms_norm(&x, m, RmsNorm { weight: &weight, eps: 1e-5, plus_one: false }, &mut y);
        });
        let (gate, up) = (values(m * mlp), values(m * mlp));
        let mut out = gate.clone();
        report(&format!("gated {m}"), 0.0, (12 * m * mlp) as f64, &mut || {
            gated(&gate, &up, Activation::Silu, &mut out);
        });
        let positions: Vec<u32> = (0..m as u32).collect();
        let angles = Angles::new(&positions, &values(32));
        report(&format!("rope {m}"), 0.0, (8 * m * d) as f64, &mut || {
            rope(&mut y, 9, &angles, Direction::Forward);
        });
    }
}

fn vocabularies(report: &mut Report<'_>) {
    let vocabulary = 49152;
    let logits = values(64 * vocabulary);
    let mut work = logits.clone();
    let targets: Vec<u32> = (0..64).collect();
    let mut losses = vec![0.0; 64];
    report("cross entropy 64 rows", 0.0, (8 * 64 * vocabulary) as f64, &mut || {
        cross_entropy_chunk(&mut work, &targets, None, 1.0, &mut losses);
    });
    report("sample 1 row", 0.0, (4 * vocabulary) as f64, &mut || {
        std::hint::black_box(sample(
            &logits[..vocabulary],
            Sampling { top_p: 0.98, ..Sampling::default() },
            0.5,
        ));
    });
    report("argmax 1 row", 0.0, (4 * vocabulary) as f64, &mut || {
        std::hint::black_box(argmax(&logits[..vocabulary]));
    });
}
