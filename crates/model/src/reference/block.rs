//! A block of candle operations, differentiable.

use candle_core::{D, Tensor};

use super::{Reference, frozen::FrozenMatmul, gates, pages::Pages};
use crate::{
    backend::{
        Batch, BlockExperts, Gate, PageTable, Ragged,
        dropout::BlockDropout,
        spec::{BlockSpec, BlockWeights},
    },
    config::Activation,
    expert::Module,
    expert_set::{BlockLayout, ModuleLayout},
};

/// Keys and values of one block, and the pages of the sequences of a pass.
pub(super) struct Cached<'a> {
    pub(super) pages: &'a mut Pages,
    pub(super) block: usize,
    pub(super) tables: &'a [PageTable],
}

/// A block over a ragged batch `x [rows, d]`. Returns y and the gates used.
pub(super) fn block(
    spec: &BlockSpec,
    weights: &BlockWeights<Tensor>,
    x: &Tensor,
    batch: &Batch,
    experts: Option<BlockExperts<'_, Reference>>,
    cached: Option<Cached<'_>>,
) -> candle_core::Result<(Tensor, Option<Tensor>)> {
    let ragged = &*batch.ragged;
    let norm = |x: &Tensor, weight: &[f32]| rms_norm(x, weight, spec.eps, spec.plus_one);
    let h = attention_norm(spec, weights, x)?;
    let gate = match experts.map(|e| e.gate) {
        None | Some(Gate::Full) => None,
        Some(Gate::Given(gates)) => Some(gates.reshape((x.dim(0)?, ()))?),
        Some(Gate::Routed(routing)) => Some(gates::gates(&h, routing)?),
    };
    let lora =
        experts.map(|e| Lora { params: e.params, layout: e.layout, gate: gate.as_ref(), dropout: e.dropout });
    let project = |module: Module, x: &Tensor| project(weights, module, x, lora.as_ref());

    let heads = spec.attention.heads;
    let kv_heads = spec.attention.kv_heads;
    let d = spec.attention.head_dim;
    let rows = ragged.rows();
    let per_head = |x: Tensor, heads: usize, weight: &Option<Vec<f32>>| -> candle_core::Result<Tensor> {
        let x = x.reshape((rows, heads, d))?;
        let x = match weight {
            Some(weight) => norm(&x, weight)?,
            None => x,
        };
        rope(&x, &ragged.positions, &spec.inv_freq)
    };
    let q = per_head(project(Module::Q, &h)?, heads, &weights.q_norm)?;
    let k = per_head(project(Module::K, &h)?, kv_heads, &weights.k_norm)?;
    let v = project(Module::V, &h)?.reshape((rows, kv_heads, d))?;
    let a = attention(spec, ragged, &q, &k, &v, cached)?;
    let o = project(Module::O, &a)?;
    let o = match &weights.post_attention_norm {
        Some(weight) => norm(&o, weight)?,
        None => o,
    };
    let x = (x + o)?;

    let h = norm(&x, &weights.mlp_norm)?;
    let inner = (activation(&project(Module::Gate, &h)?, spec.activation)? * project(Module::Up, &h)?)?;
    let down = project(Module::Down, &inner)?;
    let down = match &weights.post_mlp_norm {
        Some(weight) => norm(&down, weight)?,
        None => down,
    };
    Ok(((x + down)?, gate))
}

/// The norm before the attention: what a router reads in this block.
pub(super) fn attention_norm(
    spec: &BlockSpec,
    weights: &BlockWeights<Tensor>,
    x: &Tensor,
) -> candle_core::Result<Tensor> {
    rms_norm(x, &weights.attention_norm, spec.eps, spec.plus_one)
}

/// The experts' part of every projection of a block.
struct Lora<'a> {
    params: &'a Tensor,
    layout: &'a BlockLayout,
    gate: Option<&'a Tensor>,
    dropout: Option<BlockDropout<'a>>,
}

fn project(
    weights: &BlockWeights<Tensor>,
    module: Module,
    x: &Tensor,
    lora: Option<&Lora<'_>>,
) -> candle_core::Result<Tensor> {
    let projection = &weights.projections[module];
    let mut y = FrozenMatmul::apply(x, &projection.weight)?;
    if let Some(bias) = &projection.bias {
        y = y.broadcast_add(&Tensor::from_slice(bias, bias.len(), x.device())?)?;
    }
    if let Some(lora) = lora
        && let Some(place) = &lora.layout.modules[module]
    {
        let experts = match lora.dropout {
            None => experts(x, lora, place)?,
            Some(dropout) => {
                let mask = Tensor::from_vec(dropout.mask(module, place.k), x.shape(), x.device())?;
                experts(&(x * mask)?, lora, place)?
            }
        };
        y = (y + experts)?;
    }
    Ok(y)
}

/// `Σ_i gate_i s_i B_i A_i x` for one module.
fn experts(x: &Tensor, lora: &Lora<'_>, place: &ModuleLayout) -> candle_core::Result<Tensor> {
    let (rank, k, n) = (place.total_rank(), place.k, place.n);
    let a = lora.params.narrow(0, place.offset, rank * k)?.reshape((rank, k))?;
    let bt = lora.params.narrow(0, place.offset + rank * k, rank * n)?.reshape((rank, n))?;
    let u = x.matmul(&a.t()?)?;
    // [R, experts]: the scaling of each row's own expert.
    let mut spread = vec![0f32; rank * place.ranks.len()];
    let mut row = 0;
    for (expert, (&r, &scale)) in place.ranks.iter().zip(&place.scales).enumerate() {
        for _ in 0..r {
            spread[row * place.ranks.len() + expert] = scale;
            row += 1;
        }
    }
    let spread = Tensor::from_vec(spread, (rank, place.ranks.len()), x.device())?;
    let u = match lora.gate {
        Some(gate) => (u * FrozenMatmul::apply(gate, &spread)?)?,
        None => u.broadcast_mul(&spread.sum(1)?)?,
    };
    u.matmul(&bt)
}

/// `x / sqrt(mean(x²) + eps) · w` over the last dimension, or `· (1 + w)`.
pub(super) fn rms_norm(x: &Tensor, weight: &[f32], eps: f32, plus_one: bool) -> candle_core::Result<Tensor> {
    let weight = Tensor::from_slice(weight, weight.len(), x.device())?;
    let weight = if plus_one { (weight + 1.0)? } else { weight };
    let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?.recip()?;
    x.broadcast_mul(&inverse)?.broadcast_mul(&weight)
}

fn activation(x: &Tensor, kind: Activation) -> candle_core::Result<Tensor> {
    match kind {
        Activation::Silu => x / (x.neg()?.exp()? + 1.0)?,
        // 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))
        Activation::GeluTanh => {
            let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
            (x * 0.5)? * (inner.tanh()? + 1.0)?
        }
    }
}

/// Rotary embedding of `x [rows, heads, d]` in the half-split convention: `(x₁ cos − x₂ sin, x₂ cos + x₁ sin)`.
fn rope(x: &Tensor, positions: &[u32], inv_freq: &[f32]) -> candle_core::Result<Tensor> {
    let half = inv_freq.len();
    let angles: Vec<f32> =
        positions.iter().flat_map(|&p| inv_freq.iter().map(move |f| p as f32 * f)).collect();
    let angles = Tensor::from_vec(angles, (positions.len(), 1, half), x.device())?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let (x1, x2) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let second = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)
}

/// Causal attention, sequence by sequence; `[rows, heads, d]` in, `[rows, heads · d]` out.
fn attention(
    spec: &BlockSpec,
    ragged: &Ragged,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mut cached: Option<Cached<'_>>,
) -> candle_core::Result<Tensor> {
    let width = spec.kv_width();
    let mut outputs = Vec::with_capacity(ragged.segments.len());
    for (index, segment) in ragged.segments.iter().enumerate() {
        let part = |x: &Tensor| x.narrow(0, segment.start, segment.len);
        let (mut k, mut v) = (part(k)?, part(v)?);
        if let Some(Cached { pages, block, tables }) = &mut cached {
            let rows = |x: &Tensor| x.reshape((segment.len, width))?.to_vec2::<f32>();
            let (all_k, all_v) = pages.append(*block, &tables[index], rows(&k)?, rows(&v)?);
            let by_head = (all_k.len() / width, spec.attention.kv_heads, spec.attention.head_dim);
            k = Tensor::from_vec(all_k, by_head, k.device())?;
            v = Tensor::from_vec(all_v, by_head, v.device())?;
        }
        outputs.push(sequence_attention(spec, &part(q)?, &k, &v)?);
    }
    Tensor::cat(&outputs, 0)
}

/// Attention of the last rows of one sequence: `q [new, heads, d]` over `k, v [all, kv_heads, d]`.
fn sequence_attention(spec: &BlockSpec, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
    let shape = &spec.attention;
    let (new, all) = (q.dim(0)?, k.dim(0)?);
    let groups = shape.heads / shape.kv_heads;
    // [kv_heads, groups · new, d]: the query heads that share a key head stand together.
    let q = q
        .reshape((new, shape.kv_heads, groups, shape.head_dim))?
        .permute((1, 2, 0, 3))?
        .reshape((shape.kv_heads, groups * new, shape.head_dim))?
        .contiguous()?;
    let k = k.transpose(0, 1)?.contiguous()?;
    let v = v.transpose(0, 1)?.contiguous()?;
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(shape.scale))?;
    if let Some(cap) = shape.softcap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let first = all - new;
    let mask: Vec<f32> = (0..groups)
        .flat_map(|_| 0..new)
        .flat_map(|row| (0..all).map(move |key| (first + row, key)))
        .map(|(at, key)| {
            let visible = key <= at && shape.window.is_none_or(|w| at - key < w);
            if visible { 0.0 } else { f32::NEG_INFINITY }
        })
        .collect();
    let mask = Tensor::from_vec(mask, (1, groups * new, all), q.device())?;
    let scores = scores.broadcast_add(&mask)?;
    let exp = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    weights
        .matmul(&v)?
        .reshape((shape.kv_heads, groups, new, shape.head_dim))?
        .permute((2, 0, 1, 3))?
        .reshape((new, shape.heads * shape.head_dim))
}
