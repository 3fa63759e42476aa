//! AMX: products of bf16 tiles with f32 sums, by inline assembly (there are no stable intrinsics).
//!
//! A block of 32 rows and one panel of 32 columns is held in four tiles of 16 x 16 sums; each step multiplies 32 values
//! of k. The packed bf16 panels have the layout of a right tile already; activations are rounded to bf16. Tiles are used
//! for every number of rows, so that a row's result does not depend on the batch here either.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::ops::Range;
use std::sync::OnceLock;

use half::bf16;

use super::Accumulate;
use super::tile::PANEL;
use crate::isa::{Isa, multiversion};
use crate::packed::{Packed, Storage};
use crate::pool::{self, Parts};
use crate::scratch;

/// Rows of a block: two tiles.
const ROWS: usize = 32;

/// Values of k in one step: a tile row of 64 bytes.
const STEP: usize = 32;

/// Values of k between two stores of the sums.
const DEPTH: usize = 2048;

/// Rows of one task: their bf16 copy stays in the second-level cache.
const TASK_ROWS: usize = 256;

/// Whether this processor, its operating system and a test product agree that tiles work. Asked once.
pub(crate) fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| processor_has_tiles() && permitted() && agrees_with_portable())
}

/// CPUID leaf 7: AMX-BF16 (EDX 22) and AMX-TILE (EDX 24); XCR0: tile configuration (17) and data (18) are saved.
fn processor_has_tiles() -> bool {
    let features = __cpuid_count(7, 0).edx;
    let saves = __cpuid_count(1, 0).ecx & 1 << 27 != 0;
    // SAFETY: `xgetbv` exists where the operating system uses `xsave`.
    features & 1 << 22 != 0 && features & 1 << 24 != 0 && saves && unsafe { xcr0() } & 0x6_0000 == 0x6_0000
}

/// # Safety
/// The processor has `xgetbv`, enabled.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for room to save this process's tile data: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
fn permitted() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let mut result: i64 = 158;
    // SAFETY: the system call takes two numbers and touches no memory of ours.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") 0x1023, in("rsi") 18, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// A small product of whole numbers, which both must get exactly right.
///
/// This runs while the instruction set is being chosen, so nothing below it may ask [`crate::isa::active`] or
/// [`crate::isa::best`], which would wait for themselves.
fn agrees_with_portable() -> bool {
    let (m, n, k) = (33, 40, 70);
    let value = |i: usize| ((i * 37 + i / 7) % 17) as f32 - 8.0;
    let x: Vec<f32> = (0..m * k).map(value).collect();
    let w: Vec<f32> = (0..n * k).map(|i| value(i + 3)).collect();
    let packed = Packed::pack(&w, n, k, Storage::Bf16);
    let mut y = vec![1.0; m * n];
    matmul(&x, m, &packed, &mut y, Accumulate::Add);
    (0..m * n).all(|at| {
        let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
        y[at] == 1.0 + x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()
    })
}

/// [`super::matmul`] for bf16 weights; the sizes were checked, tiles are usable.
pub(crate) fn matmul(x: &[f32], m: usize, w: &Packed, y: &mut [f32], accumulate: Accumulate) {
    let right = |panel: usize, depth: Range<usize>, _scratch: &mut [u32]| {
        w.panel(panel).cast::<u32>().wrapping_add(depth.start / 2 * PANEL)
    };
    product(x, (m, w.n(), w.k()), y, accumulate, right);
}

/// [`super::matmul_transposed`] for bf16 weights; the sizes were checked, tiles are usable.
pub(crate) fn matmul_transposed(dy: &[f32], m: usize, w: &Packed, dx: &mut [f32], accumulate: Accumulate) {
    let right = |panel: usize, depth: Range<usize>, scratch: &mut [u32]| {
        for (block, to) in (depth.start / PANEL..).zip(scratch.chunks_exact_mut(STEP / 2 * PANEL)) {
            if block * PANEL >= depth.end {
                break;
            }
            // SAFETY: packed panels are padded to whole blocks of 32 x 32, and this is one of them.
            let from = unsafe {
                std::slice::from_raw_parts(
                    w.panel(block).cast::<u32>().add(panel * PANEL / 2 * PANEL),
                    STEP / 2 * PANEL,
                )
            };
            transpose_pairs(from, to);
        }
        scratch.as_ptr()
    };
    product(dy, (m, w.k(), w.n()), dx, accumulate, right);
}

/// `[k / 2][32 n]` pairs along k become `[n / 2][32 k]` pairs along n.
fn transpose_pairs(from: &[u32], to: &mut [u32]) {
    for (pair, to) in to.chunks_exact_mut(PANEL).enumerate() {
        for (k, to) in to.iter_mut().enumerate() {
            let words = &from[k / 2 * PANEL + 2 * pair..][..2];
            let half = |word: u32| word >> (16 * (k % 2)) & 0xffff;
            *to = half(words[0]) | half(words[1]) << 16;
        }
    }
}

/// `y (+)= x · right`; `right(panel, depth, scratch)` gives `[depth / 2][32]` pairs, padded to whole steps.
fn product(
    x: &[f32],
    (m, cols, depth): (usize, usize, usize),
    y: &mut [f32],
    accumulate: Accumulate,
    right: impl Fn(usize, Range<usize>, &mut [u32]) -> *const u32 + Sync,
) {
    if depth == 0 {
        if accumulate == Accumulate::Overwrite {
            y.fill(0.0);
        }
        return;
    }
    let panels = cols.div_ceil(PANEL);
    let row_tasks = m.div_ceil(TASK_ROWS);
    let panel_tasks = if row_tasks >= pool::threads() { 1 } else { (2 * pool::threads()).min(panels) };
    let panels_each = panels.div_ceil(panel_tasks.max(1)).max(1);
    let panel_tasks = panels.div_ceil(panels_each);
    let y = Parts::new(y);
    pool::parallel_for(row_tasks * panel_tasks, |task| {
        let first = task / panel_tasks * TASK_ROWS;
        let rows = first..(first + TASK_ROWS).min(m);
        let panel = task % panel_tasks * panels_each;
        let panels = panel..(panel + panels_each).min(panels);
        let most = depth.min(DEPTH).next_multiple_of(STEP);
        let padded = rows.len().next_multiple_of(ROWS);
        scratch::with(padded * most / 2 + most / 2 * PANEL + ROWS * PANEL, |buffer| {
            let (left, buffer) = buffer.split_at_mut(padded * most / 2);
            let (pairs, sums) = buffer.split_at_mut(most / 2 * PANEL);
            // SAFETY: any bits are valid as either type, and u16 and u32 need no more alignment than f32.
            let (left, pairs) = unsafe {
                (
                    std::slice::from_raw_parts_mut(left.as_mut_ptr().cast::<u16>(), 2 * left.len()),
                    std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast::<u32>(), pairs.len()),
                )
            };
            let _tiles = Tiles::configure();
            for start in (0..depth).step_by(DEPTH) {
                let range = start..(start + DEPTH).min(depth);
                let width = range.len().next_multiple_of(STEP);
                left[..padded * width].fill(0);
                for (row, left) in rows.clone().zip(left.chunks_exact_mut(width)) {
                    round(Isa::Amx, &x[row * depth..][range.clone()], left);
                }
                let add = accumulate == Accumulate::Add || start > 0;
                for panel in panels.clone() {
                    let right = right(panel, range.clone(), pairs);
                    let used = panel * PANEL..((panel + 1) * PANEL).min(cols);
                    for block in (0..rows.len()).step_by(ROWS) {
                        let count = (rows.len() - block).min(ROWS);
                        let part = |row: usize| {
                            let at = (rows.start + block + row) * cols;
                            // SAFETY: rows and panels of different tasks are disjoint.
                            unsafe { y.get(at + used.start..at + used.end) }
                        };
                        sums.fill(0.0);
                        if add {
                            for (row, sums) in sums.chunks_exact_mut(PANEL).enumerate().take(count) {
                                sums[..used.len()].copy_from_slice(part(row));
                            }
                        }
                        // SAFETY: tiles are configured; `left` has 32 rows of `width` from `block` on, `right`
                        // `width / 2` rows of 32 pairs, `sums` is 32 x 32.
                        unsafe { multiply(&left[block * width..], width, right, sums, count > ROWS / 2) };
                        for (row, sums) in sums.chunks_exact(PANEL).enumerate().take(count) {
                            part(row).copy_from_slice(&sums[..used.len()]);
                        }
                    }
                }
            }
        });
    });
}

multiversion! {
    fn round(from: &[f32], to: &mut [u16]) = round_body;
}

/// To bf16, to nearest even.
#[inline(always)]
fn round_body<const FMA: bool>(from: &[f32], to: &mut [u16]) {
    for (to, &from) in to.iter_mut().zip(from) {
        let bits = from.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        *to = if from.is_nan() { bf16::NAN.to_bits() } else { rounded };
    }
}

/// The tile configuration of this thread, released at the end of its use.
struct Tiles;

impl Tiles {
    /// Eight tiles of 16 rows of 64 bytes.
    fn configure() -> Self {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_per_row: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        configuration.bytes_per_row[..8].fill(64);
        configuration.rows[..8].fill(16);
        // SAFETY: only called where tiles are usable; reads the 64 bytes of `configuration`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only made where tiles are usable; nothing else uses tile registers.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `sums += left · right` for a block of 32 rows (16 unless `both`) and 32 columns.
///
/// # Safety
/// Tiles are configured; `left` has that many rows of `depth` (a multiple of 32) values, `right` `[depth / 2][32]`,
/// `sums` is `[32][32]`.
unsafe fn multiply(left: &[u16], depth: usize, right: *const u32, sums: &mut [f32], both: bool) {
    let top = left.as_ptr();
    let sums = sums.as_mut_ptr();
    // SAFETY: the caller's promise. Compiled code never uses tile registers, so none is declared as changed.
    unsafe {
        if both {
            asm!(
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 64]",
                "tileloadd tmm2, [{below} + {stride}]",
                "tileloadd tmm3, [{below} + {stride} + 64]",
                "2:",
                "tileloadd tmm4, [{top} + {row}]",
                "tileloadd tmm6, [{right} + {stride}]",
                "tileloadd tmm7, [{right} + {stride} + 64]",
                "tileloadd tmm5, [{bottom} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {top}, 64",
                "add {bottom}, 64",
                "add {right}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 64], tmm1",
                "tilestored [{below} + {stride}], tmm2",
                "tilestored [{below} + {stride} + 64], tmm3",
                sums = in(reg) sums,
                below = in(reg) sums.add(16 * PANEL),
                stride = in(reg) 4 * PANEL,
                top = inout(reg) top => _,
                bottom = inout(reg) top.add(16 * depth) => _,
                row = in(reg) 2 * depth,
                right = inout(reg) right => _,
                steps = inout(reg) depth / STEP => _,
                options(nostack),
            );
        } else {
            asm!(
                "tileloadd tmm0, [{sums} + {stride}]",
                "tileloadd tmm1, [{sums} + {stride} + 64]",
                "2:",
                "tileloadd tmm4, [{top} + {row}]",
                "tileloadd tmm6, [{right} + {stride}]",
                "tileloadd tmm7, [{right} + {stride} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {top}, 64",
                "add {right}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 64], tmm1",
                sums = in(reg) sums,
                stride = in(reg) 4 * PANEL,
                top = inout(reg) top => _,
                row = in(reg) 2 * depth,
                right = inout(reg) right => _,
                steps = inout(reg) depth / STEP => _,
                options(nostack),
            );
        }
    }
}

/// Bf16 operations of `rounds` steps on operands that stay in the first-level cache; tiles are usable.
pub(crate) fn tile_flops(rounds: usize) -> usize {
    scratch::with(ROWS * STEP / 2 + STEP / 2 * PANEL + ROWS * PANEL, |buffer| {
        buffer.fill(0.0);
        let (left, buffer) = buffer.split_at_mut(ROWS * STEP / 2);
        let (right, sums) = buffer.split_at_mut(STEP / 2 * PANEL);
        // SAFETY: as in `product`.
        let left = unsafe { std::slice::from_raw_parts(left.as_ptr().cast::<u16>(), 2 * left.len()) };
        let _tiles = Tiles::configure();
        for _ in 0..rounds {
            // SAFETY: tiles are configured and the buffers hold one step.
            unsafe { multiply(left, STEP, right.as_ptr().cast(), sums, true) };
        }
    });
    2 * ROWS * PANEL * STEP * rounds
}

#[cfg(all(test, target_os = "linux"))]
mod emulation;
