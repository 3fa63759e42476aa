//! What llama.cpp's converter changed on the way from Hugging Face's tensors to a GGUF file, to undo it.
//!
//! Source: `convert_hf_to_gguf.py` in <https://github.com/ggml-org/llama.cpp>.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};

use super::{gguf::Gguf, values};
use crate::{
    Result,
    config::{Architecture, ModelConfig},
};

/// The divisors of the rotary embedding's frequencies, which the configuration reads.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The GGUF name of the tensor that Hugging Face calls `name`.
pub(super) fn gguf_name(config: &ModelConfig, name: &str) -> Option<String> {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Some(whole.to_owned());
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let module = match module {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        // Gemma 2 and 3 use Hugging Face's name of the norm before the MLP for the one after the attention.
        "post_attention_layernorm" if config.post_norms => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        _ => return None,
    };
    Some(format!("blk.{block}.{module}.{parameter}"))
}

/// A tensor's bytes with its rows in Hugging Face's order.
struct Rows {
    dtype: GgmlDType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Rows {
    /// A row is a whole number of blocks in every type, so that rows can change places as they are.
    fn read(gguf: &Gguf, config: &ModelConfig, name: &str) -> Result<Option<Self>> {
        let Some(info) = gguf_name(config, name).and_then(|name| gguf.tensor(&name)) else { return Ok(None) };
        let mut bytes = gguf.read(info)?;
        if let Some(heads) = permuted_heads(config, name) {
            bytes = unpermute_rows(&bytes, info.shape.first().copied().unwrap_or(1), heads);
        }
        Ok(Some(Self { dtype: info.dtype, shape: info.shape.clone(), bytes }))
    }

    /// The first block with a scale that is not finite.
    fn first_fault(&self) -> Option<usize> {
        let offsets = scales(self.dtype);
        self.bytes.chunks_exact(self.dtype.type_size()).position(|block| {
            offsets.iter().any(|&at| !half::f16::from_le_bytes([block[at], block[at + 1]]).is_finite())
        })
    }

    fn blocks(self) -> Result<QTensor> {
        Ok(QTensor::new(QStorage::from_data(self.bytes.into(), &Device::Cpu, self.dtype)?, self.shape)?)
    }
}

/// The tensor in Hugging Face's convention, f32.
pub(super) fn tensor(gguf: &Gguf, config: &ModelConfig, name: &str) -> Result<Option<Tensor>> {
    let Some(rows) = Rows::read(gguf, config, name)? else { return Ok(None) };
    let tensor = match rows.dtype {
        GgmlDType::F32 => values::from_f32(&rows.bytes, &rows.shape)?,
        GgmlDType::F16 => values::from_f16(&rows.bytes, &rows.shape)?,
        GgmlDType::BF16 => values::from_bf16(&rows.bytes, &rows.shape)?,
        _ => rows.blocks()?.dequantize(&Device::Cpu)?,
    };
    Ok(Some(if norm_has_one_added(config, name) { (tensor - 1.0)? } else { tensor }))
}

/// The tensor's own blocks in Hugging Face's order of rows, if it is stored in blocks.
pub(super) fn quantized(gguf: &Gguf, config: &ModelConfig, name: &str) -> Result<Option<QTensor>> {
    match Rows::read(gguf, config, name)? {
        None | Some(Rows { dtype: GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16, .. }) => Ok(None),
        Some(rows) => {
            if let Some(block) = rows.first_fault() {
                let columns = rows.shape.last().copied().unwrap_or(1);
                let first = block * rows.dtype.block_size();
                return Err(gguf.invalid(format!(
                    "tensor {name} has a block whose scale is not finite, at [{}, {}]",
                    first / columns.max(1),
                    first % columns.max(1)
                )));
            }
            rows.blocks().map(Some)
        }
    }
}

/// Where a block keeps the 16-bit numbers by which its integers are multiplied and moved (`ggml-common.h`).
fn scales(dtype: GgmlDType) -> &'static [usize] {
    match dtype {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q6K => &[208],
        _ => &[],
    }
}

/// Norm weights of the Gemma family are stored with the 1 added that their norms add anyway.
fn norm_has_one_added(config: &ModelConfig, name: &str) -> bool {
    config.norm_plus_one && name.ends_with("norm.weight")
}

/// The number of heads whose rows were reordered: q and k of the Llama family, for llama.cpp's rotary embedding of
/// neighbouring pairs.
fn permuted_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    match config.architecture {
        Architecture::Llama | Architecture::Mistral if name.contains(".q_proj.") => Some(config.num_heads),
        Architecture::Llama | Architecture::Mistral if name.contains(".k_proj.") => Some(config.num_kv_heads),
        _ => None,
    }
}

/// The file has each head's rows as (pair, half), Hugging Face as (half, pair).
fn unpermute_rows(bytes: &[u8], row_count: usize, heads: usize) -> Vec<u8> {
    let row = bytes.len() / row_count.max(1);
    let half = row_count / heads / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for which in 0..2 {
            for pair in 0..half {
                let start = (head * half * 2 + pair * 2 + which) * row;
                out.extend_from_slice(&bytes[start..start + row]);
            }
        }
    }
    out
}
