//! Loops around the tile kernel: blocks that stay in cache, and the share of each thread.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::left::{ColMajor, Interleaved, RowMajor, Rows, Strided};
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
use super::source::{FewFloats, Floats, Packing, PairsBf16, Prefetch, Source};
use super::tile::{CHAIN, Epilogue, PANEL, Sums, most_rows};
use super::vector::Vector;
use crate::isa::{Available, Isa};
use crate::{pool, scratch};

/// Calls a function for the instruction set, of which there is a proof.
macro_rules! by_isa {
    ($isa:expr, $($function:ident)::+ ($($argument:expr),*)) => {
        match Available::isa($isa) {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => $($function)::+::<Avx512>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => $($function)::+::<Avx2>($($argument),*),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => $($function)::+::<Neon>($($argument),*),
            _ => $($function)::+::<Portable>($($argument),*),
        }
    };
}

/// Values of k of the left matrix that are interleaved at once: whole chains.
const DEPTH: usize = 10 * CHAIN;

/// Elements of the left matrix in a block, which stays in the second-level cache too.
const LEFT: usize = 192 * 1024;

/// The fewest rows for which a panel is worth unpacking once more by another thread.
const FEW_ROWS: usize = 56;

/// Multiply-adds below which a product stays on the calling thread.
const SMALL: usize = 64 * 1024;

/// A matrix that is written to.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) start: *mut f32,
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// How a block of rows is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// Very few rows straight from the packed form, several sub-panels at once.
    FewRows,
    /// A moderate number of rows straight from the packed form, interleaved for tiles of so many.
    Fused(usize),
    /// Many rows by panels of f32 values.
    Unpacked,
}

/// The right matrix of a product, by panels of 32 columns.
///
/// # Safety
/// `panel` returns a pointer to `[depth][32]` valid values.
pub(crate) unsafe trait Right: Sync {
    /// Rows `depth` (starting at a multiple of 32) of a panel as `[depth][32]`, in `scratch` or where they are.
    ///
    /// # Safety
    /// V is available, the panel exists, `scratch` has room.
    unsafe fn panel<V: Vector>(&self, panel: usize, depth: Range<usize>, scratch: *mut f32) -> *const f32;

    /// How blocks of so many rows are computed.
    fn strategy<V: Vector>(&self, _rows: usize) -> Strategy {
        Strategy::Unpacked
    }

    /// Computes a block of rows straight from the packed form, where [`Right::strategy`] says so. `interleaved` has the rows as
    /// [`interleave`] writes them for [`Strategy::Fused`], if somebody did.
    ///
    /// # Safety
    /// V is available; rows and sub-panels exist.
    unsafe fn multiply_packed<V: Vector>(
        &self,
        _rows: usize,
        _subs: Range<usize>,
        _left: Strided,
        _interleaved: Option<&[f32]>,
        _depth: usize,
        _epilogue: Epilogue,
    ) {
        unreachable!("a matrix without a packed form")
    }
}

/// `out = left · right`, or `out += left · right`.
pub(crate) struct Product {
    pub(crate) left: Strided,
    pub(crate) depth: usize,
    pub(crate) out: Matrix,
    pub(crate) add: bool,
}

// SAFETY: tasks write disjoint blocks of `out` and only read `left`.
unsafe impl Sync for Product {}

impl Product {
    /// # Safety
    /// The matrices are valid for their sizes.
    pub(crate) unsafe fn run(&self, isa: Available, right: &impl Right) {
        // SAFETY: the caller's promise.
        unsafe { by_isa!(isa, Self::split(self, right)) }
    }

    /// Cuts the output into blocks for the threads.
    ///
    /// # Safety
    /// As for [`Product::run`].
    unsafe fn split<V: Vector>(&self, right: &impl Right) {
        let (m, panels, threads) = (self.out.rows, self.out.cols.div_ceil(PANEL), pool::threads());
        let most = (LEFT / self.depth.clamp(1, DEPTH)).max(FEW_ROWS);
        let mut row_tasks = m.div_ceil(most);
        let mut panel_tasks = 1;
        if m * self.out.cols * self.depth <= SMALL {
            row_tasks = row_tasks.max(1);
        } else if m >= threads * FEW_ROWS {
            row_tasks = row_tasks.next_multiple_of(threads);
        } else {
            // One panel more than four a task: enough chains of additions for one row.
            panel_tasks = (2 * threads).min(panels.div_ceil(4)).max(threads).min(panels);
        }
        let rows_each = m.div_ceil(row_tasks.max(1)).max(1);
        let panels_each = panels.div_ceil(panel_tasks.max(1)).max(1);
        let (row_tasks, panel_tasks) = (m.div_ceil(rows_each), panels.div_ceil(panels_each));
        let strategy = right.strategy::<V>(rows_each);
        let run = |interleaved: Option<&[f32]>| {
            pool::parallel_for(row_tasks * panel_tasks, |task| {
                let (row, panel) = (task / panel_tasks * rows_each, task % panel_tasks * panels_each);
                let rows = row..(row + rows_each).min(m);
                let panels = panel..(panel + panels_each).min(panels);
                // SAFETY: the caller's promise; blocks of different tasks are disjoint.
                unsafe {
                    if matches!(strategy, Strategy::FewRows | Strategy::Fused(_)) {
                        self.multiply_packed::<V>(right, rows, panels, interleaved);
                    } else {
                        for depth in parts_of(self.depth) {
                            self.block::<V>(right, rows.clone(), panels.clone(), depth);
                        }
                    }
                }
            });
        };
        match strategy {
            // Tasks that share their rows have them interleaved once.
            Strategy::Fused(tile) if row_tasks == 1 && panel_tasks > 1 => {
                scratch::with(m * self.depth, |interleaved| {
                    // SAFETY: the caller's promise.
                    unsafe { self.interleave_rows::<V>(tile, interleaved) };
                    run(Some(interleaved));
                })
            }
            _ => run(None),
        }
    }

    /// [`interleave`] of all rows, on all threads.
    ///
    /// # Safety
    /// As for [`Product::run`].
    unsafe fn interleave_rows<V: Vector>(&self, most: usize, to: &mut [f32]) {
        // A few tiles a task: one alone takes less time than a thread needs to come.
        let each = most * 4;
        let (rows, to) = (self.out.rows, pool::Parts::new(to));
        pool::parallel_for(rows.div_ceil(each), |task| {
            let (start, end) = (task * each, ((task + 1) * each).min(rows));
            // SAFETY: each task has its own rows; the caller's promise.
            unsafe {
                let to = to.get(start * self.depth..end * self.depth);
                interleave::<V>(self.left.down(start), end - start, most, 0..self.depth, to);
            }
        });
    }

    /// Where the block of these rows and panels goes.
    fn epilogue(&self, rows: &Range<usize>, panels: &Range<usize>) -> Epilogue {
        let sums = if self.add { Sums::Add } else { Sums::Write };
        Epilogue { to: self.out.start, row: self.out.row, cols: self.out.cols, sums }
            .shifted(rows.start, panels.start * PANEL)
    }

    /// # Safety
    /// As for [`Product::run`]; no other thread writes this block.
    unsafe fn multiply_packed<V: Vector>(
        &self,
        right: &impl Right,
        rows: Range<usize>,
        panels: Range<usize>,
        interleaved: Option<&[f32]>,
    ) {
        let (epilogue, left) = (self.epilogue(&rows, &panels), self.left.down(rows.start));
        let subs = PANEL / (2 * V::LANES);
        let subs = panels.start * subs..panels.end * subs;
        // SAFETY: the caller's promise.
        unsafe { right.multiply_packed::<V>(rows.len(), subs, left, interleaved, self.depth, epilogue) }
    }

    /// The part of the sums over `depth` (one of [`parts_of`]) by panels.
    ///
    /// # Safety
    /// As for [`Product::run`]; no other thread writes this block.
    unsafe fn block<V: Vector>(
        &self,
        right: &impl Right,
        rows: Range<usize>,
        panels: Range<usize>,
        depth: Range<usize>,
    ) {
        let (epilogue, left) = (self.epilogue(&rows, &panels), self.left.down(rows.start));
        scratch::with(rows.len() * depth.len(), |a| {
            scratch::with(PANEL * depth.len().min(CHAIN), |b| {
                let tile = tile_rows(rows.len(), V::ROWS);
                // SAFETY: the caller's promise; the scratch buffers are large enough.
                unsafe {
                    interleave::<V>(left, rows.len(), tile, depth.clone(), a);
                    let a =
                        Interleave { start: a.as_ptr(), rows: rows.len(), depth: depth.len(), most: tile };
                    for panel in panels.clone() {
                        let mut epilogue = epilogue.shifted(0, (panel - panels.start) * PANEL);
                        // A chain's part of the panel stays in the first-level cache for all rows.
                        for chain in chains_of(depth.clone()) {
                            if chain.start > 0 {
                                epilogue.sums = Sums::Add;
                            }
                            let b = right.panel::<V>(panel, chain.clone(), b.as_mut_ptr());
                            wide::<V>(a, chain.start - depth.start, chain.len(), b, epilogue);
                        }
                    }
                }
            });
        });
    }
}

/// Cuts all values of k into parts of which a block of the left matrix is laid out at once. There is at least one.
fn parts_of(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth.div_ceil(DEPTH).max(1)).map(move |i| i * DEPTH..((i + 1) * DEPTH).min(depth))
}

/// Cuts values of k into chains. Without any there is one empty chain, which writes zeros.
fn chains_of(depth: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = depth.len().div_ceil(CHAIN).max(1);
    (0..count).map(move |i| {
        let start = depth.start + i * CHAIN;
        start..(start + CHAIN).min(depth.end)
    })
}

/// Rows of each tile: at most `most`, and about as many in every tile.
fn tile_rows(rows: usize, most: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).max(1))
}

/// Cuts rows into blocks for tiles and writes each as `[k][rows]`.
///
/// # Safety
/// V is available; `left` covers the rows and `depth`; `to` has room.
pub(crate) unsafe fn interleave<V: Vector>(
    left: Strided,
    rows: usize,
    most: usize,
    depth: Range<usize>,
    to: &mut [f32],
) {
    for start in (0..rows).step_by(most.max(1)) {
        let count = most.min(rows - start);
        let from = left.down(start).start.wrapping_add(depth.start * left.col);
        let to = to[start * depth.len()..(start + count) * depth.len()].as_mut_ptr();
        // SAFETY: the caller's promise.
        unsafe {
            if left.col == 1 {
                transpose::<V>(count, depth.len(), from, left.row, to, count);
            } else {
                for k in 0..depth.len() {
                    for row in 0..count {
                        *to.add(k * count + row) = *from.add(k * left.col + row * left.row);
                    }
                }
            }
        }
    }
}

/// Rows as [`interleave`] wrote them.
#[derive(Clone, Copy)]
struct Interleave {
    start: *const f32,
    rows: usize,
    depth: usize,
    /// Rows of a tile.
    most: usize,
}

/// Values `first .. first + chain` of k of many interleaved rows times that part of one panel, `[chain][32]`.
///
/// # Safety
/// V is available; `a`, `b` and `epilogue` cover the product.
unsafe fn wide<V: Vector>(a: Interleave, first: usize, chain: usize, b: *const f32, epilogue: Epilogue) {
    let width = 2 * V::LANES;
    for row in (0..a.rows).step_by(a.most.max(1)) {
        let count = (a.rows - row).min(a.most);
        let a = a.start.wrapping_add(row * a.depth + first * count);
        for col in (0..epilogue.cols.min(PANEL)).step_by(width) {
            let b = [Floats { start: b.wrapping_add(col), row: PANEL }];
            let epilogue = epilogue.shifted(row, col);
            macro_rules! by_rows {
                ($($m:literal)*) => {
                    match count {
                        // SAFETY: the caller's promise.
                        $($m => unsafe { V::tile::<_, _, $m, 1>(0..chain, Interleaved::<$m>(a), b, epilogue) },)*
                        _ => unreachable!("no more than 14 rows in a tile"),
                    }
                };
            }
            by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
        }
    }
}

/// Rows of the largest tile that [`direct`] has code for.
const MOST_DIRECT: usize = 12;

/// Rows of each tile of [`direct`].
pub(crate) fn direct_rows<V: Vector, S: Source<V>>(rows: usize) -> usize {
    // With as many rows, a packed word has no register of its own on AVX2; measured, that costs no more than lower tiles do.
    tile_rows(rows, most_rows::<V, S>(1).min(MOST_DIRECT))
}

/// A moderate number of rows straight from the packed form: widening weights in registers costs less than writing them
/// as f32 first, until very many rows share them. `a` holds the rows, [`interleave`]d for tiles of [`direct_rows`].
///
/// # Safety
/// V is available; `a`, the sources and `epilogue` cover the product.
pub(crate) unsafe fn direct<V: Vector, S: Source<V> + Packing>(
    rows: usize,
    subs: Range<usize>,
    a: &[f32],
    depth: usize,
    source: impl Fn(usize) -> S,
    epilogue: Epilogue,
) {
    let most = direct_rows::<V, S>(rows);
    for sub in subs.clone() {
        let next = (sub + 1 < subs.end).then(|| source(sub + 1).start());
        let (source, parts) = (source(sub), rows.div_ceil(most));
        for (part, row) in (0..rows).step_by(most.max(1)).enumerate() {
            // Several tiles over one sub-panel: without this the first would wait for memory, and memory for the others.
            let source = match next {
                Some(next) if parts > 1 => {
                    let bytes = (next as usize).wrapping_sub(source.start() as usize);
                    source.prefetching(Prefetch::part(next, bytes, part, parts))
                }
                _ => source,
            };
            let count = (rows - row).min(most);
            let a = a[row * depth..].as_ptr();
            let mut epilogue = epilogue.shifted(row, (sub - subs.start) * 2 * V::LANES);
            for range in chains_of(0..depth) {
                macro_rules! by_rows {
                    ($($m:literal)*) => {
                        match count {
                            // SAFETY: the caller's promise.
                            $($m => unsafe {
                                V::tile::<_, _, $m, 1>(range, Interleaved::<$m>(a), [source], epilogue)
                            },)*
                            _ => unreachable!("no more than 12 rows in a tile"),
                        }
                    };
                }
                by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
                epilogue.sums = Sums::Add;
            }
        }
    }
}

/// The most rows that [`narrow`] takes at once: of tiles two sub-panels wide, unless those are very low.
pub(crate) const fn few<V: Vector, S: Source<V>>() -> usize {
    let wide = most_rows::<V, S>(2);
    if wide < 4 { most_rows::<V, S>(1) } else { wide }
}

/// A few rows times many sub-panels, several at once so that there are enough independent chains of additions.
///
/// # Safety
/// V is available; `a`, the sources and `epilogue` cover the product.
pub(crate) unsafe fn narrow<V: Vector, A: Rows, S: Source<V>>(
    rows: usize,
    subs: Range<usize>,
    a: A,
    depth: usize,
    source: impl Fn(usize) -> S,
    epilogue: Epilogue,
) {
    if rows == 0 || subs.is_empty() {
        return;
    }
    let rows_each = rows.div_ceil(rows.div_ceil(few::<V, S>()));
    let most = (1..=4).rev().find(|&subs| most_rows::<V, S>(subs) >= rows_each).unwrap_or(1);
    let subs_each = subs.len().div_ceil(subs.len().div_ceil(most));
    let chain = if epilogue.sums == Sums::Continue { depth.max(1) } else { CHAIN };
    // All rows of a group of sub-panels before the next group, so that weights are read from memory once.
    for sub in subs.clone().step_by(subs_each) {
        let count = (subs.end - sub).min(subs_each);
        for row in (0..rows).step_by(rows_each) {
            let (a, mut epilogue) = (a.down(row), epilogue.shifted(row, (sub - subs.start) * 2 * V::LANES));
            let source = |p| source(sub + p);
            for start in (0..depth.max(1)).step_by(chain) {
                let range = start..(start + chain).min(depth);
                macro_rules! by_size {
                    ($($m:literal x $($p:literal)*;)*) => {
                        match ((rows - row).min(rows_each), count) {
                            // SAFETY: the caller's promise.
                            $($(($m, $p) => unsafe {
                                V::tile::<_, _, $m, $p>(range, a, std::array::from_fn::<_, $p, _>(source), epilogue)
                            },)*)*
                            _ => unreachable!("no more than 6 rows or 4 sub-panels in a tile"),
                        }
                    };
                }
                by_size!(1 x 1 2 3 4; 2 x 1 2 3 4; 3 x 1 2 3; 4 x 1 2 3; 5 x 1 2; 6 x 1 2;);
                if epilogue.sums == Sums::Write {
                    epilogue.sums = Sums::Add;
                }
            }
        }
    }
}

/// `out (+)= a · b` on the calling thread, without packing: for small blocks. `b` is row-major, rows `ldb` apart. With
/// `add`, each element's chain starts from what is there.
///
/// # Safety
/// The matrices are valid for their sizes.
pub(crate) unsafe fn strided(
    isa: Available,
    a: Strided,
    depth: usize,
    b: *const f32,
    ldb: usize,
    out: Matrix,
    add: bool,
) {
    // SAFETY: the caller's promise.
    unsafe { by_isa!(isa, strided_with(a, depth, b, ldb, out, add)) }
}

/// # Safety
/// As for [`strided`].
unsafe fn strided_with<V: Vector>(
    a: Strided,
    depth: usize,
    b: *const f32,
    ldb: usize,
    out: Matrix,
    add: bool,
) {
    // One stride less to multiply by at every step is worth a copy of the code.
    // SAFETY: the caller's promise.
    unsafe {
        match (a.row, a.col) {
            (row, 1) => dense::<V, _>(RowMajor { start: a.start, row }, depth, b, ldb, out, add),
            (1, col) => dense::<V, _>(ColMajor { start: a.start, col }, depth, b, ldb, out, add),
            _ => dense::<V, _>(a, depth, b, ldb, out, add),
        }
    }
}

/// # Safety
/// As for [`strided`].
unsafe fn dense<V: Vector, A: Rows>(a: A, depth: usize, b: *const f32, ldb: usize, out: Matrix, add: bool) {
    let width = 2 * V::LANES;
    let sums = if add { Sums::Continue } else { Sums::Write };
    let epilogue = Epilogue { to: out.start, row: out.row, cols: out.cols, sums };
    let full = out.cols / width;
    // SAFETY: the caller's promise.
    unsafe {
        let source = |s| Floats { start: b.wrapping_add(s * width), row: ldb };
        narrow::<V, _, _>(out.rows, 0..full, a, depth, source, epilogue);
        if out.cols > full * width {
            let cols = out.cols - full * width;
            let source = |_| FewFloats { start: b.wrapping_add(full * width), row: ldb, cols };
            narrow::<V, _, _>(out.rows, 0..1, a, depth, source, epilogue.shifted(0, full * width));
        }
    }
}

/// From so many rows on, pairs of bf16 are written as f32 once instead of being widened for each few rows.
const WIDENED_ROWS: usize = 16;

/// [`strided`] for a right matrix of bf16 in pairs of k: `b` is `[depth / 2]` rows of words `ldb` apart, the left matrix has rows
/// of consecutive values, and the output's columns are a multiple of 32. The same bits as [`strided`] gives for the widened values.
///
/// # Safety
/// The matrices are valid for their sizes.
pub(crate) unsafe fn bf16_pairs(
    isa: Available,
    a: RowMajor,
    depth: usize,
    (b, ldb): (*const u32, usize),
    out: Matrix,
    add: bool,
) {
    debug_assert!(out.cols.is_multiple_of(PANEL) && depth.is_multiple_of(2), "whole sub-panels and pairs");
    // SAFETY: the caller's promise.
    unsafe { by_isa!(isa, bf16_pairs_with(a, depth, (b, ldb), out, add)) }
}

/// # Safety
/// As for [`bf16_pairs`].
unsafe fn bf16_pairs_with<V: Vector>(
    a: RowMajor,
    depth: usize,
    (b, ldb): (*const u32, usize),
    out: Matrix,
    add: bool,
) {
    let width = 2 * V::LANES;
    let source = |s| PairsBf16 { start: b.wrapping_add(s * width), row: ldb };
    let subs = 0..out.cols / width;
    if out.rows < WIDENED_ROWS {
        let sums = if add { Sums::Continue } else { Sums::Write };
        let epilogue = Epilogue { to: out.start, row: out.row, cols: out.cols, sums };
        // SAFETY: the caller's promise.
        return unsafe { narrow::<V, _, _>(out.rows, subs, a, depth, source, epilogue) };
    }
    scratch::with(depth * out.cols, |wide| {
        // SAFETY: the caller's promise; `wide` has `depth` rows of all columns.
        unsafe {
            for sub in subs {
                V::unpack(source(sub), 0..depth, wide.as_mut_ptr().add(sub * width), out.cols);
            }
            dense::<V, _>(a, depth, wide.as_ptr(), out.cols, out, add);
        }
    });
}

/// `out[j] = x · rows[j]`, on the calling thread; `rows` is `[out.len(), x.len()]`.
pub(crate) fn dots(isa: Available, x: &[f32], rows: &[f32], out: &mut [f32]) {
    assert_eq!(rows.len(), out.len() * x.len(), "rows of x's length");
    // SAFETY: `isa` proves that its vectors are available; sizes were checked.
    unsafe { by_isa!(isa, dots_with(x, rows, out)) }
}

/// Eight rows at once: each value of x is loaded once for them, and there are enough independent sums.
///
/// # Safety
/// V is available; `rows` is `[out.len(), x.len()]`.
unsafe fn dots_with<V: Vector>(x: &[f32], rows: &[f32], out: &mut [f32]) {
    let len = x.len();
    for (i, out) in out.chunks_mut(8).enumerate() {
        let (x, rows, to) = (x.as_ptr(), rows[i * 8 * len..].as_ptr(), out.as_mut_ptr());
        macro_rules! by_rows {
            ($($j:literal)*) => {
                match out.len() {
                    // SAFETY: the caller's promise.
                    $($j => unsafe { V::dots::<$j>(len, x, rows, len, to) },)*
                    _ => unreachable!("chunks of 8"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8);
    }
}

/// What [`chains`] did.
pub(crate) struct Chains {
    /// Additions and multiplications.
    pub(crate) flops: usize,
    /// Only there so that the work is not left out.
    pub(crate) _sum: f32,
}

/// Multiply-adds on registers alone, `rounds` times: the most that an instruction set can do.
pub(crate) fn chains(isa: Available, rounds: usize) -> Chains {
    // SAFETY: `isa` proves that its vectors are available.
    unsafe { by_isa!(isa, chains_with(rounds)) }
}

/// # Safety
/// V is available.
unsafe fn chains_with<V: Vector>(rounds: usize) -> Chains {
    // SAFETY: the caller's promise.
    Chains { flops: 2 * super::tile::CHAINS * V::LANES * rounds, _sum: unsafe { V::chains(rounds) } }
}

/// `to[j][i] = from[i][j]`, any size.
///
/// # Safety
/// V is available; `from` has `rows` rows of `cols` elements and `to` `cols` rows of `rows`, `from_row` and `to_row` apart.
pub(crate) unsafe fn transpose<V: Vector>(
    rows: usize,
    cols: usize,
    from: *const f32,
    from_row: usize,
    to: *mut f32,
    to_row: usize,
) {
    for i in (0..rows).step_by(V::LANES) {
        for j in (0..cols).step_by(V::LANES) {
            let (height, width) = ((rows - i).min(V::LANES), (cols - j).min(V::LANES));
            // SAFETY: the caller's promise.
            unsafe {
                V::transpose(
                    height,
                    width,
                    from.add(i * from_row + j),
                    from_row,
                    to.add(j * to_row + i),
                    to_row,
                );
            }
        }
    }
}

/// [`transpose`] with an instruction set known at run time.
///
/// # Safety
/// As for [`transpose`], whose V is that of `isa`.
pub(crate) unsafe fn transpose_with(
    isa: Available,
    (rows, cols): (usize, usize),
    from: *const f32,
    from_row: usize,
    to: *mut f32,
    to_row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { by_isa!(isa, transpose(rows, cols, from, from_row, to, to_row)) }
}
