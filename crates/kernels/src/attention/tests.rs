use half::bf16;

use super::*;
use crate::isa::Isa;
use crate::pool;
use crate::testing::{assert_near, each_isa, finite_difference, values};

struct Case {
    shape: AttentionShape,
    lengths: Vec<usize>,
}

impl Case {
    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn segments(&self) -> Vec<Segment> {
        let mut start = 0;
        let segment = |&len: &usize| {
            start += len;
            Segment { start: start - len, len }
        };
        self.lengths.iter().map(segment).collect()
    }

    fn operands(&self) -> [Vec<f32>; 4] {
        let (tokens, shape) = (self.tokens(), &self.shape);
        let (q, kv) = (tokens * shape.q_width(), tokens * shape.kv_width());
        let mut operands = [values(q, 1), values(kv, 2), values(kv, 3), values(q, 4)];
        if shape.bf16 {
            // So that rounding changes nothing, and what is left is the weights'.
            operands.iter_mut().flatten().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        operands
    }

    /// How far results may be from exact ones: weights of a softmax are rounded to 2⁻⁹ of themselves.
    fn tolerance(&self, isa: Isa) -> f32 {
        if self.shape.bf16 && isa == Isa::Amx { 4e-3 } else { 2e-5 }
    }
}

fn case(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    lengths: &[usize],
) -> Case {
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 1.5, window, softcap, bf16: false };
    Case { shape, lengths: lengths.to_vec() }
}

/// The same, where operands may be rounded.
fn rounded(case: Case) -> Case {
    Case { shape: AttentionShape { bf16: true, ..case.shape }, ..case }
}

/// Sequences of several spans.
fn long_cases() -> Vec<Case> {
    vec![
        case(2, 1, 8, None, None, &[SPAN * TILE + 1, 3, 1100]),
        case(3, 3, 4, Some(600), None, &[1300]),
        case(2, 2, 4, Some(9), Some(2.0), &[SPAN * TILE + 5]),
        rounded(case(2, 1, 32, None, None, &[SPAN * TILE + 1, 700])),
    ]
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 1, None, None, &[1]),
        case(3, 1, 16, None, None, &[5, 0, 1, 33]),
        case(4, 2, 8, None, None, &[70, 3]),
        case(2, 2, 17, Some(5), None, &[31, 64]),
        case(2, 1, 33, Some(70), Some(2.0), &[150]),
        case(2, 1, 12, Some(1), None, &[66]),
        rounded(case(1, 1, 32, None, None, &[1, 2])),
        rounded(case(3, 1, 64, None, None, &[5, 0, 1, 33, 97])),
        rounded(case(9, 3, 32, Some(40), None, &[150])),
        rounded(case(2, 2, 96, Some(5), Some(2.0), &[31, 64])),
        rounded(case(5, 1, 32, Some(1), None, &[66])),
    ]
}

/// In f64, one query at a time.
fn reference(case: &Case, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let shape = &case.shape;
    let dim = shape.head_dim;
    let mut out = vec![0.0; q.len()];
    for segment in case.segments() {
        for i in 0..segment.len {
            for head in 0..shape.heads {
                let query = &q[((segment.start + i) * shape.heads + head) * dim..][..dim];
                let row = |j: usize| ((segment.start + j) * shape.kv_heads + head / shape.group()) * dim;
                let seen: Vec<usize> = shape.visible(i).collect();
                let weights: Vec<f64> = seen
                    .iter()
                    .map(|&j| {
                        let dot: f64 = query
                            .iter()
                            .zip(&k[row(j)..][..dim])
                            .map(|(&q, &k)| f64::from(q) * f64::from(k))
                            .sum();
                        let score = dot * f64::from(shape.scale);
                        shape
                            .softcap
                            .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                            .exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                let out = &mut out[((segment.start + i) * shape.heads + head) * dim..][..dim];
                for (&j, weight) in seen.iter().zip(weights) {
                    for (out, &v) in out.iter_mut().zip(&v[row(j)..][..dim]) {
                        *out += weight / total * f64::from(v);
                    }
                }
            }
        }
    }
    out
}

fn forward(case: &Case, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; case.tokens() * case.shape.heads]);
    attention((q, k, v), &case.segments(), case.shape, &mut out, &mut lse);
    (out, lse)
}

#[test]
fn forward_and_gradients() {
    for case in cases() {
        let [q, k, v, dout] = case.operands();
        each_isa(|isa| {
            let (out, lse) = forward(&case, &q, &k, &v);
            let expected: Vec<f32> = reference(&case, &q, &k, &v).into_iter().map(|x| x as f32).collect();
            assert_near(&out, &expected, case.tolerance(isa), &format!("{isa} {:?}", case.shape));
            let (mut dq, mut dk, mut dv) =
                (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
            let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            attention_backward((&q, &k, &v), (&out, &dout, &lse), &case.segments(), case.shape, gradients);
            let total = |q: &[f32], k: &[f32], v: &[f32]| -> f64 {
                reference(&case, q, k, v).iter().zip(&dout).map(|(out, &dout)| out * f64::from(dout)).sum()
            };
            let near = if case.tolerance(isa) > 1e-3 { 3e-2 } else { 1e-2 };
            finite_difference(&q, &dq, near, |q| total(q, &k, &v));
            finite_difference(&k, &dk, near, |k| total(&q, k, &v));
            finite_difference(&v, &dv, near, |v| total(&q, &k, v));
        });
    }
}

#[test]
fn spans_are_joined() {
    for case in long_cases() {
        let [q, k, v, _] = case.operands();
        let expected: Vec<f32> = reference(&case, &q, &k, &v).into_iter().map(|x| x as f32).collect();
        each_isa(|isa| {
            let (out, _) = forward(&case, &q, &k, &v);
            assert_near(&out, &expected, case.tolerance(isa), &format!("{isa} {:?}", case.shape));
        });
    }
}

#[test]
fn pages_chunks_and_threads_give_the_same_bits() {
    for case in cases().into_iter().chain(long_cases()) {
        let [q, k, v, _] = case.operands();
        let shape = case.shape;
        let q_width = shape.q_width();
        each_isa(|isa| {
            let (whole, _) = forward(&case, &q, &k, &v);
            let storage = shape.kv_storage();
            for page_tokens in page_sizes(storage, [4, 16, 100]) {
                // Pages in reverse order, so that neighbours in a sequence are not neighbours in memory.
                let total: usize = case.lengths.iter().map(|len| len.div_ceil(page_tokens)).sum();
                // Whatever was in a page before must not matter.
                let mut pool_k = vec![f32::NAN; total * shape.page_len(page_tokens, storage)];
                let mut pool_v = pool_k.clone();
                let mut free = (0..total as u32).rev();
                let tables: Vec<Vec<u32>> = case
                    .segments()
                    .iter()
                    .map(|segment| {
                        let pages: Vec<u32> = free.by_ref().take(segment.len.div_ceil(page_tokens)).collect();
                        let new = PagedSegment {
                            q_start: segment.start,
                            q_len: segment.len,
                            kv_len: segment.len,
                            pages: &pages,
                        };
                        let mut pool = KvPoolMut { k: &mut pool_k, v: &mut pool_v, page_tokens, storage };
                        store_paged((&k, &v), &[new], &mut pool, shape);
                        pages
                    })
                    .collect();
                let pool = KvPool { k: &pool_k, v: &pool_v, page_tokens, storage };
                for (chunk, threads) in [(1, 1), (7, 3), (1000, 2), (1, 3)] {
                    pool::set_threads(threads);
                    for (segment, pages) in case.segments().iter().zip(&tables) {
                        for first in (0..segment.len).step_by(chunk) {
                            let last = (first + chunk).min(segment.len);
                            let rows = (segment.start + first) * q_width..(segment.start + last) * q_width;
                            let new = PagedSegment { q_start: 0, q_len: last - first, kv_len: last, pages };
                            let mut out = vec![f32::NAN; rows.len()];
                            attention_paged(&q[rows.clone()], &[new], pool, shape, &mut out);
                            assert_eq!(
                                out, whole[rows],
                                "{isa} {shape:?} pages of {page_tokens}, {chunk} a chunk"
                            );
                        }
                    }
                }
                pool::set_threads(0);
            }
        });
    }
}

/// Pages of bf16 hold whole tiles.
fn page_sizes(storage: KvStorage, sizes: [usize; 3]) -> Vec<usize> {
    match storage {
        KvStorage::F32 => sizes.to_vec(),
        KvStorage::Bf16 => vec![TILE, 2 * TILE],
    }
}

/// A pool's content.
fn pool_values(
    shape: &AttentionShape,
    storage: KvStorage,
    pages: usize,
    page_tokens: usize,
    seed: u64,
) -> Vec<f32> {
    let len = pages * shape.page_len(page_tokens, storage);
    match storage {
        KvStorage::F32 => values(len, seed),
        KvStorage::Bf16 => values(2 * len, seed)
            .chunks_exact(2)
            .map(|pair| {
                let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
                f32::from_bits(bits(pair[0]) | bits(pair[1]) << 16)
            })
            .collect(),
    }
}

/// Sequences that begin with the same pages, some queries of each at once, against one sequence at a time.
#[test]
fn shared_pages_give_the_same_bits() {
    let shape = |heads, kv_heads, head_dim, window, softcap| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.5,
        window,
        softcap,
        bf16: head_dim == 32,
    };
    // (Common tokens, own tokens of each sequence, new tokens of each.)
    let lengths: [(usize, &[(usize, usize)]); 6] = [
        (192, &[(1, 1), (40, 1), (70, 1), (3, 1), (128, 1)]),
        (130, &[(1, 1), (9, 4), (80, 70), (64, 2)]),
        (64, &[(2, 2), (2, 2), (2, 2)]),
        (256, &[(5, 1); 45]),
        (63, &[(1, 1), (2, 1)]),
        (700, &[(1, 1), (700, 1), (2, 3)]),
    ];
    for shape in [
        shape(3, 1, 16, None, None),
        shape(2, 2, 17, Some(90), None),
        shape(4, 2, 8, Some(5), Some(2.0)),
        shape(3, 1, 32, None, None),
        shape(2, 2, 32, Some(90), Some(2.0)),
    ] {
        each_isa(|isa| shared_pages_of(isa, shape, lengths));
    }
}

fn shared_pages_of(isa: Isa, shape: AttentionShape, lengths: [(usize, &[(usize, usize)]); 6]) {
    let storage = shape.kv_storage();
    for (common, own) in lengths {
        for page_tokens in page_sizes(storage, [16, 64, 100]) {
            let common_pages = common / page_tokens;
            let mut free = common_pages as u32..;
            let tables: Vec<(Vec<u32>, usize, usize)> = own
                .iter()
                .map(|&(own, new)| {
                    let len = common + own;
                    let more = len.div_ceil(page_tokens) - common_pages;
                    let pages = (0..common_pages as u32).chain(free.by_ref().take(more)).collect();
                    (pages, len, new)
                })
                .collect();
            let content = |seed| pool_values(&shape, storage, free.start as usize, page_tokens, seed);
            let (k, v) = (content(2), content(3));
            let pool = KvPool { k: &k, v: &v, page_tokens, storage };
            let mut at = 0;
            // The sequences in another order than their pages.
            let segments: Vec<PagedSegment<'_>> = tables
                .iter()
                .rev()
                .map(|(pages, kv_len, q_len)| {
                    at += q_len;
                    PagedSegment { q_start: at - q_len, q_len: *q_len, kv_len: *kv_len, pages }
                })
                .collect();
            let q = values(at * shape.q_width(), 1);
            let mut alone = vec![f32::NAN; q.len()];
            for segment in &segments {
                attention_paged(&q, &[*segment], pool, shape, &mut alone);
            }
            assert!(alone.iter().all(|value| value.is_finite()));
            for threads in [1, 2, 7] {
                pool::set_threads(threads);
                let mut together = vec![f32::NAN; q.len()];
                attention_paged(&q, &segments, pool, shape, &mut together);
                assert!(
                    together == alone,
                    "{isa} {shape:?} {common} pages of {page_tokens}, {threads} threads"
                );
            }
            pool::set_threads(0);
        }
    }
}

/// Tasks write the rows of their segments at the same time.
#[test]
fn segments_with_a_common_row_are_refused() {
    let shape = AttentionShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        scale: 1.0,
        window: None,
        softcap: None,
        bf16: false,
    };
    let rows = vec![0.0; 8];
    let check = |segments: [(usize, usize); 3], refused: bool| {
        let segments = segments.map(|(start, len)| Segment { start, len });
        let run = |backward: bool| {
            std::panic::catch_unwind(|| {
                let (mut out, mut lse) = (rows.clone(), vec![0.0; 4]);
                if !backward {
                    return attention((&rows, &rows, &rows), &segments, shape, &mut out, &mut lse);
                }
                let (mut dk, mut dv) = (rows.clone(), rows.clone());
                let gradients = AttentionGradients { dq: &mut out, dk: &mut dk, dv: &mut dv };
                attention_backward((&rows, &rows, &rows), (&rows, &rows, &lse), &segments, shape, gradients);
            })
        };
        assert_eq!(run(false).is_err(), refused, "{segments:?}");
        assert_eq!(run(true).is_err(), refused, "{segments:?}");
        let pages = [0];
        let paged = segments.map(|Segment { start, len }| PagedSegment {
            q_start: start,
            q_len: len,
            kv_len: len,
            pages: &pages,
        });
        let pool = KvPool { k: &rows, v: &rows, page_tokens: 4, storage: KvStorage::F32 };
        let paged = std::panic::catch_unwind(|| {
            attention_paged(&rows, &paged, pool, shape, &mut rows.clone());
        });
        assert_eq!(paged.is_err(), refused, "{segments:?}");
    };
    check([(2, 2), (0, 0), (0, 2)], false);
    check([(0, 1), (1, 0), (1, 3)], false);
    check([(0, 3), (3, 1), (2, 1)], true);
    check([(1, 2), (0, 2), (3, 0)], true);
}
