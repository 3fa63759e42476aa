//! The processor: `mixse-kernels` over slices.

pub(crate) mod block;
pub(crate) mod buffer;
pub(crate) mod own_blocks;
