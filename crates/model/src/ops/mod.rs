//! The operations of a forward pass that matter for speed, each with two bodies: a *portable* one composed of candle
//! operations (every device, differentiable, the reference) and a *fused* one for the CPU (a candle `CustomOp` with its own
//! backward that calls `mixse-kernels`). Tests hold the two against each other, values and gradients.
//!
//! A frozen weight is never on the tape: [`frozen::FrozenMatmul`] and the fused bodies own it and give back only the
//! gradient of their input.

pub(crate) mod block;
pub(crate) mod block_op;
pub(crate) mod domain_loss;
pub(crate) mod dropout;
pub(crate) mod frozen;
pub(crate) mod gates;
pub(crate) mod head;
pub(crate) mod portable;

use std::{cell::Cell, ops::Deref, ops::Range};

use candle_core::{CpuStorage, Layout, Storage, StorageRef, Tensor, bail};

/// The values of a contiguous f32 CPU tensor, borrowed.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            // `values` lets no other storage through.
            _ => &[],
        }
    }
}

thread_local! {
    static ANY_DEVICE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread computes what must work on every device: [`values`] is a bug then, and with debug assertions
/// it panics. On the CPU, where tests run, nothing else would show it.
pub(crate) struct AnyDevice {
    before: bool,
}

impl AnyDevice {
    pub(crate) fn when(portable: bool) -> Self {
        Self { before: ANY_DEVICE.replace(portable) }
    }
}

impl Drop for AnyDevice {
    fn drop(&mut self) {
        ANY_DEVICE.set(self.before);
    }
}

/// Borrows the values of a contiguous f32 CPU tensor: for the fused bodies alone.
pub(crate) fn values(tensor: &Tensor) -> candle_core::Result<Values<'_>> {
    debug_assert!(!ANY_DEVICE.get(), "a pass for every device looks into a tensor as if it were on the CPU");
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fused operation needs contiguous values, got {:?}", layout.shape())
    };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("a fused operation needs f32 values on the CPU")
    }
    Ok(Values { storage, range: start..end })
}

/// The values behind an argument of a custom operation.
pub(crate) fn argument<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("a fused operation needs f32 values") };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fused operation needs contiguous values, got {:?}", layout.shape())
    };
    Ok(&values[start..end])
}
