//! The fused block on candle's tape.
//!
//! A custom operation takes at most three tensors, so a block takes its input, the flat factors of its experts, and either
//! the router's R or gates that were decided before. What the backward needs stays inside the operation.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use mixse_kernels::rope::Angles;

use super::{
    argument,
    block::{BlockExperts, Gate, Ragged},
    dropout::{BlockDropout, Dropout},
    values,
};
use crate::{
    backend::cpu::block::{Activations, Attend, ExpertGrads, ExpertValues, FusedBlock, GateValues},
    expert_set::BlockLayout,
    router::{GateConfig, Granularity},
};

/// What the backward of a block finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Everything between input and output: fastest.
    Keep,
    /// Only the input; the forward is run again: least memory.
    Recompute,
}

/// Which gradients a training step asks for, besides those of a block's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of the experts' factors.
    pub experts: bool,
    /// Of the router or of given gates.
    pub gates: bool,
}

#[derive(Debug, Clone, Copy)]
enum GateKind {
    Full,
    Given,
    Routed(GateConfig, Granularity),
}

struct BlockOp {
    block: Arc<FusedBlock>,
    ragged: Arc<Ragged>,
    angles: Arc<Angles>,
    layout: Option<Arc<BlockLayout>>,
    gate: GateKind,
    dropout: Option<(Dropout, usize)>,
    memory: Memory,
    wanted: Wanted,
    saved: Mutex<Option<Activations>>,
}

/// A block over whole sequences, on the tape.
pub(crate) fn apply(
    block: &Arc<FusedBlock>,
    x: &Tensor,
    ragged: &Arc<Ragged>,
    angles: &Arc<Angles>,
    experts: Option<BlockExperts<'_>>,
    memory: Memory,
    wanted: Wanted,
) -> candle_core::Result<Tensor> {
    let dropout = experts.and_then(|e| e.dropout).map(|d| (d.pass.clone(), d.block));
    let op = |layout: Option<&Arc<BlockLayout>>, gate| BlockOp {
        block: block.clone(),
        ragged: ragged.clone(),
        angles: angles.clone(),
        layout: layout.cloned(),
        gate,
        dropout: dropout.clone(),
        memory,
        wanted,
        saved: Mutex::new(None),
    };
    match experts {
        None => x.apply_op1(op(None, GateKind::Full)),
        Some(BlockExperts { params, layout, gate, .. }) => match gate {
            Gate::Full => x.apply_op2(params, op(Some(layout), GateKind::Full)),
            Gate::Given(gates) => x.apply_op3(params, gates, op(Some(layout), GateKind::Given)),
            Gate::Routed(r, config, sequences) => {
                // Sequences are whole here, so none was decided earlier.
                let granularity =
                    if sequences.is_some() { Granularity::Sequence } else { Granularity::Token };
                x.apply_op3(params, r, op(Some(layout), GateKind::Routed(config, granularity)))
            }
        },
    }
}

impl BlockOp {
    fn experts<'a>(
        &'a self,
        params: Option<&'a [f32]>,
        third: Option<&'a [f32]>,
    ) -> Option<ExpertValues<'a>> {
        let (Some(params), Some(layout)) = (params, self.layout.as_deref()) else { return None };
        let gate = match (self.gate, third) {
            (GateKind::Given, Some(gates)) => GateValues::Given(gates),
            (GateKind::Routed(config, granularity), Some(r)) => {
                GateValues::Routed(r, config, self.ragged.sequences(granularity, &[]))
            }
            _ => GateValues::Full,
        };
        let dropout = self.dropout.as_ref().map(|(pass, block)| BlockDropout { pass, block: *block });
        Some(ExpertValues { params, layout, gate, dropout })
    }

    fn forward(&self, x: &[f32], params: Option<&[f32]>, third: Option<&[f32]>) -> (CpuStorage, Shape) {
        let mut act = Activations::default();
        let mut y = vec![0f32; x.len()];
        let attend = Attend::Whole(&self.ragged.segments);
        let experts = self.experts(params, third);
        self.block.forward(x, &self.angles, attend, experts, &mut act, &mut y);
        if self.memory == Memory::Keep
            && let Ok(mut saved) = self.saved.lock()
        {
            act.drop_scratch();
            *saved = Some(act);
        }
        (CpuStorage::F32(y), (self.ragged.rows(), self.block.spec.hidden).into())
    }

    /// Gradients of the input, the factors and the third argument.
    fn backward(
        &self,
        x: &Tensor,
        params: Option<&Tensor>,
        third: Option<&Tensor>,
        dy: &Tensor,
    ) -> candle_core::Result<[Option<Tensor>; 3]> {
        let dy = dy.contiguous()?;
        let (x_values, dy_values) = (values(x)?, values(&dy)?);
        let params_values = params.map(values).transpose()?;
        let third_values = third.map(values).transpose()?;
        let experts = self.experts(params_values.as_deref(), third_values.as_deref());
        let mut dx = vec![0f32; x_values.len()];
        let saved = self.saved.lock().ok().and_then(|mut saved| saved.take());
        let mut act = match saved {
            Some(act) => act,
            None => {
                let mut act = Activations::default();
                let attend = Attend::Whole(&self.ragged.segments);
                self.block.forward(&x_values, &self.angles, attend, experts, &mut act, &mut dx);
                act
            }
        };
        let rows = self.ragged.rows();
        let third_len = third_values.as_ref().map_or(0, |t| t.len());
        let gate_count = match self.gate {
            GateKind::Full => 0,
            GateKind::Given => third_len,
            GateKind::Routed(..) => act.gates.len(),
        };
        let wants_gates = self.wanted.gates && third.is_some();
        let mut grads = ExpertGrads {
            params: (self.wanted.experts && params.is_some())
                .then(|| vec![0f32; params_values.as_ref().map_or(0, |p| p.len())]),
            // The router's choice also depends on the block's input, so its gradient is needed whenever there is a router.
            gates: (wants_gates || matches!(self.gate, GateKind::Routed(..))).then(|| vec![0f32; gate_count]),
            router: (wants_gates && matches!(self.gate, GateKind::Routed(..))).then(|| vec![0f32; third_len]),
        };
        self.block.backward(
            &x_values,
            &self.angles,
            &self.ragged.segments,
            experts,
            &mut act,
            &dy_values,
            &mut dx,
            &mut grads,
        );
        let tensor = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        let dx = Tensor::from_vec(dx, (rows, self.block.spec.hidden), x.device())?;
        let dparams = match (grads.params, params) {
            (Some(grad), Some(params)) => Some(tensor(grad, params)?),
            _ => None,
        };
        let dthird = match (self.gate, third) {
            (GateKind::Given, Some(third)) if wants_gates => {
                grads.gates.map(|g| tensor(g, third)).transpose()?
            }
            (GateKind::Routed(..), Some(third)) => grads.router.map(|g| tensor(g, third)).transpose()?,
            _ => None,
        };
        Ok([Some(dx), dparams, dthird])
    }
}

impl CustomOp1 for BlockOp {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(argument(x, lx)?, None, None))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [dx, ..] = self.backward(x, None, None, dy)?;
        Ok(dx)
    }
}

impl CustomOp2 for BlockOp {
    fn name(&self) -> &'static str {
        "block-with-experts"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        params: &CpuStorage,
        lp: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(argument(x, lx)?, Some(argument(params, lp)?), None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dparams, _] = self.backward(x, Some(params), None, dy)?;
        Ok((dx, dparams))
    }
}

impl CustomOp3 for BlockOp {
    fn name(&self) -> &'static str {
        "block-with-routed-experts"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        params: &CpuStorage,
        lp: &Layout,
        third: &CpuStorage,
        lt: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.forward(argument(x, lx)?, Some(argument(params, lp)?), Some(argument(third, lt)?)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        third: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dparams, dthird] = self.backward(x, Some(params), Some(third), dy)?;
        Ok((dx, dparams, dthird))
    }
}
