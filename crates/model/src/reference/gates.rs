//! From what the router reads to the gates of the experts, on candle's tape.

use candle_core::{D, DType, Tensor};

use super::Reference;
use crate::{
    backend::{Routing, Sequences, cpu::gates::select_top},
    router::{GateConfig, GateScale, Score},
};

impl Sequences<'_> {
    /// The means as a product: `[sequences, rows]`.
    pub(super) fn averaging(&self, like: &Tensor) -> candle_core::Result<Tensor> {
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

/// R as a matrix.
fn map(routing: Routing<'_, Reference>) -> candle_core::Result<Tensor> {
    routing.weight.reshape((routing.choices, ()))
}

/// Gates `[tokens, experts]` from the router's input `h [tokens, d]`, R `[choices, d]` and the bias.
pub(super) fn gates(h: &Tensor, routing: Routing<'_, Reference>) -> candle_core::Result<Tensor> {
    let Routing { bias, config, sequences, .. } = routing;
    let (r, config) = (&map(routing)?, &config);
    let Some(sequences) = sequences else { return each(h, r, bias, config) };
    let decided = each(&sequences.averaging(h)?.matmul(h)?, r, bias, config)?;
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
fn each(h: &Tensor, r: &Tensor, bias: Option<&Tensor>, config: &GateConfig) -> candle_core::Result<Tensor> {
    let logits = logits(h, r, bias, config)?;
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

/// `z = (R h + b) / T`, or its size, `[tokens, choices]`.
fn logits(h: &Tensor, r: &Tensor, bias: Option<&Tensor>, config: &GateConfig) -> candle_core::Result<Tensor> {
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

/// `scale · Σ −log softmax(z)[label]` over the tokens, a scalar.
pub(super) fn label_loss(
    h: &Tensor,
    routing: Routing<'_, Reference>,
    labels: &[u32],
    scale: f32,
) -> candle_core::Result<Tensor> {
    let Routing { bias, config, sequences, .. } = routing;
    let (r, config) = (&map(routing)?, &config);
    let logits = match sequences {
        None => logits(h, r, bias, config)?,
        Some(sequences) => {
            let decided = logits(&sequences.averaging(h)?.matmul(h)?, r, bias, config)?;
            sequences.spreading(h)?.matmul(&decided)?
        }
    };
    let labels = Tensor::from_slice(labels, (labels.len(), 1), h.device())?;
    let top = logits.detach().max_keepdim(D::Minus1)?;
    let log_sum = (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top)?;
    (log_sum - logits.gather(&labels, 1)?)?.sum_all()? * f64::from(scale)
}
