//! Attention: of whole sequences, from pages, and backward.

use super::{Amount, Sum, Trial, values};
use crate::attention::{
    AttentionGradients, AttentionShape, KvPool, KvPoolMut, KvStorage, PagedSegment, Segment, attention,
    attention_backward, attention_paged, store_paged,
};

/// Sequences side by side.
struct Case {
    shape: AttentionShape,
    lengths: Vec<usize>,
}

fn case(
    (heads, kv_heads, head_dim): (usize, usize, usize),
    window: Option<usize>,
    softcap: Option<f32>,
    lengths: &[usize],
) -> Case {
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 1.5, window, softcap, bf16: false };
    Case { shape, lengths: lengths.to_vec() }
}

/// Heads that share keys and not, odd widths, windows, caps, an empty sequence, and one of several spans.
fn cases() -> [Case; 6] {
    [
        case((1, 1, 1), None, None, &[1]),
        case((3, 1, 16), None, None, &[5, 0, 1, 33]),
        case((4, 2, 8), None, None, &[70, 3]),
        case((2, 2, 17), Some(5), None, &[31, 64]),
        case((2, 1, 33), Some(70), Some(2.0), &[150]),
        case((2, 1, 4), None, None, &[530]),
    ]
}

/// The same for operands that are rounded to bf16 where the instruction set multiplies tiles of these.
fn rounded_cases() -> [Case; 4] {
    [
        case((1, 1, 32), None, None, &[1]),
        case((3, 1, 64), None, None, &[5, 0, 1, 97]),
        case((2, 2, 96), Some(5), Some(2.0), &[31, 64]),
        case((2, 1, 32), Some(70), None, &[530]),
    ]
    .map(rounded)
}

fn rounded(case: Case) -> Case {
    Case { shape: AttentionShape { bf16: true, ..case.shape }, ..case }
}

/// The case whose speed is told.
fn large() -> Case {
    case((9, 3, 64), None, None, &[256])
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

    fn name(&self) -> String {
        let AttentionShape { heads, kv_heads, head_dim, window, softcap, .. } = self.shape;
        let lengths = &self.lengths;
        format!("{heads}/{kv_heads} heads of {head_dim}, {window:?}, {softcap:?}, {lengths:?} tokens")
    }

    /// Queries, keys, values, and the output's gradient.
    fn operands(&self) -> [Vec<f32>; 4] {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (q, kv) = (self.tokens() * heads * head_dim, self.tokens() * kv_heads * head_dim);
        let operands = [values(q, 1), values(kv, 2), values(kv, 3), values(q, 4)];
        // What is rounded already is not rounded again; the weights are.
        if self.shape.bf16 { operands.map(super::rounded) } else { operands }
    }

    /// Additions and multiplications of the products of the forward pass: two for half of all pairs.
    fn operations(&self) -> f64 {
        let pairs: usize = self.lengths.iter().map(|len| len * len / 2).sum();
        (4 * pairs * self.shape.heads * self.shape.head_dim) as f64
    }
}

/// The formulas of the module documentation, one query at a time.
struct Reference {
    out: Vec<Sum>,
    lse: Vec<Sum>,
    dq: Vec<Sum>,
    dk: Vec<Sum>,
    dv: Vec<Sum>,
}

fn dot(a: &[f32], b: &[f32]) -> Sum {
    Sum::dot(a.iter().copied().zip(b.iter().copied()))
}

fn reference(case: &Case, [q, k, v, dout]: &[Vec<f32>; 4]) -> Reference {
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, window, softcap, .. } = case.shape;
    let scale = f64::from(scale);
    let zeros = |len: usize| vec![Sum::default(); len];
    let mut result = Reference {
        out: zeros(q.len()),
        lse: zeros(case.tokens() * heads),
        dq: zeros(q.len()),
        dk: zeros(k.len()),
        dv: zeros(v.len()),
    };
    for segment in case.segments() {
        for (i, head) in (0..segment.len).flat_map(|i| (0..heads).map(move |head| (i, head))) {
            let at = ((segment.start + i) * heads + head) * dim;
            let (query, dout) = (&q[at..at + dim], &dout[at..at + dim]);
            let row = |j: usize| ((segment.start + j) * kv_heads + head / (heads / kv_heads)) * dim;
            let first = window.map_or(0, |window| (i + 1).saturating_sub(window));
            // Scores, and their slopes over the products of queries and keys.
            let scores: Vec<(f64, f64)> = (first..=i)
                .map(|j| {
                    let score = scale * dot(query, &k[row(j)..][..dim]).value;
                    softcap.map(f64::from).map_or((score, scale), |cap| {
                        let t = (score / cap).tanh();
                        (cap * t, scale * (1.0 - t * t))
                    })
                })
                .collect();
            let greatest = scores.iter().fold(f64::NEG_INFINITY, |most, score| most.max(score.0));
            let total: f64 = scores.iter().map(|score| (score.0 - greatest).exp()).sum();
            result.lse[(segment.start + i) * heads + head] = Sum::of(total.ln() + greatest);
            let weights: Vec<f64> = scores.iter().map(|score| (score.0 - greatest).exp() / total).collect();
            let slopes: Vec<Sum> = (first..=i).map(|j| dot(dout, &v[row(j)..][..dim])).collect();
            let mean: Sum = weights.iter().zip(&slopes).map(|(&p, &slope)| slope.times(p)).sum();
            for (at_j, j) in (first..=i).enumerate() {
                let (p, slope) = (weights[at_j], slopes[at_j] + mean.times(-1.0));
                let ds = slope.times(p * scores[at_j].1);
                for d in 0..dim {
                    let (key, value) = (f64::from(k[row(j) + d]), f64::from(v[row(j) + d]));
                    let add = |to: &mut Sum, term: Sum| *to = *to + term;
                    add(&mut result.out[at + d], Sum::of(p * value));
                    add(&mut result.dq[at + d], ds.times(key));
                    add(&mut result.dk[row(j) + d], ds.times(f64::from(query[d])));
                    add(&mut result.dv[row(j) + d], Sum::of(p * f64::from(dout[d])));
                }
            }
        }
    }
    result
}

/// Output and log-sums of whole sequences.
fn forward(case: &Case, [q, k, v, _]: &[Vec<f32>; 4]) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; case.tokens() * case.shape.heads]);
    attention((q, k, v), &case.segments(), case.shape, &mut out, &mut lse);
    (out, lse)
}

pub(super) fn whole(trial: &mut Trial) {
    whole_of(trial, &cases(), &large());
}

pub(super) fn whole_rounded(trial: &mut Trial) {
    whole_of(trial, &rounded_cases(), &rounded(large()));
}

fn whole_of(trial: &mut Trial, cases: &[Case], case: &Case) {
    for case in cases {
        let operands = case.operands();
        let (expected, (out, lse)) = (reference(case, &operands), forward(case, &operands));
        trial.compare(&case.name(), &out, |i| expected.out[i]);
        trial.compare(&format!("{}, log-sum", case.name()), &lse, |i| expected.lse[i]);
    }
    let [q, k, v, mut out] = case.operands();
    let (segments, mut lse) = (case.segments(), vec![0.0; case.tokens() * case.shape.heads]);
    trial.time(Amount::Operations(case.operations()), || {
        attention((&q, &k, &v), &segments, case.shape, &mut out, &mut lse);
    });
}

/// Keys and values of all sequences in pages, neighbours in reverse order.
struct Pages {
    k: Vec<f32>,
    v: Vec<f32>,
    page_tokens: usize,
    storage: KvStorage,
    of_sequences: Vec<Vec<u32>>,
}

impl Pages {
    fn new(case: &Case, [_, k, v, _]: &[Vec<f32>; 4], page_tokens: usize) -> Self {
        let total: usize = case.lengths.iter().map(|len| len.div_ceil(page_tokens)).sum();
        let storage = case.shape.kv_storage();
        let size = total * case.shape.page_len(page_tokens, storage);
        let (mut pool_k, mut pool_v) = (vec![0.0; size], vec![0.0; size]);
        let mut free = (0..total as u32).rev();
        let of_sequences: Vec<Vec<u32>> =
            case.lengths.iter().map(|len| free.by_ref().take(len.div_ceil(page_tokens)).collect()).collect();
        let mut pool = KvPoolMut { k: &mut pool_k, v: &mut pool_v, page_tokens, storage };
        for (Segment { start, len }, pages) in case.segments().into_iter().zip(&of_sequences) {
            let new = PagedSegment { q_start: start, q_len: len, kv_len: len, pages };
            store_paged((k, v), &[new], &mut pool, case.shape);
        }
        Self { k: pool_k, v: pool_v, page_tokens, storage, of_sequences }
    }

    fn pool(&self) -> KvPool<'_> {
        KvPool { k: &self.k, v: &self.v, page_tokens: self.page_tokens, storage: self.storage }
    }

    /// The last `new` tokens of each sequence, at their rows of the whole.
    fn last(&self, case: &Case, new: usize) -> Vec<PagedSegment<'_>> {
        let paged = |(segment, pages)| {
            let Segment { start, len } = segment;
            let q_len = new.min(len);
            PagedSegment { q_start: start + len - q_len, q_len, kv_len: len, pages }
        };
        case.segments()
            .into_iter()
            .zip(&self.of_sequences)
            .map(|(s, p)| (s, p.as_slice()))
            .map(paged)
            .collect()
    }
}

pub(super) fn paged(trial: &mut Trial) {
    paged_of(trial, &cases(), [(4, 1), (16, 7), (100, 1000)], large());
}

pub(super) fn paged_rounded(trial: &mut Trial) {
    paged_of(trial, &rounded_cases(), [(64, 1), (128, 7), (64, 1000)], rounded(large()));
}

fn paged_of(trial: &mut Trial, cases: &[Case], pages: [(usize, usize); 3], large: Case) {
    for case in cases {
        let operands = case.operands();
        let expected = reference(case, &operands);
        let width = case.shape.heads * case.shape.head_dim;
        for (page_tokens, new) in pages {
            let pages = Pages::new(case, &operands, page_tokens);
            let segments = pages.last(case, new);
            let mut out = vec![f32::NAN; operands[0].len()];
            attention_paged(&operands[0], &segments, pages.pool(), case.shape, &mut out);
            for segment in segments {
                let rows = segment.q_start * width..(segment.q_start + segment.q_len) * width;
                let what = format!("{}, pages of {page_tokens}, {new} new", case.name());
                trial.compare(&what, &out[rows.clone()], |i| expected.out[rows.start + i]);
            }
        }
    }
    // One new token of each of some sequences reads all their keys and values.
    let case = Case { lengths: vec![512; 8], ..large };
    let operands = case.operands();
    let pages = Pages::new(&case, &operands, 64);
    let (segments, mut out) = (pages.last(&case, 1), operands[0].clone());
    trial.time(Amount::Bytes((4 * (pages.k.len() + pages.v.len())) as f64), || {
        attention_paged(&operands[0], &segments, pages.pool(), case.shape, &mut out);
    });
}

pub(super) fn backward(trial: &mut Trial) {
    backward_of(trial, &cases(), &large());
}

pub(super) fn backward_rounded(trial: &mut Trial) {
    backward_of(trial, &rounded_cases(), &rounded(large()));
}

fn backward_of(trial: &mut Trial, cases: &[Case], large: &Case) {
    let run = |case: &Case, operands: &[Vec<f32>; 4], (out, lse): &(Vec<f32>, Vec<f32>)| {
        let [q, k, v, dout] = operands;
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|of| vec![f32::NAN; of.len()]);
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention_backward((q, k, v), (out, dout, lse), &case.segments(), case.shape, gradients);
        [dq, dk, dv]
    };
    for case in cases {
        let operands = case.operands();
        let expected = reference(case, &operands);
        let gradients = run(case, &operands, &forward(case, &operands));
        for (name, (values, expected)) in
            ["dq", "dk", "dv"].iter().zip(gradients.iter().zip([&expected.dq, &expected.dk, &expected.dv]))
        {
            trial.compare(&format!("{}, {name}", case.name()), values, |i| expected[i]);
        }
    }
    let case = large;
    let operands = case.operands();
    let forward = forward(case, &operands);
    trial.time(Amount::Operations(2.5 * case.operations()), || {
        std::hint::black_box(run(case, &operands, &forward));
    });
}
