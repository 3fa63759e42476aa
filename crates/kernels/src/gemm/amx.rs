//! AMX: products of bf16 tiles with f32 sums, by inline assembly (there are no stable intrinsics).
//!
//! A block of 32 rows and one panel of 32 columns is held in four tiles of 16 x 16 sums; each step multiplies 32 values
//! of k. The packed bf16 panels have the layout of a right tile already; activations are rounded to bf16 once, into the
//! layout of left tiles ([`left`]). Tiles are used for every number of rows, so that a row's result does not depend on the
//! batch here either: each sum runs over all of k in order, in one tile.

pub(crate) mod left;
mod right;
mod tiles;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::ops::Range;
use std::sync::OnceLock;

use super::Accumulate;
use super::tile::PANEL;
use crate::isa::Available;
use crate::mlp::{Activation, gate_in_place};
use crate::packed::{Packed, Storage};
use crate::pool::{self, Parts};
use crate::scratch;

use left::{LeftTiles, Rounded, TilesMut};
use tiles::{BLOCK, Block, STEP, TILE, Tiles};

/// bf16 values of the left matrix that one task holds: they stay in the second-level cache.
const LEFT: usize = 512 * 1024;

/// Rows below which a task takes some of the panels with all rows, rather than some of the rows with all panels: it reads its
/// weights once, and fewer rows would wait for them.
const MANY_ROWS: usize = 256;

/// Multiply-adds below which a product stays on the calling thread.
const SMALL: usize = 256 * 1024;

/// The proof that tiles may be used: what uses them takes one, and only detection makes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HasTiles(());

/// The proof that this processor, its operating system and a test product agree that tiles work, if they do. Asked once.
pub(crate) fn usable() -> Option<HasTiles> {
    static USABLE: OnceLock<Option<HasTiles>> = OnceLock::new();
    *USABLE.get_or_init(|| offered().filter(|&tiles| agrees_with_portable(tiles)))
}

/// Tiles that the processor and its operating system offer, or the emulation of the tests.
fn offered() -> Option<HasTiles> {
    #[cfg(all(test, target_os = "linux"))]
    if let Some(emulated) = emulation::instead_of_tiles() {
        return Some(emulated);
    }
    (processor_has_tiles() && permitted()).then_some(HasTiles(()))
}

/// CPUID leaf 7: AMX-BF16 (EDX 22) and AMX-TILE (EDX 24); XCR0: tile configuration (17) and data (18) are saved.
fn processor_has_tiles() -> bool {
    if __cpuid(0).eax < 7 {
        return false;
    }
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
fn agrees_with_portable(tiles: HasTiles) -> bool {
    let (m, n, k) = (33, 40, 70);
    let value = |i: usize| ((i * 37 + i / 7) % 17) as f32 - 8.0;
    let x: Vec<f32> = (0..m * k).map(value).collect();
    let w: Vec<f32> = (0..n * k).map(|i| value(i + 3)).collect();
    let packed = Packed::pack(&w, n, k, Storage::Bf16);
    let mut y = vec![1.0; m * n];
    matmul(tiles, &x, m, &packed, &mut y, Accumulate::Add);
    (0..m * n).all(|at| {
        let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
        y[at] == 1.0 + x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()
    })
}

/// [`super::matmul`] for bf16 weights; the sizes were checked.
pub(crate) fn matmul(
    tiles: HasTiles,
    x: &[f32],
    m: usize,
    w: &Packed,
    y: &mut [f32],
    accumulate: Accumulate,
) {
    let right = |panel: usize, _scratch: &mut [u32]| w.panel(panel).cast::<u32>();
    product(tiles, x, (m, w.n(), w.k()), y, accumulate, 0, right);
}

/// [`super::matmul_transposed`] for bf16 weights; the sizes were checked.
pub(crate) fn matmul_transposed(
    tiles: HasTiles,
    dy: &[f32],
    m: usize,
    w: &Packed,
    dx: &mut [f32],
    accumulate: Accumulate,
) {
    let depth = w.n().next_multiple_of(STEP);
    let right = |panel: usize, scratch: &mut [u32]| {
        right::transposed_panel(w, panel, scratch);
        scratch.as_ptr()
    };
    product(tiles, dy, (m, w.k(), w.n()), dx, accumulate, depth / 2 * PANEL, right);
}

/// `y (+)= x · right`; `right(panel, scratch)` gives `[depth / 2][32]` pairs, padded to whole steps, with `words` of scratch.
fn product(
    tiles: HasTiles,
    x: &[f32],
    (m, cols, depth): (usize, usize, usize),
    y: &mut [f32],
    accumulate: Accumulate,
    words: usize,
    right: impl Fn(usize, &mut [u32]) -> *const u32 + Sync,
) {
    if depth == 0 || m == 0 {
        if accumulate == Accumulate::Overwrite {
            y.fill(0.0);
        }
        return;
    }
    let (panels, threads) = (cols.div_ceil(PANEL), pool::threads());
    let y = Parts::new(y);
    let block = |left: LeftTiles<'_>, first: usize, panels: Range<usize>| {
        scratch::with(words, |pairs| {
            // SAFETY: any bits are valid as either type, and both need the same alignment.
            let pairs = unsafe { std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast::<u32>(), words) };
            // SAFETY: `y` is [m, cols], of which tasks write disjoint rows and panels; `right` gives whole panels.
            unsafe {
                rows_by_panels(tiles, left, first, panels, (y.as_ptr(), cols), accumulate, |panel| {
                    right(panel, pairs)
                })
            };
        });
    };
    if m * cols * depth <= SMALL {
        Rounded::with(x, m, depth, |left| block(left, 0, 0..panels));
    } else if m < threads * MANY_ROWS {
        let each = panels.div_ceil(4 * threads).max(1);
        Rounded::with(x, m, depth, |left| {
            pool::parallel_for(panels.div_ceil(each), |task| {
                block(left, 0, task * each..((task + 1) * each).min(panels));
            });
        });
    } else {
        let most = (LEFT / depth / BLOCK * BLOCK).max(BLOCK);
        let tasks = m.div_ceil(most).next_multiple_of(threads);
        let each = m.div_ceil(tasks).next_multiple_of(BLOCK);
        pool::parallel_for(m.div_ceil(each), |task| {
            let rows = task * each..((task + 1) * each).min(m);
            Rounded::with(&x[rows.start * depth..rows.end * depth], rows.len(), depth, |left| {
                block(left, rows.start, 0..panels);
            });
        });
    }
}

/// `y = (act(x · Gᵀ) ⊙ x · Uᵀ) · Dᵀ` for bf16 weights G, U `[inner, k]` and D `[n, inner]`; the sizes were checked.
///
/// The bits are those of the separate operations, but what lies between them is never written to memory: a panel of 32 inner
/// columns is one step of the left tiles that D's product reads.
pub(crate) fn mlp(
    (isa, has_tiles): (Available, HasTiles),
    x: &[f32],
    m: usize,
    [g, u, d]: [&Packed; 3],
    activation: Activation,
    y: &mut [f32],
) {
    if m == 0 || g.n() == 0 || g.k() == 0 {
        return y.fill(0.0);
    }
    let (k, n, threads) = (g.k(), d.n(), pool::threads());
    let (inner_panels, out_panels) = (g.panels(), d.panels());
    let y = Parts::new(y);
    // Of some rows: all inner columns, then all outputs, each by as many tasks as asked for.
    let rows = |rows: Range<usize>, tasks: usize| {
        let x = &x[rows.start * k..rows.end * k];
        Rounded::with(x, rows.len(), k, |left| {
            left::with_tiles(rows.len(), inner_panels, |inner| {
                by_panels(inner_panels, tasks, |panels| {
                    // SAFETY: each task has its own panels.
                    unsafe { gated_panels((isa, has_tiles), left, panels, g, u, activation, inner) };
                });
                let inner = inner.finished();
                by_panels(out_panels, tasks, |panels| {
                    // SAFETY: `y` is [m, n], of which tasks write disjoint rows and panels.
                    unsafe {
                        let right = |panel| d.panel(panel).cast();
                        rows_by_panels(
                            has_tiles,
                            inner,
                            rows.start,
                            panels,
                            (y.as_ptr(), n),
                            Accumulate::Overwrite,
                            right,
                        );
                    }
                });
            });
        });
    };
    if m < threads * MANY_ROWS {
        rows(0..m, if m * g.n() * k <= SMALL { 1 } else { 4 * threads });
    } else {
        let most = (LEFT / k.max(g.n()) / BLOCK * BLOCK).max(BLOCK);
        let each = m.div_ceil(m.div_ceil(most).next_multiple_of(threads)).next_multiple_of(BLOCK);
        pool::parallel_for(m.div_ceil(each), |task| rows(task * each..((task + 1) * each).min(m), 1));
    }
}

/// Calls `body` with ranges of `panels` panels, in parallel where there are several.
fn by_panels(panels: usize, tasks: usize, body: impl Fn(Range<usize>) + Sync) {
    let each = panels.div_ceil(tasks).max(1);
    pool::parallel_for(panels.div_ceil(each), |task| body(task * each..((task + 1) * each).min(panels)));
}

/// `act(left · Gᵀ) ⊙ left · Uᵀ` for some panels of inner columns, rounded into those steps of `inner`.
///
/// # Safety
/// G and U have the panels and `left`'s steps; nobody else uses these steps of `inner` now.
unsafe fn gated_panels(
    (isa, has_tiles): (Available, HasTiles),
    left: LeftTiles<'_>,
    panels: Range<usize>,
    g: &Packed,
    u: &Packed,
    activation: Activation,
    inner: &TilesMut<'_>,
) {
    let m = left.rows;
    let tiles = tiles_for(has_tiles, m);
    let few = m <= 2 * BLOCK;
    scratch::with(2 * BLOCK * PANEL, |buffer| {
        let (gate, up) = buffer.split_at_mut(BLOCK * PANEL);
        for panel in panels {
            for start in (0..m).step_by(BLOCK) {
                let height = (m - start).min(BLOCK);
                for (w, to) in [(g, &mut *gate), (u, &mut *up)] {
                    let block = Block {
                        left: left.block(start),
                        steps: left.steps,
                        right: w.panel(panel).cast(),
                        right_row: PANEL,
                        both: height > TILE,
                        prefetch: few && start == 0,
                    };
                    // SAFETY: the caller's promise; `to` is a whole block.
                    unsafe { block.multiply(&tiles, to.as_mut_ptr(), PANEL, false) };
                }
                let (gate, up) = (&mut gate[..height * PANEL], &up[..height * PANEL]);
                gate_in_place(isa, activation, gate, up);
                // SAFETY: the caller's promise.
                unsafe { inner.round_step(start, panel, gate) };
            }
        }
    });
}

/// Tiles for `m` rows: one block alone has tiles as high as there are rows.
fn tiles_for(has_tiles: HasTiles, m: usize) -> Tiles {
    if m <= BLOCK {
        Tiles::rows(has_tiles, m.min(TILE), m.saturating_sub(TILE))
    } else {
        Tiles::rows(has_tiles, TILE, TILE)
    }
}

/// All rows of `left` times some panels, into rows `first ..` of `y` (its start and the distance of its rows, which is the
/// number of columns).
///
/// # Safety
/// `right(panel)` gives `left.steps` steps of 32 columns; `y` has the rows and columns, and nobody else uses
/// these now.
unsafe fn rows_by_panels(
    has_tiles: HasTiles,
    left: LeftTiles<'_>,
    first: usize,
    panels: Range<usize>,
    (y, cols): (*mut f32, usize),
    accumulate: Accumulate,
    mut right: impl FnMut(usize) -> *const u32,
) {
    let m = left.rows;
    let tiles = tiles_for(has_tiles, m);
    let few = m <= 2 * BLOCK;
    for panel in panels {
        let right = right(panel);
        let width = (cols - panel * PANEL).min(PANEL);
        for start in (0..m).step_by(BLOCK) {
            let height = (m - start).min(BLOCK);
            let to = y.wrapping_add((first + start) * cols + panel * PANEL);
            let block = Block {
                left: left.block(start),
                steps: left.steps,
                right,
                right_row: PANEL,
                both: height > TILE,
                prefetch: few && start == 0,
            };
            let whole = width == PANEL && (m <= BLOCK || height == BLOCK || height == TILE);
            // SAFETY: the caller's promise; a block that is not whole goes through a buffer of full size.
            unsafe {
                if whole {
                    block.multiply(&tiles, to, cols, accumulate == Accumulate::Add);
                } else {
                    let mut sums = Sums([0.0; BLOCK * PANEL]);
                    if accumulate == Accumulate::Add {
                        for row in 0..height {
                            let from = std::slice::from_raw_parts(to.add(row * cols), width);
                            sums.0[row * PANEL..][..width].copy_from_slice(from);
                        }
                    }
                    block.multiply(&tiles, sums.0.as_mut_ptr(), PANEL, accumulate == Accumulate::Add);
                    for row in 0..height {
                        let to = std::slice::from_raw_parts_mut(to.add(row * cols), width);
                        to.copy_from_slice(&sums.0[row * PANEL..][..width]);
                    }
                }
            }
        }
    }
}

/// A block of sums, for blocks that are cut off by the end of the output.
#[repr(C, align(64))]
struct Sums([f32; BLOCK * PANEL]);

/// `out (+)= left · right` on the calling thread, for a right matrix that is not a weight: `[steps · 16]` rows of `cols` pairs,
/// `right_row` apart; `cols` is a multiple of 32.
///
/// # Safety
/// The operands have these sizes; `out` has the rows of `left` (more than 32 rounded up to 16), `out_row`
/// apart, and nobody else uses them now.
pub(crate) unsafe fn times(
    has_tiles: HasTiles,
    left: LeftTiles<'_>,
    (right, right_row): (*const u32, usize),
    cols: usize,
    (out, out_row): (*mut f32, usize),
    add: bool,
) {
    debug_assert!(cols.is_multiple_of(PANEL), "whole panels");
    let tiles = tiles_for(has_tiles, left.rows);
    for start in (0..left.rows).step_by(BLOCK) {
        for col in (0..cols).step_by(PANEL) {
            let block = Block {
                left: left.block(start),
                steps: left.steps,
                right: right.wrapping_add(col),
                right_row,
                both: left.rows - start > TILE,
                prefetch: false,
            };
            // SAFETY: the caller's promise.
            unsafe { block.multiply(&tiles, out.wrapping_add(start * out_row + col), out_row, add) };
        }
    }
}

/// Bf16 operations of `rounds` steps of a block whose operands are in tiles already: the most that they can do.
pub(crate) fn tile_flops(tiles: HasTiles, rounds: usize) -> usize {
    tiles::products_alone(&Tiles::rows(tiles, TILE, TILE), rounds);
    2 * BLOCK * PANEL * STEP * rounds
}

#[cfg(all(test, target_os = "linux"))]
mod emulation;
