//! Attention backward: the weights are computed again from the queries, keys and the forward pass's `lse`.

use super::{
    AttentionShape, Block, KvStorage, Segment, TILE, assert_disjoint, gather, rounded, transpose_tiles,
};
use crate::gemm::Matrix;
use crate::isa::{self, Available, multiversion};
use crate::lanes::dot;
use crate::pool::{self, Parts};
use crate::scratch;
use crate::vexp::{exp, tanh};

/// Where [`attention_backward`] writes; rows of the segments are overwritten, others not touched.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// `[T, heads · head_dim]`
    pub dq: &'a mut [f32],
    /// `[T, kv_heads · head_dim]`
    pub dk: &'a mut [f32],
    /// `[T, kv_heads · head_dim]`
    pub dv: &'a mut [f32],
}

/// The gradients of [`super::attention`], from its operands, its `out` and `lse`, and the gradient `dout` of `out`.
///
/// With s the scaled (and capped) score: `p = e^(s - lse)`, `dv = Σ p dout`, `dp = dout · v`,
/// `ds = p (dp - dout · out)`, and from `ds` through the cap and the scale `dq = Σ ds k`, `dk = Σ ds q`.
///
/// # Panics
/// If the slices do not have the sizes documented for [`super::attention`], or two segments have a row in common.
#[allow(clippy::too_many_arguments, reason = "the operands of the forward pass and the gradient")]
pub fn attention_backward(
    (q, k, v): (&[f32], &[f32], &[f32]),
    (out, dout, lse): (&[f32], &[f32], &[f32]),
    segments: &[Segment],
    shape: AttentionShape,
    gradients: AttentionGradients<'_>,
) {
    shape.check();
    let tokens = lse.len() / shape.heads;
    let isa = isa::active();
    let (q_len, kv_len) = (tokens * shape.q_width(), tokens * shape.kv_width());
    let AttentionGradients { dq, dk, dv } = gradients;
    assert!(
        [q.len(), out.len(), dout.len(), dq.len()] == [q_len; 4],
        "q, out, dout and dq are [{tokens}, heads * dim]"
    );
    assert!(
        [k.len(), v.len(), dk.len(), dv.len()] == [kv_len; 4],
        "k, v, dk and dv are [{tokens}, kv_heads * dim]"
    );
    assert!(segments.iter().all(|s| s.start + s.len <= tokens), "segments are inside of {tokens} tokens");
    assert_disjoint(segments.iter().map(|s| (s.start, s.len)));
    // The forward pass's weights are those of rounded operands.
    if shape.kv_storage() == KvStorage::Bf16 {
        let q_len = if rounded::rounds_queries(isa) { q_len } else { 0 };
        return scratch::with(q_len + 2 * kv_len, |buffer| {
            let (rounded_q, buffer) = buffer.split_at_mut(q_len);
            let (rounded_k, rounded_v) = buffer.split_at_mut(kv_len);
            for (from, to) in [(q, &mut *rounded_q), (k, &mut *rounded_k), (v, &mut *rounded_v)] {
                pool::for_each_chunk(to, 4096, |i, to| {
                    rounded::round_values(isa, &from[i * 4096..][..to.len()], to)
                });
            }
            let gradients = AttentionGradients { dq, dk, dv };
            let shape = AttentionShape { bf16: false, ..shape };
            let q = if rounded_q.is_empty() { q } else { &*rounded_q };
            let operands = (q, &*rounded_k, &*rounded_v);
            attention_backward(operands, (out, dout, lse), segments, shape, gradients);
        });
    }
    let operands = Operands { isa, shape: &shape, q, k, v, out, dout, lse };
    let (dq, dk, dv) = (Parts::new(dq), Parts::new(dk), Parts::new(dv));
    // Longest first. One task has all queries of a head of keys, so that its sums have one order.
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(segments[i].len));
    pool::parallel_for(segments.len() * shape.kv_heads, |task| {
        operands.head(segments[order[task / shape.kv_heads]], task % shape.kv_heads, &dq, &dk, &dv);
    });
}

struct Operands<'a> {
    isa: Available,
    shape: &'a AttentionShape,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    dout: &'a [f32],
    lse: &'a [f32],
}

impl Operands<'_> {
    /// One segment and head of keys: blocks of queries in order, each against its tiles of keys in order.
    fn head(
        &self,
        segment: Segment,
        kv_head: usize,
        dq: &Parts<'_, f32>,
        dk: &Parts<'_, f32>,
        dv: &Parts<'_, f32>,
    ) {
        let shape = self.shape;
        let (dim, group, width) = (shape.head_dim, shape.group(), shape.kv_width());
        let first = segment.start * width + kv_head * dim;
        for row in 0..segment.len {
            let at = first + row * width;
            // SAFETY: these rows and this head belong to this task.
            unsafe {
                dk.get(at..at + dim).fill(0.0);
                dv.get(at..at + dim).fill(0.0);
            }
        }
        let most = shape.block().min(segment.len) * group;
        let tiled = segment.len.div_ceil(TILE) * dim * TILE;
        scratch::with(most * (4 * dim + 2 * TILE + 1) + 2 * tiled, |buffer| {
            let (keys, buffer) = buffer.split_at_mut(tiled);
            let (values, buffer) = buffer.split_at_mut(tiled);
            let rows = segment.start * width..(segment.start + segment.len) * width;
            transpose_tiles(self.isa, &self.k[rows.clone()], width, kv_head, dim, keys);
            transpose_tiles(self.isa, &self.v[rows], width, kv_head, dim, values);
            for start in (0..segment.len).step_by(shape.block()) {
                let end = (start + shape.block()).min(segment.len);
                let rows = (end - start) * group;
                let tokens = segment.start + start..segment.start + end;
                let (queries, buffer) = buffer.split_at_mut(rows * dim);
                let (douts, buffer) = buffer.split_at_mut(rows * dim);
                let (outs, buffer) = buffer.split_at_mut(rows * dim);
                let (dqueries, buffer) = buffer.split_at_mut(rows * dim);
                let (p, buffer) = buffer.split_at_mut(rows * TILE);
                let (ds, buffer) = buffer.split_at_mut(rows * TILE);
                let deltas = &mut buffer[..rows];
                gather(self.q, shape, tokens.clone(), kv_head, queries);
                gather(self.dout, shape, tokens.clone(), kv_head, douts);
                gather(self.out, shape, tokens.clone(), kv_head, outs);
                row_dots(self.isa, douts, outs, deltas);
                dqueries.fill(0.0);
                let positions = start..end;
                for tile in shape.tiles(&positions) {
                    let range = shape.tile_keys(&positions, tile);
                    let at = first + range.start * width;
                    let cols = range.len();
                    let block = |a, a_row, a_col, depth| Block { isa: self.isa, a, a_row, a_col, depth };
                    let square = |to: &mut [f32]| Matrix { start: to.as_mut_ptr(), row: TILE, rows, cols };
                    // SAFETY: `cols` rows of keys and values of `dim` elements begin at `at`; the blocks have the sizes
                    // that they were cut to; gradients of this segment and head belong to this task.
                    unsafe {
                        let from = tile * dim * TILE + range.start % TILE;
                        block(queries, dim, 1, dim).times(keys[from..].as_ptr(), TILE, square(p), false);
                        block(douts, dim, 1, dim).times(values[from..].as_ptr(), TILE, square(ds), false);
                    }
                    for row in 0..rows {
                        let visible = shape.visible(start + row / group);
                        let from = visible.start.max(range.start).min(range.end) - range.start;
                        let to = visible.end.min(range.end).max(range.start + from) - range.start;
                        let token = segment.start + start + row / group;
                        let lse = self.lse[token * shape.heads + kv_head * group + row % group];
                        let p = &mut p[row * TILE..][..cols];
                        let ds = &mut ds[row * TILE..][..cols];
                        for masked in [&mut p[..from], &mut ds[..from]] {
                            masked.fill(0.0);
                        }
                        for masked in [&mut p[to..], &mut ds[to..]] {
                            masked.fill(0.0);
                        }
                        slope(self.isa, &mut p[from..to], &mut ds[from..to], lse, deltas[row], *shape);
                    }
                    // SAFETY: as above.
                    unsafe {
                        let part = |parts: &Parts<'_, f32>| Matrix {
                            start: parts.as_ptr().add(at),
                            row: width,
                            rows: cols,
                            cols: dim,
                        };
                        block(p, 1, TILE, rows).times(douts.as_ptr(), dim, part(dv), true);
                        block(ds, 1, TILE, rows).times(queries.as_ptr(), dim, part(dk), true);
                        let to = Matrix { start: dqueries.as_mut_ptr(), row: dim, rows, cols: dim };
                        block(ds, TILE, 1, cols).times(self.k[at..].as_ptr(), width, to, true);
                    }
                }
                for (token, from) in tokens.zip(dqueries.chunks_exact(group * dim)) {
                    let at = (token * shape.heads + kv_head * group) * dim;
                    // SAFETY: these rows and heads belong to this task.
                    unsafe { dq.get(at..at + group * dim) }.copy_from_slice(from);
                }
            }
        });
    }
}

multiversion! {
    fn row_dots(a: &[f32], b: &[f32], out: &mut [f32]) = row_dots_body;
    fn slope(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32, shape: AttentionShape) = slope_body;
}

#[inline(always)]
fn row_dots_body<const FMA: bool>(a: &[f32], b: &[f32], out: &mut [f32]) {
    let width = a.len() / out.len().max(1);
    for (i, out) in out.iter_mut().enumerate() {
        *out = dot::<FMA>(&a[i * width..(i + 1) * width], &b[i * width..(i + 1) * width]);
    }
}

/// `p` holds q · k and becomes the weight; `ds` holds dout · v and becomes the gradient of q · k.
#[inline(always)]
fn slope_body<const FMA: bool>(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32, shape: AttentionShape) {
    for (p, ds) in p.iter_mut().zip(ds) {
        let score = *p * shape.scale;
        let (score, inner) = match shape.softcap {
            None => (score, 1.0),
            Some(cap) => {
                let t = tanh::<FMA>(score / cap);
                (cap * t, 1.0 - t * t)
            }
        };
        *p = exp::<FMA>(score - lse);
        *ds = *p * (*ds - delta) * inner * shape.scale;
    }
}
