//! From what the router reads to the gates of the experts.

use candle_core::{D, DType, Tensor};
use mixse_kernels::{Accumulate, View, gemm};

use super::block::Ragged;
use crate::router::{GateConfig, GateScale, Score};

/// Rows that decide together: one decision a sequence, from the mean over the rows of its prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequences<'a> {
    pub(crate) ragged: &'a Ragged,
    /// Gates `[sequences, experts]` of sequences that were decided in an earlier pass (those without prompt rows); empty where
    /// there is none.
    pub(crate) earlier: &'a [f32],
}

impl Sequences<'_> {
    fn len(&self) -> usize {
        self.ragged.segments.len()
    }

    /// Calls `visit` with each sequence that decides in this pass: its place, its rows and those of its prompt.
    fn deciding(&self, mut visit: impl FnMut(usize, std::ops::Range<usize>, std::ops::Range<usize>)) {
        for (place, (segment, &prompt)) in self.ragged.segments.iter().zip(&self.ragged.prompts).enumerate() {
            if prompt > 0 {
                let start = segment.start;
                visit(place, start..start + segment.len, start..start + prompt);
            }
        }
    }

    /// Mean of `h [rows, d]` over each prompt, `[sequences, d]`.
    pub(crate) fn mean(&self, h: &[f32], d: usize) -> Vec<f32> {
        let mut means = vec![0f32; self.len() * d];
        self.deciding(|place, _, prompt| {
            let mean = &mut means[place * d..(place + 1) * d];
            let share = 1.0 / prompt.len() as f32;
            for row in h[prompt.start * d..prompt.end * d].chunks_exact(d) {
                mean.iter_mut().zip(row).for_each(|(mean, v)| *mean += v * share);
            }
        });
        means
    }

    /// Backward of [`Sequences::mean`]: adds to `dh [rows, d]`.
    fn mean_backward(&self, dmeans: &[f32], d: usize, dh: &mut [f32]) {
        self.deciding(|place, _, prompt| {
            let dmean = &dmeans[place * d..(place + 1) * d];
            let share = 1.0 / prompt.len() as f32;
            for row in dh[prompt.start * d..prompt.end * d].chunks_exact_mut(d) {
                row.iter_mut().zip(dmean).for_each(|(dh, v)| *dh += v * share);
            }
        });
    }

    /// Gives every row its sequence's gates.
    fn spread(&self, decided: &[f32], experts: usize, gates: &mut [f32]) {
        for (place, (segment, &prompt)) in self.ragged.segments.iter().zip(&self.ragged.prompts).enumerate() {
            let from = if prompt > 0 { decided } else { self.earlier };
            let own = &from[place * experts..(place + 1) * experts];
            let rows = segment.start * experts..(segment.start + segment.len) * experts;
            gates[rows].chunks_exact_mut(experts).for_each(|row| row.copy_from_slice(own));
        }
    }

    /// Backward of [`Sequences::spread`].
    fn spread_backward(&self, dgates: &[f32], experts: usize) -> Vec<f32> {
        let mut sums = vec![0f32; self.len() * experts];
        self.deciding(|place, rows, _| {
            let sum = &mut sums[place * experts..(place + 1) * experts];
            for row in dgates[rows.start * experts..rows.end * experts].chunks_exact(experts) {
                sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
            }
        });
        sums
    }

    /// The means as a product: `[sequences, rows]`.
    fn averaging(&self, like: &Tensor) -> candle_core::Result<Tensor> {
        let rows = self.ragged.rows();
        let mut matrix = vec![0f32; self.len() * rows];
        self.deciding(|place, _, prompt| {
            let share = 1.0 / prompt.len() as f32;
            matrix[place * rows + prompt.start..place * rows + prompt.end].fill(share);
        });
        Tensor::from_vec(matrix, (self.len(), rows), like.device())
    }

    /// The spreading of what is decided in this pass as a product: `[rows, sequences]`.
    fn spreading(&self, like: &Tensor) -> candle_core::Result<Tensor> {
        let mut matrix = vec![0f32; self.ragged.rows() * self.len()];
        self.deciding(|place, rows, _| rows.for_each(|row| matrix[row * self.len() + place] = 1.0));
        Tensor::from_vec(matrix, (self.ragged.rows(), self.len()), like.device())
    }
}

/// Portable body: gates `[tokens, experts]` from the router's input `h [tokens, d]`, R `[choices, d]` and the bias.
pub(crate) fn portable(
    h: &Tensor,
    r: &Tensor,
    bias: Option<&Tensor>,
    config: &GateConfig,
    sequences: Option<Sequences<'_>>,
) -> candle_core::Result<Tensor> {
    let Some(sequences) = sequences else { return portable_each(h, r, bias, config) };
    let decided = portable_each(&sequences.averaging(h)?.matmul(h)?, r, bias, config)?;
    let gates = sequences.spreading(h)?.matmul(&decided)?;
    if sequences.earlier.is_empty() {
        return Ok(gates);
    }
    // Rows of earlier decisions are zero so far.
    let experts = gates.dim(1)?;
    let mut earlier = vec![0f32; gates.elem_count()];
    sequences.spread(&vec![0f32; sequences.len() * experts], experts, &mut earlier);
    let earlier = Tensor::from_vec(earlier, gates.shape(), h.device())?;
    gates + earlier
}

/// The same where every row of h decides for itself.
fn portable_each(
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

/// Portable body: `z = (R h + b) / T`, or its size, `[tokens, choices]`.
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
    let logits = match config.score {
        Score::Linear => logits,
        Score::Absolute => logits.abs()?,
    };
    logits / f64::from(config.temperature)
}

/// Portable body: `scale · Σ −log softmax(z)[label]` over the tokens, a scalar.
pub(crate) fn portable_label_loss(
    h: &Tensor,
    r: &Tensor,
    bias: Option<&Tensor>,
    config: &GateConfig,
    sequences: Option<Sequences<'_>>,
    labels: &[u32],
    scale: f32,
) -> candle_core::Result<Tensor> {
    let logits = match sequences {
        None => portable_logits(h, r, bias, config)?,
        Some(sequences) => {
            let decided = portable_logits(&sequences.averaging(h)?.matmul(h)?, r, bias, config)?;
            sequences.spreading(h)?.matmul(&decided)?
        }
    };
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

/// Fused body. `h [tokens, d]`, `r [choices, d]`; writes the softmax's probabilities `[tokens or sequences, choices]` (for the
/// backward) and the gates `[tokens, experts]`.
pub(crate) fn forward(
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    sequences: Option<Sequences<'_>>,
    probabilities: &mut [f32],
    gates: &mut [f32],
) {
    let Some(sequences) = sequences else { return forward_each(h, r, d, config, probabilities, gates) };
    let experts = r.len() / d - usize::from(config.null_expert);
    let mut decided = vec![0f32; sequences.len() * experts];
    forward_each(&sequences.mean(h, d), r, d, config, probabilities, &mut decided);
    sequences.spread(&decided, experts, gates);
}

/// The same where every row of h decides for itself.
fn forward_each(
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

/// Fused body: `out [tokens, choices] = h Rᵀ / T`, or its size.
fn logits(h: &[f32], r: &[f32], d: usize, config: &GateConfig, out: &mut [f32]) {
    product(h, r, d, out);
    let score = |z: f32| match config.score {
        Score::Linear => z / config.temperature,
        Score::Absolute => z.abs() / config.temperature,
    };
    out.iter_mut().for_each(|z| *z = score(*z));
}

/// `out [tokens, choices] = h Rᵀ`.
fn product(h: &[f32], r: &[f32], d: usize, out: &mut [f32]) {
    let (tokens, choices) = (h.len() / d, r.len() / d);
    let mut transposed = vec![0.0; r.len()];
    for (row, values) in r.chunks_exact(d).enumerate() {
        for (i, &v) in values.iter().enumerate() {
            transposed[i * choices + row] = v;
        }
    }
    gemm((tokens, choices, d), View::rows(h, d), &transposed, choices, out, choices, Accumulate::Overwrite);
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
    sequences: Option<Sequences<'_>>,
    labels: &[u32],
    scale: f32,
    (dh, dr): (&mut [f32], &mut [f32]),
) -> f32 {
    let Some(sequences) = sequences else {
        let weights = vec![scale; labels.len()];
        return label_loss_each(h, r, d, config, (labels, &weights), (dh, dr));
    };
    // A sequence's decision is that of each of its rows.
    let (mut own, mut weights) = (vec![0; sequences.len()], vec![0f32; sequences.len()]);
    sequences.deciding(|place, rows, _| {
        own[place] = labels[rows.start];
        weights[place] = scale * rows.len() as f32;
    });
    let mut dmeans = vec![0f32; sequences.len() * d];
    let means = sequences.mean(h, d);
    let loss = label_loss_each(&means, r, d, config, (&own, &weights), (&mut dmeans, dr));
    sequences.mean_backward(&dmeans, d, dh);
    loss
}

/// The same where every row of h decides for itself, with a weight for each.
fn label_loss_each(
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    (labels, weights): (&[u32], &[f32]),
    (dh, dr): (&mut [f32], &mut [f32]),
) -> f32 {
    let choices = r.len() / d;
    let mut z = vec![0f32; labels.len() * choices];
    logits(h, r, d, config, &mut z);
    let mut loss = 0f64;
    for ((z, &label), &weight) in z.chunks_exact_mut(choices).zip(labels).zip(weights) {
        let own = z[label as usize];
        loss += f64::from(weight * (softmax(z) - own));
        // d loss / d z = weight (p − [label])
        z[label as usize] -= 1.0;
        z.iter_mut().for_each(|v| *v *= weight);
    }
    logits_backward(z, h, r, d, config, dh, Some(dr));
    loss as f32
}

/// Backward of [`logits`]: from the gradient of the logits, `dz [tokens, choices]`, to those of h and R, added to `dh` and `dr`.
fn logits_backward(
    mut dz: Vec<f32>,
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    dh: &mut [f32],
    dr: Option<&mut [f32]>,
) {
    let (tokens, choices) = (h.len() / d, r.len() / d);
    dz.iter_mut().for_each(|v| *v /= config.temperature);
    if config.score == Score::Absolute {
        let mut z = vec![0f32; dz.len()];
        product(h, r, d, &mut z);
        dz.iter_mut().zip(&z).for_each(|(dz, z)| *dz *= z.signum());
    }
    gemm((tokens, d, choices), View::rows(&dz, choices), r, d, dh, d, Accumulate::Add);
    if let Some(dr) = dr {
        gemm((choices, d, tokens), View::transposed(&dz, choices), h, d, dr, d, Accumulate::Add);
    }
}

/// Backward of [`forward`]: from `dgates [tokens, experts]` to the gradient of the router's input (added to `dh`) and of R
/// (added to `dr`).
///
/// With S the kept set and g the gates: `dp_i = dg_i` on S (probability and unit), or `(dg_i − Σ_j dg_j g_j) / Σ_S p`
/// (renormalized); then the softmax's `dz = p ⊙ (dp − Σ p dp)`.
pub(crate) fn backward(
    dgates: &[f32],
    h: &[f32],
    r: &[f32],
    d: usize,
    config: &GateConfig,
    sequences: Option<Sequences<'_>>,
    probabilities: &[f32],
    dh: &mut [f32],
    dr: Option<&mut [f32]>,
) {
    let Some(sequences) = sequences else {
        return backward_each(dgates, h, r, d, config, probabilities, dh, dr);
    };
    let experts = r.len() / d - usize::from(config.null_expert);
    let means = sequences.mean(h, d);
    let mut dmeans = vec![0f32; means.len()];
    let dgates = sequences.spread_backward(dgates, experts);
    backward_each(&dgates, &means, r, d, config, probabilities, &mut dmeans, dr);
    sequences.mean_backward(&dmeans, d, dh);
}

/// The same where every row of h decides for itself.
fn backward_each(
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
            *dz = p * (*dz - mean);
        }
    }
    logits_backward(dz, h, r, d, config, dh, dr);
}
