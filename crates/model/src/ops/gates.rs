//! From what the router reads to the gates of the experts.

use candle_core::{D, DType, Tensor};
use mixse_kernels::{Accumulate, View, gemm};

use crate::router::{GateConfig, GateScale};

/// Portable body: gates `[tokens, experts]` from the router's input `h [tokens, d]`, R `[choices, d]` and the bias.
pub(crate) fn portable(
    h: &Tensor,
    r: &Tensor,
    bias: Option<&Tensor>,
    config: &GateConfig,
) -> candle_core::Result<Tensor> {
    let logits = portable_logits(h, r, bias, config)?;
    let top = logits.detach().max_keepdim(D::Minus1)?;
    let exp = logits.broadcast_sub(&top)?.exp()?;
    let probabilities = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;

    let (tokens, choices) = probabilities.dims2()?;
    let values = probabilities.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut mask = vec![0f32; values.len()];
    for (row, keep) in values.chunks_exact(choices).zip(mask.chunks_exact_mut(choices)) {
        select_top(row, config.top_k, |i| keep[i] = 1.0);
    }
    let mask = Tensor::from_vec(mask, (tokens, choices), h.device())?;
    let kept = (&probabilities * &mask)?;
    let gates = match config.scale {
        GateScale::Probability => kept,
        GateScale::Renormalized => kept.broadcast_div(&kept.sum_keepdim(D::Minus1)?)?,
        GateScale::Unit => ((&kept - kept.detach())? + mask)?,
    };
    gates.narrow(1, 0, choices - usize::from(config.null_expert))?.contiguous()
}

/// Portable body: `z = (R h + b) / T`, `[tokens, choices]`.
fn portable_logits(
    h: &Tensor,
    r: &Tensor,
    bias: Option<&Tensor>,
    config: &GateConfig,
) -> candle_core::Result<Tensor> {
    let mut logits = h.matmul(&r.t()?)?;
    if let Some(bias) = bias {
        logits = logits.broadcast_add(bias)?;
    }
    logits / f64::from(config.temperature)
}

/// Portable body: `scale · Σ −log softmax(z)[label]` over the tokens, a scalar.
pub(crate) fn portable_label_loss(
    h: &Tensor,
    r: &Tensor,
    bias: Option<&Tensor>,
    config: &GateConfig,
    labels: &[u32],
    scale: f32,
) -> candle_core::Result<Tensor> {
    let logits = portable_logits(h, r, bias, config)?;
    let labels = Tensor::from_slice(labels, (labels.len(), 1), h.device())?;
    let top = logits.detach().max_keepdim(D::Minus1)?;
    let log_sum = (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top)?;
    (log_sum - logits.gather(&labels, 1)?)?.sum_all()? * f64::from(scale)
}

/// Calls `keep` with the index of each of the `k` largest values; the lower index wins among equals.
fn select_top(values: &[f32], k: usize, mut keep: impl FnMut(usize)) {
    if k >= values.len() {
        return (0..values.len()).for_each(keep);
    }
    let mut last: Option<(f32, usize)> = None;
    for _ in 0..k {
        let mut best: Option<(f32, usize)> = None;
        for (i, &v) in values.iter().enumerate() {
            let after_last = last.is_none_or(|(lv, li)| v < lv || (v == lv && i > li));
            if after_last && best.is_none_or(|(bv, _)| v > bv) {
                best = Some((v, i));
            }
        }
        let Some((_, index)) = best else { return };
        keep(index);
        last = best;
    }
}

/// Fused body. `h [tokens, d]`, `r [choices, d]`; writes the softmax's probabilities `[tokens, choices]` (for the backward
/// and for explaining a decision) and the gates `[tokens, experts]`.
pub(crate) fn forward(
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    probabilities: &mut [f32],
    gates: &mut [f32],
) {
    let choices = r.len() / d;
    let experts = choices - usize::from(config.null_expert);
    logits(h, r, d, config, probabilities);
    for (p, g) in probabilities.chunks_exact_mut(choices).zip(gates.chunks_exact_mut(experts)) {
        softmax(p);
        g.fill(0.0);
        let mut kept_sum = 0.0;
        select_top(p, config.top_k, |i| kept_sum += p[i]);
        select_top(p, config.top_k, |i| {
            if i < experts {
                g[i] = match config.scale {
                    GateScale::Probability => p[i],
                    GateScale::Renormalized => p[i] / kept_sum,
                    GateScale::Unit => 1.0,
                };
            }
        });
    }
}

/// Fused body: `out [tokens, choices] = h Rᵀ / T`.
fn logits(h: &[f32], r: &[f32], d: usize, config: &GateConfig, out: &mut [f32]) {
    let (tokens, choices) = (h.len() / d, r.len() / d);
    let mut transposed = vec![0.0; r.len()];
    for (row, values) in r.chunks_exact(d).enumerate() {
        for (i, &v) in values.iter().enumerate() {
            transposed[i * choices + row] = v;
        }
    }
    gemm((tokens, choices, d), View::rows(h, d), &transposed, choices, out, choices, Accumulate::Overwrite);
    out.iter_mut().for_each(|z| *z /= config.temperature);
}

/// Turns one token's logits into probabilities; returns `log Σ exp z`.
fn softmax(z: &mut [f32]) -> f32 {
    let top = z.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sum = 0.0;
    for v in z.iter_mut() {
        *v = (*v - top).exp();
        sum += *v;
    }
    z.iter_mut().for_each(|v| *v /= sum);
    top + sum.ln()
}

/// Fused body of [`portable_label_loss`], without a bias. Adds its gradients to `dh` and `dr`.
pub(crate) fn label_loss(
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    labels: &[u32],
    scale: f32,
    dh: &mut [f32],
    dr: &mut [f32],
) -> f32 {
    let choices = r.len() / d;
    let mut z = vec![0f32; labels.len() * choices];
    logits(h, r, d, config, &mut z);
    let mut loss = 0f64;
    for (z, &label) in z.chunks_exact_mut(choices).zip(labels) {
        let own = z[label as usize];
        loss += f64::from(softmax(z) - own);
        // d loss / d logit = scale (p − [label]); the 1/T is the logits'.
        z[label as usize] -= 1.0;
        z.iter_mut().for_each(|v| *v *= scale / config.temperature);
    }
    logits_backward(&z, h, r, d, dh, Some(dr));
    (loss * f64::from(scale)) as f32
}

/// From the gradient `dz [tokens, choices]` of `h Rᵀ` to those of h and R, added to `dh` and `dr`.
fn logits_backward(dz: &[f32], h: &[f32], r: &[f32], d: usize, dh: &mut [f32], dr: Option<&mut [f32]>) {
    let (tokens, choices) = (h.len() / d, r.len() / d);
    gemm((tokens, d, choices), View::rows(dz, choices), r, d, dh, d, Accumulate::Add);
    if let Some(dr) = dr {
        gemm((choices, d, tokens), View::transposed(dz, choices), h, d, dr, d, Accumulate::Add);
    }
}

/// Backward of [`forward`]: from `dgates [tokens, experts]` to the gradient of the router's input (added to `dh`) and of R
/// (added to `dr`).
///
/// With S the kept set and g the gates: `dp_i = dg_i` on S (probability and unit), or `(dg_i − Σ_j dg_j g_j) / Σ_S p`
/// (renormalized); then the softmax's `dz = p ⊙ (dp − Σ p dp) / T`.
pub(crate) fn backward(
    dgates: &[f32],
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    probabilities: &[f32],
    dh: &mut [f32],
    dr: Option<&mut [f32]>,
) {
    let choices = r.len() / d;
    let experts = choices - usize::from(config.null_expert);
    let tokens = h.len() / d;
    let mut dz = vec![0f32; tokens * choices];
    for ((p, dg), dz) in probabilities
        .chunks_exact(choices)
        .zip(dgates.chunks_exact(experts))
        .zip(dz.chunks_exact_mut(choices))
    {
        let mut kept_sum = 0.0;
        let mut weighted = 0.0;
        select_top(p, config.top_k, |i| {
            kept_sum += p[i];
            weighted += if i < experts { dg[i] * p[i] } else { 0.0 };
        });
        select_top(p, config.top_k, |i| {
            let dg = if i < experts { dg[i] } else { 0.0 };
            dz[i] = match config.scale {
                GateScale::Probability | GateScale::Unit => dg,
                GateScale::Renormalized => (dg - weighted / kept_sum) / kept_sum,
            };
        });
        let mean: f32 = p.iter().zip(dz.iter()).map(|(p, dp)| p * dp).sum();
        for (dz, p) in dz.iter_mut().zip(p) {
            *dz = p * (*dz - mean) / config.temperature;
        }
    }
    logits_backward(&dz, h, r, d, dh, dr);
}
