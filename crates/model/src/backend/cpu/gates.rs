//! From what the router reads to the gates of the experts, and back.

use mixse_kernels::{Accumulate, View, gemm};

use crate::{
    backend::Sequences,
    router::{GateConfig, GateScale, Score},
};

impl Sequences<'_> {
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
    pub(crate) fn spread(&self, decided: &[f32], experts: usize, gates: &mut [f32]) {
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
}

/// Calls `keep` with the index of each of the `k` largest values; the lower index wins among equals.
pub(crate) fn select_top(values: &[f32], k: usize, mut keep: impl FnMut(usize)) {
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

/// A router's map: logits are `(R h + b) / T`, or their size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Map<'a> {
    /// R `[choices, d]`.
    pub(crate) r: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) d: usize,
    pub(crate) config: GateConfig,
}

/// Where gradients of a map and of its input are added; `None`: not wanted.
pub(crate) struct MapGradients<'a> {
    pub(crate) dh: Option<&'a mut [f32]>,
    pub(crate) dr: Option<&'a mut [f32]>,
    pub(crate) db: Option<&'a mut [f32]>,
}

impl Map<'_> {
    pub(crate) fn choices(&self) -> usize {
        self.r.len() / self.d
    }

    pub(crate) fn experts(&self) -> usize {
        self.choices() - usize::from(self.config.null_expert)
    }

    /// Rows of an input.
    pub(crate) fn rows(&self, h: &[f32]) -> usize {
        h.len() / self.d
    }

    /// `out [tokens, choices] = R h + b`.
    fn product(&self, h: &[f32], out: &mut [f32]) {
        let (d, choices) = (self.d, self.choices());
        let mut transposed = vec![0.0; self.r.len()];
        for (row, values) in self.r.chunks_exact(d).enumerate() {
            for (i, &v) in values.iter().enumerate() {
                transposed[i * choices + row] = v;
            }
        }
        let sizes = (self.rows(h), choices, d);
        gemm(sizes, View::rows(h, d), &transposed, choices, out, choices, Accumulate::Overwrite);
        if let Some(bias) = self.bias {
            out.chunks_exact_mut(choices).for_each(|z| z.iter_mut().zip(bias).for_each(|(z, b)| *z += b));
        }
    }

    /// `out [tokens, choices]`.
    fn logits(&self, h: &[f32], out: &mut [f32]) {
        self.product(h, out);
        let score = |z: f32| match self.config.score {
            Score::Linear => z / self.config.temperature,
            Score::Absolute => z.abs() / self.config.temperature,
        };
        out.iter_mut().for_each(|z| *z = score(*z));
    }

    /// Backward of [`Map::logits`] from `dz [tokens, choices]`.
    fn logits_backward(&self, mut dz: Vec<f32>, h: &[f32], gradients: MapGradients<'_>) {
        let (tokens, choices, d) = (self.rows(h), self.choices(), self.d);
        dz.iter_mut().for_each(|v| *v /= self.config.temperature);
        if self.config.score == Score::Absolute {
            let mut z = vec![0f32; dz.len()];
            self.product(h, &mut z);
            dz.iter_mut().zip(&z).for_each(|(dz, z)| *dz *= z.signum());
        }
        if let Some(dh) = gradients.dh {
            gemm((tokens, d, choices), View::rows(&dz, choices), self.r, d, dh, d, Accumulate::Add);
        }
        if let Some(dr) = gradients.dr {
            gemm((choices, d, tokens), View::transposed(&dz, choices), h, d, dr, d, Accumulate::Add);
        }
        if let Some(db) = gradients.db {
            dz.chunks_exact(choices).for_each(|dz| db.iter_mut().zip(dz).for_each(|(db, dz)| *db += dz));
        }
    }
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

/// `h [tokens, d]`; writes the softmax's probabilities `[tokens or sequences, choices]` (for the backward) and the gates
/// `[tokens, experts]`.
pub(crate) fn forward(
    h: &[f32],
    map: Map<'_>,
    sequences: Option<Sequences<'_>>,
    probabilities: &mut [f32],
    gates: &mut [f32],
) {
    let Some(sequences) = sequences else { return forward_each(h, map, probabilities, gates) };
    let mut decided = vec![0f32; sequences.len() * map.experts()];
    forward_each(&sequences.mean(h, map.d), map, probabilities, &mut decided);
    sequences.spread(&decided, map.experts(), gates);
}

/// The same where every row of h decides for itself.
fn forward_each(h: &[f32], map: Map<'_>, probabilities: &mut [f32], gates: &mut [f32]) {
    let (choices, experts, config) = (map.choices(), map.experts(), &map.config);
    map.logits(h, probabilities);
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

/// `scale · Σ −log softmax(z)[label]` over the rows. Adds its gradients.
pub(crate) fn label_loss(
    h: &[f32],
    map: Map<'_>,
    sequences: Option<Sequences<'_>>,
    labels: &[u32],
    scale: f32,
    gradients: MapGradients<'_>,
) -> f32 {
    let Some(sequences) = sequences else {
        let weights = vec![scale; labels.len()];
        return label_loss_each(h, map, (labels, &weights), gradients);
    };
    // A sequence's decision is that of each of its rows.
    let (mut own, mut weights) = (vec![0; sequences.len()], vec![0f32; sequences.len()]);
    sequences.deciding(|place, rows, _| {
        own[place] = labels[rows.start];
        weights[place] = scale * rows.len() as f32;
    });
    let mut dmeans = vec![0f32; sequences.len() * map.d];
    let MapGradients { dh, dr, db } = gradients;
    let means_gradients = MapGradients { dh: Some(&mut dmeans), dr, db };
    let loss = label_loss_each(&sequences.mean(h, map.d), map, (&own, &weights), means_gradients);
    if let Some(dh) = dh {
        sequences.mean_backward(&dmeans, map.d, dh);
    }
    loss
}

/// The same where every row of h decides for itself, with a weight for each.
fn label_loss_each(
    h: &[f32],
    map: Map<'_>,
    (labels, weights): (&[u32], &[f32]),
    gradients: MapGradients<'_>,
) -> f32 {
    let choices = map.choices();
    let mut z = vec![0f32; labels.len() * choices];
    map.logits(h, &mut z);
    let mut loss = 0f64;
    for ((z, &label), &weight) in z.chunks_exact_mut(choices).zip(labels).zip(weights) {
        let own = z[label as usize];
        loss += f64::from(weight * (softmax(z) - own));
        // d loss / d z = weight (p − [label])
        z[label as usize] -= 1.0;
        z.iter_mut().for_each(|v| *v *= weight);
    }
    map.logits_backward(z, h, gradients);
    loss as f32
}

/// Backward of [`forward`]: from `dgates [tokens, experts]` to the gradients of the router's input and map.
///
/// With S the kept set and g the gates: `dp_i = dg_i` on S (probability and unit), or `(dg_i − Σ_j dg_j g_j) / Σ_S p`
/// (renormalized); then the softmax's `dz = p ⊙ (dp − Σ p dp)`.
pub(crate) fn backward(
    dgates: &[f32],
    h: &[f32],
    map: Map<'_>,
    sequences: Option<Sequences<'_>>,
    probabilities: &[f32],
    gradients: MapGradients<'_>,
) {
    let Some(sequences) = sequences else {
        return backward_each(dgates, h, map, probabilities, gradients);
    };
    let means = sequences.mean(h, map.d);
    let mut dmeans = vec![0f32; means.len()];
    let dgates = sequences.spread_backward(dgates, map.experts());
    let MapGradients { dh, dr, db } = gradients;
    let means_gradients = MapGradients { dh: dh.is_some().then_some(&mut dmeans[..]), dr, db };
    backward_each(&dgates, &means, map, probabilities, means_gradients);
    if let Some(dh) = dh {
        sequences.mean_backward(&dmeans, map.d, dh);
    }
}

/// The same where every row of h decides for itself.
fn backward_each(
    dgates: &[f32],
    h: &[f32],
    map: Map<'_>,
    probabilities: &[f32],
    gradients: MapGradients<'_>,
) {
    let (choices, experts, config) = (map.choices(), map.experts(), &map.config);
    let mut dz = vec![0f32; map.rows(h) * choices];
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
    map.logits_backward(dz, h, gradients);
}
