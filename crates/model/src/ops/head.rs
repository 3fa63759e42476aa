//! The output head: final norm, logits and the loss over them, without ever holding tokens x vocabulary logits.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor, bail};
use mixse_kernels::{
    Accumulate::Overwrite,
    Packed,
    loss::{cap_logits, cross_entropy_chunk},
    matmul, matmul_transposed,
    norm::{RmsNorm, rms_norm, rms_norm_backward},
};

use super::{argument, block::FrozenWeight, frozen::FrozenMatmul, portable};
use crate::finite;

/// Rows whose logits are held at a time. The output projection is unpacked once for each chunk, so few rows are slow;
/// 128 x 49,152 f32 values are 25 MB.
const CHUNK: usize = 128;

/// The final norm and the output projection.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) norm: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) plus_one: bool,
    pub(crate) weight: std::sync::Arc<FrozenWeight>,
    pub(crate) softcap: Option<f32>,
}

/// One token to predict: the row that predicts it and its id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Row of the batch.
    pub row: usize,
    /// The next token.
    pub token: u32,
}

/// Refuses logits `[rows, vocabulary]` of some rows of a pass that are not all finite.
pub(crate) fn check_logits(logits: &[f32], vocabulary: usize, rows: &[usize]) -> crate::Result<()> {
    match finite::first_fault(logits) {
        None => Ok(()),
        Some((at, value)) => Err(crate::Error::NotFinite {
            value,
            token: (at % vocabulary.max(1)) as u32,
            row: rows.get(at / vocabulary.max(1)).copied().unwrap_or(0),
        }),
    }
}

impl Head {
    /// Width of the residual stream.
    fn d(&self) -> usize {
        self.norm.len()
    }

    fn kernel_norm(&self) -> RmsNorm<'_> {
        RmsNorm { weight: &self.norm, eps: self.eps, plus_one: self.plus_one }
    }

    pub(crate) fn final_norm(&self, x: &[f32], y: &mut [f32]) {
        rms_norm(x, x.len() / self.d(), self.kernel_norm(), y);
    }

    /// Portable body: `final norm(x) [rows, d]`.
    pub(crate) fn portable_norm(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        portable::rms_norm(x, &self.norm, self.eps, self.plus_one)
    }

    /// Portable body: logits `[rows, vocab]` of normed rows.
    pub(crate) fn portable_logits(&self, normed: &Tensor) -> candle_core::Result<Tensor> {
        let FrozenWeight::Tensor(weight) = &*self.weight else {
            bail!("the portable body needs weights held as tensors")
        };
        let logits = FrozenMatmul::apply(normed, weight)?;
        match self.softcap {
            Some(cap) => (logits / f64::from(cap))?.tanh()? * f64::from(cap),
            None => Ok(logits),
        }
    }

    /// Fused body: logits `[rows, vocab]` of normed rows `[rows, d]`.
    pub(crate) fn fused_logits(&self, normed: &[f32], logits: &mut [f32]) {
        matmul(normed, normed.len() / self.d(), self.packed(), logits, Overwrite);
        if let Some(cap) = self.softcap {
            cap_logits(logits, cap);
        }
    }

    pub(crate) fn packed(&self) -> &Packed {
        match &*self.weight {
            FrozenWeight::Packed(packed) => packed,
            FrozenWeight::Tensor(_) => unreachable!("the fused body is loaded with packed weights"),
        }
    }

    /// Portable body: `scale · Σ −log softmax(logits)[token]` over the targets, from the blocks' output `x [rows, d]`.
    pub(crate) fn portable_loss(
        &self,
        x: &Tensor,
        targets: &[Target],
        scale: f32,
    ) -> candle_core::Result<Tensor> {
        let device = x.device();
        let count = targets.len();
        let rows = Tensor::from_iter(targets.iter().map(|t| t.row as u32), device)?;
        let tokens = Tensor::from_iter(targets.iter().map(|t| t.token), device)?.reshape((count, 1))?;
        let logits = self.portable_logits(&self.portable_norm(&x.index_select(&rows, 0)?)?)?;
        let top = logits.detach().max_keepdim(D::Minus1)?;
        let log_sum = (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top)?;
        let nll = (log_sum - logits.gather(&tokens, 1)?)?.squeeze(1)?;
        nll.sum_all()? * f64::from(scale)
    }
}

/// Fused body of the loss on candle's tape. The gradient of x costs as much as the loss itself and is wanted whenever the
/// loss is on the tape, so the forward computes both.
pub(crate) struct FusedLoss {
    pub(crate) head: std::sync::Arc<Head>,
    pub(crate) targets: Vec<Target>,
    pub(crate) scale: f32,
    dx: Mutex<Option<Vec<f32>>>,
}

impl FusedLoss {
    pub(crate) fn apply(
        head: &std::sync::Arc<Head>,
        x: &Tensor,
        targets: &[Target],
        scale: f32,
    ) -> candle_core::Result<Tensor> {
        x.apply_op1(Self { head: head.clone(), targets: targets.to_vec(), scale, dx: Mutex::new(None) })
    }
}

impl CustomOp1 for FusedLoss {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = argument(x, layout)?;
        let (head, d) = (&*self.head, self.head.d());
        let vocabulary = head.packed().n();
        let mut dx = vec![0f32; x.len()];
        let mut total = 0f64;
        let mut logits = Vec::new();
        let (mut rows, mut normed, mut d_normed) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in self.targets.chunks(CHUNK) {
            let m = chunk.len();
            rows.resize(m * d, 0.0);
            for (target, row) in chunk.iter().zip(rows.chunks_exact_mut(d)) {
                row.copy_from_slice(&x[target.row * d..(target.row + 1) * d]);
            }
            normed.resize(m * d, 0.0);
            head.final_norm(&rows, &mut normed);
            logits.resize(m * vocabulary, 0.0);
            matmul(&normed, m, head.packed(), &mut logits, Overwrite);
            let tokens: Vec<u32> = chunk.iter().map(|t| t.token).collect();
            let mut losses = vec![0f32; m];
            cross_entropy_chunk(&mut logits, &tokens, head.softcap, self.scale, &mut losses);
            total += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
            d_normed.resize(m * d, 0.0);
            matmul_transposed(&logits, m, head.packed(), &mut d_normed, Overwrite);
            let mut d_rows = vec![0f32; m * d];
            rms_norm_backward(&rows, &d_normed, m, head.kernel_norm(), &mut d_rows);
            for (target, d_row) in chunk.iter().zip(d_rows.chunks_exact(d)) {
                let place = &mut dx[target.row * d..(target.row + 1) * d];
                place.iter_mut().zip(d_row).for_each(|(a, b)| *a += b);
            }
        }
        if let Ok(mut slot) = self.dx.lock() {
            *slot = Some(dx);
        }
        Ok((CpuStorage::F32(vec![(total * f64::from(self.scale)) as f32]), ().into()))
    }

    fn bwd(&self, x: &Tensor, _loss: &Tensor, d_loss: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let factor = d_loss.to_scalar::<f32>()?;
        let Some(mut dx) = self.dx.lock().ok().and_then(|mut slot| slot.take()) else {
            bail!("the loss was differentiated twice")
        };
        if factor != 1.0 {
            dx.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
