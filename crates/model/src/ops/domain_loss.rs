//! The router's cross-entropy against known domains, from a block's input: fused body on candle's tape.
//!
//! `scale · Σ −log softmax(R norm(x) / T)[label]`. As with the loss of the head, the gradients cost as much as the value and
//! are wanted whenever it is on the tape, so the forward computes both. The portable body is [`gates::portable_label_loss`]
//! after the block's norm.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, bail};

use super::{argument, block::Ragged, gates};
use crate::backend::cpu::block::FusedBlock;
use crate::router::{GateConfig, Granularity, Router};

/// A scalar, from the block's input `x [rows, d]` and the router's R `[choices, d]` for the block with this index.
pub(crate) fn fused(
    (index, block): (usize, &Arc<FusedBlock>),
    x: &Tensor,
    ragged: &Arc<Ragged>,
    router: &Router,
    labels: &[u32],
    scale: f32,
) -> candle_core::Result<Tensor> {
    let op = DomainLoss {
        block: block.clone(),
        ragged: ragged.clone(),
        config: router.config.gate,
        granularity: router.config.granularity,
        labels: labels.to_vec(),
        scale,
        grads: Mutex::new(None),
    };
    x.apply_op2(router.weight(index), op)
}

struct DomainLoss {
    block: Arc<FusedBlock>,
    ragged: Arc<Ragged>,
    config: GateConfig,
    granularity: Granularity,
    labels: Vec<u32>,
    scale: f32,
    /// Of x and R.
    grads: Mutex<Option<(Vec<f32>, Vec<f32>)>>,
}

impl CustomOp2 for DomainLoss {
    fn name(&self) -> &'static str {
        "domain-loss"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, r) = (argument(x, lx)?, argument(r, lr)?);
        let mut h = vec![0f32; x.len()];
        self.block.attention_norm(x, &mut h);
        let (mut dh, mut dr) = (vec![0f32; x.len()], vec![0f32; r.len()]);
        let d = self.block.spec.hidden;
        let sequences = self.ragged.sequences(self.granularity, &[]);
        let grads = (&mut dh[..], &mut dr[..]);
        let loss = gates::label_loss(&h, r, d, &self.config, sequences, &self.labels, self.scale, grads);
        // The normed input is not needed any more; its place takes the gradient of x.
        self.block.attention_norm_backward(x, &dh, &mut h);
        if let Ok(mut slot) = self.grads.lock() {
            *slot = Some((h, dr));
        }
        Ok((CpuStorage::F32(vec![loss]), ().into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        r: &Tensor,
        _loss: &Tensor,
        d_loss: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = d_loss.to_scalar::<f32>()?;
        let Some((mut dx, mut dr)) = self.grads.lock().ok().and_then(|mut slot| slot.take()) else {
            bail!("the domain loss was differentiated twice")
        };
        if factor != 1.0 {
            dx.iter_mut().chain(&mut dr).for_each(|v| *v *= factor);
        }
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok((Some(tensor(dx, x)?), Some(tensor(dr, r)?)))
    }
}
