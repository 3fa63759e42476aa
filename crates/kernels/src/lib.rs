//! CPU kernels: slices in, slices out, row-major f32 activations.
//!
//! One file a topic: the product of activations with frozen weights ([`packed`], [`gemm`]), the narrow products of LoRA
//! experts ([`lora`]), and what stands between them. Start with [`packed`] and `gemm/tile.rs`, the one inner loop of
//! all products.
//!
//! Invariants:
//! - Slices have the documented sizes; a wrong size is a programmer's error and panics before anything is read.
//! - Results depend on the operands and the instruction set ([`isa`]), not on the number of threads ([`pool`]), nor on
//!   which other rows are in the batch.
//! - Nothing here allocates for the size of a sequence squared, and nothing holds a second copy of a weight.

pub mod adamw;
pub mod attention;
pub mod ceilings;
pub mod check;
pub mod gemm;
pub mod isa;
mod lanes;
pub mod lora;
pub mod loss;
pub mod memory;
pub mod mlp;
pub mod norm;
pub mod packed;
pub mod pool;
pub mod rope;
pub mod sample;
mod scratch;
#[cfg(test)]
mod testing;
mod vexp;

pub use adamw::{AdamW, adamw};
pub use attention::{
    AttentionGradients, AttentionShape, KvPool, KvPoolMut, KvStorage, PagedSegment, Segment, attention,
    attention_backward, attention_paged, store_paged,
};
pub use gemm::{Accumulate, View, gemm, matmul, matmul_transposed};
pub use isa::Isa;
pub use lora::{Coverage, Lora, LoraGradients, Ranks, lora_backward, lora_forward};
pub use loss::{argmax, cap_logits, cross_entropy_chunk, log_softmax_at};
pub use mlp::{Activation, add_into, gated, gated_backward, gated_mlp, sum};
pub use norm::{RmsNorm, rms_norm, rms_norm_backward};
pub use packed::{Packed, Storage};
pub use rope::{Angles, Direction, rope, rope_rows};
pub use sample::{Sampling, sample};
