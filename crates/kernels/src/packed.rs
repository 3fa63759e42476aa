//! Frozen weights, kept once in the layout that the tile kernel reads, for both directions of a product.
//!
//! A weight matrix W of n outputs and k inputs is cut into panels of 32 outputs. A panel holds its 32 columns side by
//! side for one k after the other, so that a product reads it from front to back:
//!
//! | storage | panel | bytes a weight |
//! |---|---|---|
//! | `F32` | `[k][32]` f32 | 4 |
//! | `Bf16` | `[k / 2][32]` pairs of bf16 (k rounded up to 32) | 2 |
//! | `Int8` | for each 32 k: 32 f16 scales, `[8][32]` words of four int8 | 1.0625 |
//! | `Q4` | for each 32 k: 32 f16 scales, 32 f16 minima, `[4][32]` words of eight 4-bit values | 0.625 |

use half::{bf16, f16};

use crate::gemm::source::{
    GROUP, INT8_GROUP, PackedBf16, PackedF32, PackedInt8, PackedQ4, Packing, Q4_GROUP, Source,
};
use crate::gemm::tile::PANEL;
use crate::gemm::vector::Vector;
use crate::pool;

/// How a frozen weight is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// As given.
    F32,
    /// Rounded to bf16, to nearest even.
    Bf16,
    /// Eight bits with a scale for each output and 32 inputs (GGUF's Q8_0).
    Int8,
    /// Four bits with a scale and a minimum for each output and 32 inputs (GGUF's Q4_0 and Q4_1).
    Q4,
}

/// A frozen weight matrix, `[n outputs, k inputs]`.
#[derive(Clone)]
pub struct Packed {
    n: usize,
    k: usize,
    storage: Storage,
    rounds_activations: bool,
    panel_bytes: usize,
    data: Vec<Line>,
}

/// A cache line of packed weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} x {}, {:?})", self.n, self.k, self.storage)
    }
}

/// One group of 32 weights in 4 bits: weight i is `scale * quants[i] + minimum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q4Group {
    /// 0 to 15 each.
    pub quants: [u8; GROUP],
    /// The step.
    pub scale: f16,
    /// The value of 0.
    pub minimum: f16,
}

/// One group of 32 weights in 8 bits: weight i is `scale * quants[i]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Int8Group {
    /// -128 to 127 each.
    pub quants: [i8; GROUP],
    /// The step.
    pub scale: f16,
}

impl Q4Group {
    /// The nearest of 16 evenly spaced values from the smallest weight to the largest; at most 32 weights.
    pub fn quantize(weights: &[f32]) -> Self {
        let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
        let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 0.0) };
        let minimum = f16::from_f32(low);
        let scale = f16::from_f32((high - minimum.to_f32()) / 15.0);
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        let mut quants = [0; GROUP];
        for (quant, weight) in quants.iter_mut().zip(weights) {
            *quant = ((weight - minimum.to_f32()) * inverse).round().clamp(0.0, 15.0) as u8;
        }
        Self { quants, scale, minimum }
    }
}

impl Int8Group {
    /// The nearest multiples of a 127th of the largest magnitude; at most 32 weights.
    pub fn quantize(weights: &[f32]) -> Self {
        let largest = weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
        let mut quants = [0; GROUP];
        for (quant, weight) in quants.iter_mut().zip(weights) {
            *quant = (weight * inverse).round().clamp(-127.0, 127.0) as i8;
        }
        Self { quants, scale }
    }
}

impl Packed {
    /// Packs `w`, row-major `[n, k]`.
    ///
    /// # Panics
    /// If `w` has not n · k elements.
    pub fn pack(w: &[f32], n: usize, k: usize, storage: Storage) -> Self {
        assert_eq!(w.len(), n * k, "a weight of {n} x {k}");
        let group =
            |row: usize, group: usize| &w[row * k + group * GROUP..row * k + ((group + 1) * GROUP).min(k)];
        match storage {
            Storage::F32 => Self::build(n, k, storage, |panel, bytes| {
                for (j, row) in rows(panel, n) {
                    for (i, weight) in w[row * k..][..k].iter().enumerate() {
                        put(bytes, i * PANEL + j, weight.to_le_bytes());
                    }
                }
            }),
            Storage::Bf16 => Self::build(n, k, storage, |panel, bytes| {
                for (j, row) in rows(panel, n) {
                    for (i, weight) in w[row * k..][..k].iter().enumerate() {
                        put(bytes, (i / 2 * PANEL + j) * 2 + i % 2, bf16::from_f32(*weight).to_le_bytes());
                    }
                }
            }),
            Storage::Int8 => Self::from_int8(n, k, |row, at| Int8Group::quantize(group(row, at))),
            Storage::Q4 => Self::from_q4(n, k, |row, at| Q4Group::quantize(group(row, at))),
        }
    }

    /// Packs weights that are in 8 bits already; `group(row, i)` gives weights `32 i ..` of a row.
    pub fn from_int8(n: usize, k: usize, group: impl Fn(usize, usize) -> Int8Group + Sync) -> Self {
        Self::build(n, k, Storage::Int8, |panel, bytes| {
            for (g, bytes) in bytes.chunks_exact_mut(INT8_GROUP).enumerate() {
                let (scales, quants) = bytes.split_at_mut(2 * PANEL);
                // A column that does not exist has scale 0.
                for (j, row) in rows(panel, n) {
                    let group = group(row, g);
                    put(scales, j, group.scale.to_le_bytes());
                    for (i, quant) in group.quants.into_iter().enumerate() {
                        quants[(i / 4 * PANEL + j) * 4 + i % 4] = (quant as u8).wrapping_add(128);
                    }
                }
            }
        })
    }

    /// Packs weights that are in 4 bits already; `group(row, i)` gives weights `32 i ..` of a row.
    pub fn from_q4(n: usize, k: usize, group: impl Fn(usize, usize) -> Q4Group + Sync) -> Self {
        Self::build(n, k, Storage::Q4, |panel, bytes| {
            for (g, bytes) in bytes.chunks_exact_mut(Q4_GROUP).enumerate() {
                let (scales, quants) = bytes.split_at_mut(4 * PANEL);
                for (j, row) in rows(panel, n) {
                    let group = group(row, g);
                    put(scales, j, group.scale.to_le_bytes());
                    put(scales, PANEL + j, group.minimum.to_le_bytes());
                    for (i, quant) in group.quants.into_iter().enumerate() {
                        quants[(i / 8 * PANEL + j) * 4 + i % 8 / 2] |= (quant & 15) << (4 * (i % 2));
                    }
                }
            }
        })
    }

    /// Allocates zeros and fills each panel in parallel.
    fn build(n: usize, k: usize, storage: Storage, fill: impl Fn(usize, &mut [u8]) + Sync) -> Self {
        let panel_bytes = match storage {
            Storage::F32 => 4 * PANEL * k,
            Storage::Bf16 => 2 * PANEL * k.next_multiple_of(GROUP),
            Storage::Int8 => INT8_GROUP * k.div_ceil(GROUP),
            Storage::Q4 => Q4_GROUP * k.div_ceil(GROUP),
        };
        // Every panel size is a multiple of 64 bytes.
        let mut data = vec![Line([0; 64]); n.div_ceil(PANEL) * panel_bytes / 64];
        if panel_bytes > 0 {
            // SAFETY: a line is 64 bytes without padding.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), data.len() * 64) };
            pool::for_each_chunk(bytes, panel_bytes, fill);
        }
        Self { n, k, storage, rounds_activations: false, panel_bytes, data }
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How the weights are kept.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// The same weights; [`matmul`](crate::matmul) with them rounds activations to 16 bits by row and multiplies integers, which
    /// is faster where several rows share a weight. For [`Storage::Int8`] and [`Storage::Q4`]; others stay as they are.
    pub fn rounding_activations(self) -> Self {
        Self { rounds_activations: matches!(self.storage, Storage::Int8 | Storage::Q4), ..self }
    }

    /// Whether [`Packed::rounding_activations`] made it.
    pub fn rounds_activations(&self) -> bool {
        self.rounds_activations
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * 64
    }

    /// Feeds sizes, storage and weights to a hash; equal matrices feed the same on every machine.
    pub fn fold_hash(&self, feed: &mut impl FnMut(&[u8])) {
        let storage = match self.storage {
            Storage::F32 => 0,
            Storage::Bf16 => 1,
            Storage::Int8 => 2,
            Storage::Q4 => 3,
        };
        feed(&[storage]);
        feed(&(self.n as u64).to_le_bytes());
        feed(&(self.k as u64).to_le_bytes());
        feed(self.as_bytes());
    }

    /// The k weights of output `i`, as the products use them (an embedding's row, when it is the output head too).
    ///
    /// # Panics
    /// If there is no such row or `out` has not k elements.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n, "row {i} of {}", self.n);
        assert_eq!(out.len(), self.k, "a row of {} weights", self.k);
        let bytes = &self.as_bytes()[i / PANEL * self.panel_bytes..][..self.panel_bytes];
        let j = i % PANEL;
        let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32();
        match self.storage {
            Storage::F32 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = 4 * (k * PANEL + j);
                    *out = f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                }
            }
            Storage::Bf16 => {
                for (k, out) in out.iter_mut().enumerate() {
                    let at = 4 * (k / 2 * PANEL + j) + 2 * (k % 2);
                    *out = bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
                }
            }
            Storage::Int8 => {
                for (out, group) in out.chunks_mut(GROUP).zip(bytes.chunks_exact(INT8_GROUP)) {
                    let scale = half(group, j);
                    for (k, out) in out.iter_mut().enumerate() {
                        let quant = group[2 * PANEL + (k / 4 * PANEL + j) * 4 + k % 4];
                        *out = scale * (f32::from(quant) - 128.0);
                    }
                }
            }
            Storage::Q4 => {
                for (out, group) in out.chunks_mut(GROUP).zip(bytes.chunks_exact(Q4_GROUP)) {
                    let (scale, minimum) = (half(group, j), half(group, PANEL + j));
                    for (k, out) in out.iter_mut().enumerate() {
                        let pair = group[4 * PANEL + (k / 8 * PANEL + j) * 4 + k % 8 / 2];
                        let quant = f32::from(pair >> (4 * (k % 2)) & 15);
                        // The kernels' own formula; both products are exact in f32.
                        *out = (1.0 + quant / 16.0) * (16.0 * scale) + (minimum - 16.0 * scale);
                    }
                }
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() * 64) }
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub(crate) fn panel(&self, panel: usize) -> *const u8 {
        debug_assert!(panel < self.panels());
        self.data.as_ptr().cast::<u8>().wrapping_add(panel * self.panel_bytes)
    }
}

/// What takes the sources of a matrix, whatever its storage.
pub(crate) trait WithSources<V: Vector> {
    /// What comes of it.
    type Output;
    /// `source(s)` is sub-panel s. `most_rows`: the most rows that are worth reading the packed form for.
    fn call<S: Source<V> + Packing>(self, most_rows: usize, source: impl Fn(usize) -> S) -> Self::Output;
}

impl Packed {
    /// Calls `action` with the sub-panels of this storage.
    pub(crate) fn with_sources<V: Vector, A: WithSources<V>>(&self, action: A) -> A::Output {
        let width = 2 * V::LANES;
        let place = |s: usize| (self.panel(s * width / PANEL), s * width % PANEL);
        match self.storage {
            Storage::F32 => action.call(96, |s| {
                let (panel, col) = place(s);
                PackedF32::new(panel.cast::<f32>().wrapping_add(col))
            }),
            Storage::Bf16 => action.call(96, |s| {
                let (panel, col) = place(s);
                PackedBf16::new(panel.cast::<u32>().wrapping_add(col))
            }),
            Storage::Int8 => action.call(24, |s| {
                let (panel, col) = place(s);
                PackedInt8::new(panel, col)
            }),
            Storage::Q4 => action.call(24, |s| {
                let (panel, col) = place(s);
                PackedQ4::new(panel, col)
            }),
        }
    }
}

/// The rows of panel `panel`, with their columns in it.
fn rows(panel: usize, n: usize) -> impl Iterator<Item = (usize, usize)> {
    (panel * PANEL..((panel + 1) * PANEL).min(n)).enumerate()
}

/// Writes element `at` of an array of N-byte elements.
fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at * N..][..N].copy_from_slice(&value);
}
