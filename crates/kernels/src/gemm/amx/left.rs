//! The left matrix of a product: activations rounded to bf16, in the layout of left tiles.

use std::sync::OnceLock;

use half::bf16;

use super::tiles::{BLOCK, STEP, TILE};
use crate::pool::{self, Parts};
use crate::scratch;

/// Rows of activations as tiles read them: `[rows / 16][depth / 32][16][32]` bf16, zeros beyond the last row and value.
#[derive(Clone, Copy)]
pub(crate) struct LeftTiles<'a> {
    values: &'a [u16],
    pub(crate) rows: usize,
    /// Steps of 32 values of k.
    pub(crate) steps: usize,
}

impl LeftTiles<'_> {
    /// The tiles from row `start` on, a multiple of 16.
    pub(crate) fn block(&self, start: usize) -> *const u16 {
        self.values[start * self.steps * STEP..].as_ptr()
    }
}

/// [`LeftTiles`] that are being written, step by step.
pub(crate) struct TilesMut<'a> {
    values: Parts<'a, u16>,
    rows: usize,
    steps: usize,
}

impl<'a> TilesMut<'a> {
    /// Rounds `x`, `[up to 32 rows from start][32]`, into step `step` of these rows.
    ///
    /// # Safety
    /// Nobody else uses this step of these rows now.
    pub(crate) unsafe fn round_step(&self, start: usize, step: usize, x: &[f32]) {
        debug_assert!(start.is_multiple_of(TILE) && start + x.len() / STEP <= self.rows && step < self.steps);
        for (tile, x) in x.chunks(TILE * STEP).enumerate() {
            let at = ((start / TILE + tile) * self.steps + step) * TILE * STEP;
            // SAFETY: the caller's promise.
            let to = unsafe { self.values.get(at..at + TILE * STEP) };
            round_tile(x, to);
        }
    }

    /// To be read, now that every step is written.
    pub(crate) fn finished(&self) -> LeftTiles<'_> {
        // SAFETY: it is called when the loops that write are over, and what it returns borrows `self`.
        let values = unsafe { self.values.get(0..self.rows.div_ceil(TILE) * TILE * self.steps * STEP) };
        LeftTiles { values, rows: self.rows, steps: self.steps }
    }
}

/// Calls `body` with room for `rows` rows of `steps` steps.
pub(crate) fn with_tiles<T>(rows: usize, steps: usize, body: impl FnOnce(&TilesMut<'_>) -> T) -> T {
    let size = rows.div_ceil(TILE) * TILE * steps * STEP;
    scratch::with(size / 2, |buffer| {
        // SAFETY: any bits are valid as either type, and u16 needs no more alignment than f32.
        let values = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u16>(), size) };
        body(&TilesMut { values: Parts::new(values), rows, steps })
    })
}

/// Up to 16 rows of 32 values into a tile; rows that are not there become 0.
fn round_tile(x: &[f32], to: &mut [u16]) {
    if x.len() < to.len() {
        to.fill(0);
    }
    for (row, x) in x.chunks_exact(STEP).enumerate() {
        if has_bf16() {
            // SAFETY: the processor has the instructions; `to` is one step of 16 rows.
            unsafe { round_row(x, row, to) };
        } else {
            for (to, x) in to[row * STEP..].iter_mut().zip(x) {
                *to = bf16::from_f32(*x).to_bits();
            }
        }
    }
}

/// Makes [`LeftTiles`].
pub(crate) struct Rounded;

impl Rounded {
    /// Rounds `x [m, depth]` on all threads and calls `body` with it.
    pub(crate) fn with<T>(x: &[f32], m: usize, depth: usize, body: impl FnOnce(LeftTiles<'_>) -> T) -> T {
        let (steps, blocks) = (depth.div_ceil(STEP), m.div_ceil(TILE));
        let size = blocks * TILE * steps * STEP;
        scratch::with(size / 2, |buffer| {
            // SAFETY: any bits are valid as either type, and u16 needs no more alignment than f32.
            let values = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u16>(), size) };
            // A thread takes longer to come than a block of rows takes.
            let each = (BLOCK * 1024 / (depth * TILE)).max(1);
            let parts = Parts::new(values);
            pool::parallel_for(blocks.div_ceil(each), |task| {
                for block in task * each..((task + 1) * each).min(blocks) {
                    let rows = block * TILE..((block + 1) * TILE).min(m);
                    // SAFETY: blocks are disjoint.
                    let to =
                        unsafe { parts.get(block * TILE * steps * STEP..(block + 1) * TILE * steps * STEP) };
                    round_block(&x[rows.start * depth..rows.end * depth], depth, to);
                }
            });
            body(LeftTiles { values, rows: m, steps })
        })
    }
}

/// Up to 16 rows of `depth` values into tiles `[steps][16][32]`.
fn round_block(x: &[f32], depth: usize, to: &mut [u16]) {
    let rows = x.len() / depth;
    if rows < TILE {
        to.fill(0);
    }
    for (row, x) in x.chunks_exact(depth).enumerate() {
        if has_bf16() {
            // SAFETY: the processor has the instructions; `to` has all steps of 16 rows.
            unsafe { round_row(x, row, to) };
        } else {
            for (step, x) in x.chunks(STEP).enumerate() {
                let to = &mut to[(step * TILE + row) * STEP..][..STEP];
                for (to, x) in to.iter_mut().zip(x) {
                    *to = bf16::from_f32(*x).to_bits();
                }
                to[x.len()..].fill(0);
            }
        }
    }
}

/// All processors with tiles have them; those that emulate tiles may not.
fn has_bf16() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
    })
}

/// Rounds to nearest even, as `bf16::from_f32` does (but for subnormal numbers, which become 0).
///
/// # Safety
/// The processor has the instructions; `to` has all steps of 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_row(x: &[f32], row: usize, to: &mut [u16]) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_mask_storeu_epi16,
        _mm512_maskz_loadu_ps, _mm512_storeu_si512,
    };
    let (whole, rest) = (x.len() / STEP, x.len() % STEP);
    debug_assert!(to.len() >= x.len().div_ceil(STEP) * TILE * STEP && row < TILE);
    // SAFETY: steps before `whole` have 32 values each, the last one `rest`; `to` has a row of 32 for each step.
    unsafe {
        let (x, to) = (x.as_ptr(), to.as_mut_ptr().add(row * STEP));
        for step in 0..whole {
            let (low, high) = (_mm512_loadu_ps(x.add(step * STEP)), _mm512_loadu_ps(x.add(step * STEP + 16)));
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.add(step * TILE * STEP).cast(), rounded);
        }
        if rest > 0 {
            let mask = (1_u32 << rest) - 1;
            let x = x.add(whole * STEP);
            let low = _mm512_maskz_loadu_ps(mask as u16, x);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(16));
            let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi16(to.add(whole * TILE * STEP).cast(), u32::MAX, rounded);
        }
    }
}
