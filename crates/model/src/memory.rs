//! How much a training pass keeps for its backward, and giving memory back.

use crate::{backend::cpu::buffer, config::ModelConfig};

/// Gives memory that is only kept for being used again back to the system: between tasks, or after a model was loaded.
pub fn release() {
    buffer::release();
    mixse_kernels::memory::give_back();
}

/// Bytes that [`crate::engine::Memory::Keep`] holds from the forward to the backward of a pass of `rows` tokens: the
/// activations of every block in f32, with `ranks` the ranks of all experts on one module added up.
/// With [`crate::engine::Memory::Recompute`] it is a block's input alone, `rows · d` numbers a block.
pub fn kept_bytes(config: &ModelConfig, rows: usize, ranks: usize) -> u64 {
    let (queries, keys) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    // The input, and the stream between attention and MLP.
    let mut row = 2 * config.hidden_size;
    row += queries + 2 * keys;
    // What attention gives, and the log of its sums.
    row += queries + config.num_heads;
    row += 2 * config.intermediate_size;
    row += 7 * ranks;
    if config.qk_norm {
        row += queries + keys;
    }
    if config.post_norms {
        row += 2 * config.hidden_size;
    }
    (config.blocks.len() * rows * row * size_of::<f32>()) as u64
}
