//! Every kernel with its operands laid against pages that must not be touched: a read or write out of bounds ends the
//! test with a signal. Slices end exactly at a page (so begin unaligned) or begin exactly at one.
#![cfg(target_os = "linux")]

use std::ops::{Deref, DerefMut};

use mixse_kernels::*;

/// A slice with an untouchable page on either side.
struct Guarded {
    map: *mut libc::c_void,
    map_len: usize,
    start: *mut f32,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Against {
    Start,
    End,
}

impl Guarded {
    fn new(values: &[f32], against: Against) -> Self {
        const PAGE: usize = 4096;
        let inner = (4 * values.len()).next_multiple_of(PAGE).max(PAGE);
        let map_len = inner + 2 * PAGE;
        // SAFETY: a fresh private map, made accessible but for its first and last page.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), map_len, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let begin = map.cast::<u8>().add(PAGE);
            assert_eq!(libc::mprotect(begin.cast(), inner, libc::PROT_READ | libc::PROT_WRITE), 0);
            let start = match against {
                Against::Start => begin.cast::<f32>(),
                Against::End => begin.add(inner - 4 * values.len()).cast::<f32>(),
            };
            start.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Self { map, map_len, start, len: values.len() }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the map of `new`.
        unsafe { libc::munmap(self.map, self.map_len) };
    }
}

impl Deref for Guarded {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: inside the map.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: inside the map, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Runs `test` with each instruction set and both placements, giving it a maker of guarded slices of a length.
fn guarded(test: impl Fn(&dyn Fn(usize) -> Guarded)) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        eprintln!("{isa}");
        for against in [Against::Start, Against::End] {
            isa::with(isa, || test(&|len| Guarded::new(&values(len), against)));
        }
    }
}

const SIZES: [usize; 8] = [1, 2, 7, 15, 16, 17, 33, 70];

#[test]
fn products() {
    guarded(|slice| {
        for m in [1, 3, 8, 15, 29] {
            for n in SIZES {
                for k in [1, 15, 33, 64] {
                    for storage in [Storage::F32, Storage::Bf16, Storage::Int8, Storage::Q4] {
                        let w = Packed::pack(&slice(n * k), n, k, storage);
                        matmul(&slice(m * k), m, &w, &mut slice(m * n), Accumulate::Overwrite);
                        matmul_transposed(&slice(m * n), m, &w, &mut slice(m * k), Accumulate::Add);
                        w.row(n - 1, &mut slice(k));
                    }
                    let (a, b, mut c) = (slice(m * k), slice(k * n), slice(m * n));
                    gemm((m, n, k), View::rows(&a, k), &b, n, &mut c, n, Accumulate::Overwrite);
                    gemm((m, n, k), View::transposed(&a, m), &b, n, &mut c, n, Accumulate::Add);
                }
            }
        }
    });
}

#[test]
fn experts() {
    guarded(|slice| {
        for (k, n) in [(1, 1), (15, 33), (64, 17), (33, 70)] {
            for ranks in [vec![1], vec![8, 3], vec![16, 0, 9]] {
                let ranks = Ranks::new(ranks.into_iter().map(|rank| (rank, 2.0)));
                let (r, experts) = (ranks.total(), ranks.experts());
                for m in [1, 5, 17] {
                    let (a, bt, x, dy) = (slice(r * k), slice(r * n), slice(m * k), slice(m * n));
                    let (mut u, mut y) = (slice(m * r), slice(m * n));
                    let lora = Lora { k, n, a: &a, bt: &bt, ranks: &ranks };
                    let gate = slice(m * experts);
                    for gate in [None, Some(&gate[..])] {
                        lora_forward(lora, &x, m, gate, Coverage::All, &mut u, &mut y);
                        let gradients = LoraGradients {
                            dx: Some(&mut slice(m * k)),
                            da: Some(&mut slice(r * k)),
                            dbt: Some(&mut slice(r * n)),
                            dgate: Some(&mut slice(m * experts)),
                        };
                        lora_backward(lora, &x, &u, &dy, m, gate, Coverage::All, gradients);
                    }
                }
            }
        }
    });
}

#[test]
fn attentions() {
    guarded(|slice| {
        for (heads, kv_heads, head_dim, window) in
            [(1, 1, 1, None), (3, 1, 17, None), (4, 2, 16, Some(9)), (3, 1, 32, None), (2, 2, 32, Some(9))]
        {
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale: 0.5,
                window,
                softcap: None,
                bf16: head_dim == 32,
            };
            for len in [1, 15, 65, 100] {
                let (q, kv) = (len * heads * head_dim, len * kv_heads * head_dim);
                let (queries, keys, vals) = (slice(q), slice(kv), slice(kv));
                let (mut out, mut lse) = (slice(q), slice(len * heads));
                let segments = [Segment { start: 0, len }];
                attention((&queries, &keys, &vals), &segments, shape, &mut out, &mut lse);
                let gradients =
                    AttentionGradients { dq: &mut slice(q), dk: &mut slice(kv), dv: &mut slice(kv) };
                attention_backward(
                    (&queries, &keys, &vals),
                    (&out, &queries, &lse),
                    &segments,
                    shape,
                    gradients,
                );
                let pages: Vec<u32> = (0..len as u32).collect();
                let new = [PagedSegment { q_start: 0, q_len: len, kv_len: len, pages: &pages }];
                let (mut k, mut v) = (slice(kv), slice(kv));
                let mut pool = KvPoolMut { k: &mut k, v: &mut v, page_tokens: 1, storage: KvStorage::F32 };
                store_paged((&keys, &vals), &new, &mut pool, shape);
                attention_paged(&queries, &new, pool.shared(), shape, &mut out);
                // Pages of whole tiles, which may be pairs of bf16.
                let storage = shape.kv_storage();
                let pages: Vec<u32> = (0..len.div_ceil(64) as u32).collect();
                let size = pages.len() * shape.page_len(64, storage);
                let (mut tiles_k, mut tiles_v) = (slice(size), slice(size));
                let new_tiles = [PagedSegment { pages: &pages, ..new[0] }];
                let mut tiles = KvPoolMut { k: &mut tiles_k, v: &mut tiles_v, page_tokens: 64, storage };
                store_paged((&keys, &vals), &new_tiles, &mut tiles, shape);
                attention_paged(&queries, &new_tiles, tiles.shared(), shape, &mut out);
                // One page that ends with the sequence.
                let new = [PagedSegment { pages: &[0], ..new[0] }];
                pool.page_tokens = len;
                store_paged((&keys, &vals), &new, &mut pool, shape);
                attention_paged(&queries, &new, pool.shared(), shape, &mut out);
            }
            // One query of a sequence of two spans, which may be tasks of their own.
            let (len, query) = (530, heads * head_dim);
            let (k, v) = (slice(len * kv_heads * head_dim), slice(len * kv_heads * head_dim));
            let new = [PagedSegment { q_start: 0, q_len: 1, kv_len: len, pages: &[0] }];
            let pool = KvPool { k: &k, v: &v, page_tokens: len, storage: KvStorage::F32 };
            let shape = AttentionShape { bf16: false, ..shape };
            attention_paged(&slice(query), &new, pool, shape, &mut slice(query));
        }
    });
}

#[test]
fn row_and_element_operations() {
    guarded(|slice| {
        for d in SIZES {
            for m in [1, 3, 17] {
                let (x, weight, mut y) = (slice(m * d), slice(d), slice(m * d));
                let norm = RmsNorm { weight: &weight, eps: 1e-5, plus_one: false };
                rms_norm(&x, m, norm, &mut y);
                rms_norm_backward(&x, &y, m, norm, &mut slice(m * d));
                for activation in [Activation::Silu, Activation::GeluTanh] {
                    gated(&x, &y, activation, &mut slice(m * d));
                    gated_backward(&x, &y, &x, activation, &mut slice(m * d), &mut slice(m * d));
                }
                add_into(&x, &mut y);
                sum(&x, &x, &mut y);
                let angles = Angles::new(&vec![3; m], &slice(d));
                rope(&mut slice(m * 2 * d * 2), 2, &angles, Direction::Forward);
                for softcap in [None, Some(2.0)] {
                    cross_entropy_chunk(&mut slice(m * d), &vec![0; m], softcap, 1.0, &mut slice(m));
                    log_softmax_at(&x[..d], d as u32 - 1, softcap);
                }
                sample(&x, Sampling { top_p: 0.9, ..Sampling::default() }, 0.5);
                argmax(&x);
                cap_logits(&mut y, 3.0);
                let settings =
                    AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
                adamw(&mut slice(m * d), &x, &mut slice(m * d), &mut slice(m * d), settings);
            }
        }
    });
}
