//! Quantised blocks against their definition, element by element (`ggml-quants.c` of llama.cpp).

use half::f16;

use super::gguf::{saved, values};
use mixse_testing::tiny;

/// A block type: its number in `ggml.h`, its bytes, its values, and the value at an index of a block.
type Kind = (u32, usize, usize, fn(&[u8], usize) -> f32);

const KINDS: [Kind; 10] = [
    (2, 18, 32, |b, i| half(b, 0) * (nibble(&b[2..], i % 16, i / 16) - 8.0)),
    (3, 20, 32, |b, i| half(b, 0) * nibble(&b[4..], i % 16, i / 16) + half(b, 2)),
    (6, 22, 32, |b, i| {
        half(b, 0) * (nibble(&b[6..], i % 16, i / 16) + 16.0 * bit(&b[2..], i / 8, i % 8) - 16.0)
    }),
    (7, 24, 32, |b, i| {
        half(b, 0) * (nibble(&b[8..], i % 16, i / 16) + 16.0 * bit(&b[4..], i / 8, i % 8)) + half(b, 2)
    }),
    (8, 34, 32, |b, i| half(b, 0) * f32::from(b[2 + i] as i8)),
    (10, 84, 256, q2_k),
    (11, 110, 256, q3_k),
    (12, 144, 256, |b, i| {
        let (scale, min) = six_bit_pair(&b[4..16], i / 32);
        half(b, 0) * scale * nibble(&b[16 + i / 64 * 32..], i % 32, i / 32 % 2) - half(b, 2) * min
    }),
    (13, 176, 256, |b, i| {
        let (scale, min) = six_bit_pair(&b[4..16], i / 32);
        let value = nibble(&b[48 + i / 64 * 32..], i % 32, i / 32 % 2) + 16.0 * bit(&b[16..], i % 32, i / 32);
        half(b, 0) * scale * value - half(b, 2) * min
    }),
    (14, 210, 256, q6_k),
];

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn nibble(bytes: &[u8], at: usize, high: usize) -> f32 {
    f32::from(bytes[at] >> (4 * high) & 15)
}

fn bit(bytes: &[u8], at: usize, shift: usize) -> f32 {
    f32::from(bytes[at] >> shift & 1)
}

fn two_bits(bytes: &[u8], at: usize, pair: usize) -> u8 {
    bytes[at] >> (2 * pair) & 3
}

/// Scale and minimum number `j` of the eight that Q4_K and Q5_K pack into twelve bytes.
fn six_bit_pair(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

fn q2_k(b: &[u8], i: usize) -> f32 {
    let (scales, quants) = (&b[..16], &b[16..80]);
    let value = two_bits(quants, i / 128 * 32 + i % 32, i % 128 / 32);
    let scale = scales[i / 16];
    half(b, 80) * f32::from(scale & 15) * f32::from(value) - half(b, 82) * f32::from(scale >> 4)
}

fn q3_k(b: &[u8], i: usize) -> f32 {
    let (mask, quants, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let value =
        f32::from(two_bits(quants, i / 128 * 32 + i % 32, i % 128 / 32)) + 4.0 * bit(mask, i % 32, i / 32);
    let group = i / 16;
    let scale = scales[group % 8] >> (group / 8 * 4) & 15 | two_bits(scales, 8 + group % 4, group / 4) << 4;
    half(b, 108) * (f32::from(scale) - 32.0) * (value - 4.0)
}

fn q6_k(b: &[u8], i: usize) -> f32 {
    let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
    let low = nibble(low, part * 64 + quarter % 2 * 32 + l, quarter / 2);
    let value = low + 16.0 * f32::from(two_bits(high, part * 32 + l, quarter)) - 32.0;
    half(b, 208) * f32::from(scales[i / 16] as i8) * value
}

/// Bytes of any kind, except that the halves (places that are even numbers in every type) stay small and finite.
fn block(kind: u32, len: usize, seed: &mut u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*seed >> 24) as u8
        })
        .collect();
    let halves: &[usize] = match kind {
        2 | 6 | 8 => &[0],
        3 | 7 | 12 | 13 => &[0, 2],
        10 => &[80, 82],
        11 => &[108],
        _ => &[208],
    };
    for &at in halves {
        let value = f16::from_f32((f32::from(bytes[at]) - 127.0) / 512.0);
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn every_block_type_has_the_values_of_its_definition() {
    const NAME: &str = "model.layers.1.mlp.down_proj.weight";
    for (kind, len, count, value) in KINDS {
        let mut file = tiny::gguf("llama");
        let mut seed = kind;
        let blocks: Vec<Vec<u8>> =
            (0..tiny::HIDDEN * tiny::WIDTH / count).map(|_| block(kind, len, &mut seed)).collect();
        let stored = file.tensor("blk.1.ffn_down.weight");
        (stored.kind, stored.bytes) = (kind, blocks.concat());
        let (_directory, checkpoint) = saved(&file);
        let expected: Vec<f32> =
            blocks.iter().flat_map(|block| (0..count).map(|i| value(block, i))).collect();
        let (shape, read) = values(&checkpoint, NAME);
        assert_eq!(shape, [tiny::HIDDEN, tiny::WIDTH]);
        for (i, (read, expected)) in read.iter().zip(&expected).enumerate() {
            assert!(
                (read - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "type {kind} [{i}]: {read} {expected}"
            );
        }
        let blocks = checkpoint.quantized(NAME).unwrap().unwrap();
        let again = blocks.dequantize(&candle_core::Device::Cpu).unwrap().flatten_all().unwrap();
        assert_eq!(again.to_vec1::<f32>().unwrap(), read);
    }
}

/// Rows of blocks change places as rows of numbers do: a q projection in Q8_0 is that in F32, permuted or not.
#[test]
fn permuted_rows_of_blocks_are_put_back() {
    const NAME: &str = "model.layers.0.self_attn.q_proj.weight";
    let mut file = tiny::gguf("llama");
    let stored = file.tensor("blk.0.attn_q.weight");
    // One block a row: the scale 1/64 and whole numbers give back the tiny model's values.
    let rows = stored.bytes.chunks(4 * tiny::HIDDEN).map(|row| {
        let numbers = row.as_chunks::<4>().0.iter().map(|&b| (f32::from_le_bytes(b) * 64.0) as i8 as u8);
        f16::from_f32(1.0 / 64.0).to_le_bytes().into_iter().chain(numbers).collect::<Vec<u8>>()
    });
    (stored.kind, stored.bytes) = (8, rows.collect::<Vec<_>>().concat());
    let (_directory, checkpoint) = saved(&file);
    assert_eq!(values(&checkpoint, NAME).1, tiny::tensors("llama")[NAME].2);
    assert!(checkpoint.quantized(NAME).unwrap().is_some());
    assert!(checkpoint.quantized("model.norm.weight").unwrap().is_none());
}

#[test]
fn half_precision_tensors_are_read() {
    const NAME: &str = "model.layers.0.mlp.up_proj.weight";
    for (kind, convert) in [
        (1, (|x| f16::from_f32(x).to_le_bytes()) as fn(f32) -> [u8; 2]),
        (30, |x| half::bf16::from_f32(x).to_le_bytes()),
    ] {
        let mut file = tiny::gguf("qwen3");
        let expected = &tiny::tensors("qwen3")[NAME].2;
        let stored = file.tensor("blk.0.ffn_up.weight");
        (stored.kind, stored.bytes) = (kind, expected.iter().flat_map(|&x| convert(x)).collect());
        let (_directory, checkpoint) = saved(&file);
        assert_eq!(&values(&checkpoint, NAME).1, expected);
    }
}
