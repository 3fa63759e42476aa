//! A GGUF file's own blocks as the kernels' packed weights, without a detour over other numbers.
//!
//! Layouts: `ggml-common.h` of <https://github.com/ggml-org/ggml>.

use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;
use mixse_kernels::packed::{Int8Group, Packed, Q4Group};

/// Weights that share a scale in packed weights.
const GROUP: usize = 32;

/// Weights of a Q4_K block.
const SUPER: usize = 256;

/// `[n, k]` blocks in 4 bits (Q4_0, Q4_1, Q4_K) or 8 (Q8_0), kept as they are; `None` for other types, and for rows that
/// are no whole number of groups. Q4_K's scales and minima are products of two numbers, here rounded to f16.
pub(crate) fn pack(blocks: &QTensor) -> candle_core::Result<Option<Packed>> {
    let (n, k) = blocks.shape().dims2()?;
    let data = blocks.data()?;
    let (bytes, weights) = (blocks.dtype().type_size(), blocks.dtype().block_size());
    if !k.is_multiple_of(weights) || data.len() != n * k / weights * bytes {
        return Ok(None);
    }
    // Group `at` of a row, and the block that holds it.
    let block = |row: usize, at: usize| &data[(row * k + at * GROUP) / weights * bytes..][..bytes];
    let q4 = |group: fn(&[u8], usize) -> Q4Group| {
        Some(Packed::from_q4(n, k, |row, at| group(block(row, at), at % (SUPER / GROUP))))
    };
    Ok(match blocks.dtype() {
        GgmlDType::Q4_0 => q4(|block, _| {
            let scale = half(block, 0);
            // Eight steps are exact in f16.
            let minimum = f16::from_f32(-8.0 * scale.to_f32());
            Q4Group { quants: halves(&block[2..]), scale, minimum }
        }),
        GgmlDType::Q4_1 => q4(|block, _| Q4Group {
            quants: halves(&block[4..]),
            scale: half(block, 0),
            minimum: half(block, 2),
        }),
        GgmlDType::Q4K => q4(|block, at| {
            let (scale, minimum) = six_bit_pair(&block[4..16], at);
            let part = &block[16 + at / 2 * GROUP..][..GROUP];
            Q4Group {
                quants: std::array::from_fn(|i| part[i] >> (4 * (at % 2)) & 15),
                scale: f16::from_f32(half(block, 0).to_f32() * scale),
                minimum: f16::from_f32(-half(block, 2).to_f32() * minimum),
            }
        }),
        GgmlDType::Q8_0 => Some(Packed::from_int8(n, k, |row, at| {
            let block = block(row, at);
            Int8Group { quants: std::array::from_fn(|i| block[2 + i] as i8), scale: half(block, 0) }
        })),
        _ => None,
    })
}

fn half(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// The first 16 values are the lower halves of 16 bytes, the others the upper ones.
fn halves(bytes: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// Scale and minimum `at` of the eight that Q4_K packs into twelve bytes: the first four have six bits of a byte each,
/// of the others the upper two bits lie above those.
fn six_bit_pair(packed: &[u8], at: usize) -> (f32, f32) {
    let (scale, minimum) = if at < 4 {
        (packed[at] & 63, packed[at + 4] & 63)
    } else {
        (packed[at + 4] & 15 | packed[at - 4] >> 6 << 4, packed[at + 4] >> 4 | packed[at] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, quantized::QStorage};

    use super::*;

    /// Bytes of any kind, except that the halves of each block stay small and finite.
    fn blocks(count: usize, len: usize, halves: &[usize]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..count * len).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (i, block) in bytes.chunks_exact_mut(len).enumerate() {
            for (j, &at) in halves.iter().enumerate() {
                let value = f16::from_f32(((i * 7 + j * 5) % 13) as f32 / 100.0 - 0.06);
                block[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn packed_weights_are_those_of_the_blocks() {
        const N: usize = 35;
        const K: usize = 512;
        for (dtype, halves, bound) in [
            (GgmlDType::Q4_0, &[0][..], 0.0),
            (GgmlDType::Q4_1, &[0, 2], 1e-6),
            // Two products rounded to f16: 2^-12 of a scale up to 0.06 · 63, 15 times, and of a minimum.
            (GgmlDType::Q4K, &[0, 2], 2e-2),
            (GgmlDType::Q8_0, &[0], 0.0),
        ] {
            let bytes = blocks(N * K / dtype.block_size(), dtype.type_size(), halves);
            let storage = QStorage::from_data(bytes.into(), &Device::Cpu, dtype).unwrap();
            let blocks = QTensor::new(storage, (N, K)).unwrap();
            let expected: Vec<Vec<f32>> = blocks.dequantize(&Device::Cpu).unwrap().to_vec2().unwrap();
            let packed = pack(&blocks).unwrap().unwrap();
            let mut row = vec![0.0; K];
            for (i, expected) in expected.iter().enumerate() {
                packed.row(i, &mut row);
                for (j, (value, expected)) in row.iter().zip(expected).enumerate() {
                    let far = (value - expected).abs() > bound;
                    assert!(!far, "{dtype:?} [{i}, {j}]: {value} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn other_types_are_left_to_others() {
        let zeros = QStorage::from_data(vec![0; 210].into(), &Device::Cpu, GgmlDType::Q6K).unwrap();
        assert!(pack(&QTensor::new(zeros, (1, 256)).unwrap()).unwrap().is_none());
    }
}
