//! Little-endian bytes to f32 tensors.

use candle_core::{Device, Tensor};
use half::{bf16, f16};

use crate::Result;

pub(super) fn from_f32(bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
    collect(bytes, shape, |&b: &[u8; 4]| f32::from_le_bytes(b))
}

pub(super) fn from_f16(bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
    collect(bytes, shape, |&b: &[u8; 2]| f16::from_le_bytes(b).to_f32())
}

pub(super) fn from_bf16(bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
    collect(bytes, shape, |&b: &[u8; 2]| bf16::from_le_bytes(b).to_f32())
}

fn collect<const N: usize>(bytes: &[u8], shape: &[usize], value: impl Fn(&[u8; N]) -> f32) -> Result<Tensor> {
    let values: Vec<f32> = bytes.as_chunks::<N>().0.iter().map(value).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
