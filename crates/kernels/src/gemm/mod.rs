//! Matrix products: of activations with frozen weights ([`matmul`], [`matmul_transposed`]) and of any two f32 matrices
//! ([`gemm`]).
//!
//! Invariant: every output element is a sum of chains of multiply-adds over ascending k, cut at the same places
//! ([`tile::CHAIN`]). Its bits depend on its row of the left matrix, its column of the right one and the instruction set;
//! not on the other rows, the batch or the threads.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod drive;
pub(crate) mod integer;
pub(crate) mod left;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub(crate) mod source;
pub(crate) mod tile;
pub(crate) mod vector;

use std::ops::Range;

pub(crate) use drive::{Matrix, bf16_pairs, chains, dots, strided, transpose_with};
use drive::{Product, Right, Strategy};
use left::{RowMajor, Strided};
use source::{GROUP, Packing, Source};
use tile::{Epilogue, PANEL};
use vector::Vector;

use crate::packed::{Packed, Storage, WithSources};
use crate::{isa, scratch};

/// What happens to the values that are in the output already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// They are not read.
    Overwrite,
    /// The product's chains are added to them, each when it is finished.
    Add,
}

/// `y[m, n] = x[m, k] · Wᵀ`, W being `[n, k]`. A weight that [rounds activations](Packed::rounding_activations) sees 16 bits of
/// them.
///
/// # Panics
/// If the slices do not have these sizes.
pub fn matmul(x: &[f32], m: usize, w: &Packed, y: &mut [f32], accumulate: Accumulate) {
    assert_eq!(x.len(), m * w.k(), "x is [{m}, {}]", w.k());
    assert_eq!(y.len(), m * w.n(), "y is [{m}, {}]", w.n());
    if w.rounds_activations() {
        return integer::matmul(x, m, w, y, accumulate);
    }
    let isa = isa::active();
    #[cfg(target_arch = "x86_64")]
    if let (Some(tiles), Storage::Bf16) = (isa.tiles(), w.storage()) {
        return amx::matmul(tiles, x, m, w, y, accumulate);
    }
    let left = Strided { start: x.as_ptr(), row: w.k(), col: 1 };
    let out = Matrix { start: y.as_mut_ptr(), row: w.n(), rows: m, cols: w.n() };
    // SAFETY: the sizes were checked.
    unsafe { Product { left, depth: w.k(), out, add: accumulate == Accumulate::Add }.run(isa, &Forward(w)) }
}

/// `dx[m, k] = dy[m, n] · W`, W being `[n, k]`: the gradient of [`matmul`]'s input, from the same single copy of W.
///
/// # Panics
/// If the slices do not have these sizes.
pub fn matmul_transposed(dy: &[f32], m: usize, w: &Packed, dx: &mut [f32], accumulate: Accumulate) {
    assert_eq!(dy.len(), m * w.n(), "dy is [{m}, {}]", w.n());
    assert_eq!(dx.len(), m * w.k(), "dx is [{m}, {}]", w.k());
    let isa = isa::active();
    #[cfg(target_arch = "x86_64")]
    if let (Some(tiles), Storage::Bf16) = (isa.tiles(), w.storage()) {
        return amx::matmul_transposed(tiles, dy, m, w, dx, accumulate);
    }
    let left = Strided { start: dy.as_ptr(), row: w.n(), col: 1 };
    let out = Matrix { start: dx.as_mut_ptr(), row: w.k(), rows: m, cols: w.k() };
    // SAFETY: the sizes were checked.
    unsafe { Product { left, depth: w.n(), out, add: accumulate == Accumulate::Add }.run(isa, &Backward(w)) }
}

/// An `[m, k]` operand whose element (i, j) is at `i * row_stride + j * col_stride`; strides `(1, m)` transpose.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance of two rows.
    pub row_stride: usize,
    /// Distance of two columns.
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// Contiguous rows of `cols` elements.
    pub fn rows(data: &'a [f32], cols: usize) -> Self {
        Self { data, row_stride: cols, col_stride: 1 }
    }

    /// The transpose of contiguous rows of `cols` elements.
    pub fn transposed(data: &'a [f32], cols: usize) -> Self {
        Self { data, row_stride: 1, col_stride: cols }
    }
}

/// `c[m, n] = a[m, k] · b[k, n]` in f32; `b` and `c` are row-major with rows `ldb` and `ldc` apart.
///
/// # Panics
/// If a slice is too short for these sizes, or `ldc < n`.
#[allow(clippy::too_many_arguments, reason = "the customary arguments of a matrix product")]
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    a: View<'_>,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
    accumulate: Accumulate,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(ldc >= n && c.len() >= (m - 1) * ldc + n, "c is [{m}, {n}], rows {ldc} apart");
    assert!(k == 0 || b.len() >= (k - 1) * ldb + n, "b is [{k}, {n}], rows {ldb} apart");
    assert!(
        k == 0 || a.data.len() > (m - 1) * a.row_stride + (k - 1) * a.col_stride,
        "a is [{m}, {k}], strides {} and {}",
        a.row_stride,
        a.col_stride
    );
    let left = Strided { start: a.data.as_ptr(), row: a.row_stride, col: a.col_stride };
    let out = Matrix { start: c.as_mut_ptr(), row: ldc, rows: m, cols: n };
    let product = Product { left, depth: k, out, add: accumulate == Accumulate::Add };
    // SAFETY: the sizes were checked.
    unsafe { product.run(isa::active(), &Plain { start: b.as_ptr(), row: ldb, cols: n }) }
}

/// Billions of bf16 operations a second in AMX tiles, on all threads, if there are any.
pub(crate) fn amx_gflops() -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = amx::usable() {
        let flops = std::sync::atomic::AtomicUsize::new(0);
        let seconds = crate::ceilings::shortest(std::time::Duration::from_millis(150), |_| {
            flops.store(amx::tile_flops(tiles, 10_000), std::sync::atomic::Ordering::Relaxed);
        });
        return Some(flops.into_inner() as f64 * crate::pool::threads() as f64 / seconds * 1e-9);
    }
    None
}

/// A packed weight whose outputs are the columns.
struct Forward<'a>(&'a Packed);

// SAFETY: writes whole panels of the asked depth, or gives the packed panel itself.
unsafe impl Right for Forward<'_> {
    unsafe fn panel<V: Vector>(&self, panel: usize, depth: Range<usize>, scratch: *mut f32) -> *const f32 {
        let w = self.0;
        if w.storage() == Storage::F32 {
            return w.panel(panel).cast::<f32>().wrapping_add(depth.start * PANEL);
        }
        // SAFETY: the caller's promise.
        unsafe { unpack_panel::<V>(w, panel, depth, scratch) };
        scratch
    }

    fn strategy<V: Vector>(&self, rows: usize) -> Strategy {
        struct Choose(usize);
        impl<V: Vector> WithSources<V> for Choose {
            type Output = Strategy;
            fn call<S: Source<V> + Packing>(
                self,
                most_rows: usize,
                _source: impl Fn(usize) -> S,
            ) -> Strategy {
                let Self(rows) = self;
                if rows <= drive::few::<V, S>().min(most_rows) {
                    Strategy::FewRows
                } else if rows <= most_rows {
                    Strategy::Fused(drive::direct_rows::<V, S>(rows))
                } else {
                    Strategy::Unpacked
                }
            }
        }
        self.0.with_sources::<V, _>(Choose(rows))
    }

    unsafe fn multiply_packed<V: Vector>(
        &self,
        rows: usize,
        subs: Range<usize>,
        left: Strided,
        interleaved: Option<&[f32]>,
        depth: usize,
        epilogue: Epilogue,
    ) {
        struct MultiplyPacked<'a> {
            strategy: Strategy,
            rows: usize,
            subs: Range<usize>,
            left: Strided,
            interleaved: Option<&'a [f32]>,
            depth: usize,
            epilogue: Epilogue,
        }
        impl<V: Vector> WithSources<V> for MultiplyPacked<'_> {
            type Output = ();
            fn call<S: Source<V> + Packing>(self, _most_rows: usize, source: impl Fn(usize) -> S) {
                let Self { strategy, rows, subs, left, interleaved, depth, epilogue } = self;
                // SAFETY: the promise of `multiply_packed`'s caller.
                unsafe {
                    match (strategy, interleaved) {
                        (Strategy::Fused(_), Some(interleaved)) => {
                            drive::direct::<V, _>(rows, subs, interleaved, depth, source, epilogue);
                        }
                        (Strategy::Fused(tile), None) => scratch::with(rows * depth, |a| {
                            drive::interleave::<V>(left, rows, tile, 0..depth, a);
                            drive::direct::<V, _>(rows, subs, a, depth, source, epilogue);
                        }),
                        _ => {
                            let a = RowMajor { start: left.start, row: left.row };
                            drive::narrow::<V, _, _>(rows, subs, a, depth, source, epilogue);
                        }
                    }
                }
            }
        }
        debug_assert_eq!(left.col, 1, "activations lie in rows");
        let strategy = self.strategy::<V>(rows);
        self.0.with_sources::<V, _>(MultiplyPacked {
            strategy,
            rows,
            subs,
            left,
            interleaved,
            depth,
            epilogue,
        });
    }
}

/// Writes `[depth][32]` f32 weights of a panel; `depth.start` is a multiple of 32.
///
/// # Safety
/// V is available, `to` has room.
unsafe fn unpack_panel<V: Vector>(w: &Packed, panel: usize, depth: Range<usize>, to: *mut f32) {
    struct Unpack {
        panel: usize,
        depth: Range<usize>,
        to: *mut f32,
    }
    impl<V: Vector> WithSources<V> for Unpack {
        type Output = ();
        fn call<S: Source<V> + Packing>(self, _most_rows: usize, source: impl Fn(usize) -> S) {
            let width = 2 * V::LANES;
            for sub in 0..PANEL / width {
                let source = source(self.panel * (PANEL / width) + sub);
                // SAFETY: the promise of `unpack_panel`'s caller.
                unsafe { V::unpack(source, self.depth.clone(), self.to.wrapping_add(sub * width), PANEL) }
            }
        }
    }
    w.with_sources::<V, _>(Unpack { panel, depth, to });
}

/// A packed weight whose inputs are the columns: its panels are transposed on the fly.
struct Backward<'a>(&'a Packed);

// SAFETY: writes whole panels of the asked depth.
unsafe impl Right for Backward<'_> {
    unsafe fn panel<V: Vector>(&self, panel: usize, depth: Range<usize>, scratch: *mut f32) -> *const f32 {
        let w = self.0;
        let inputs = panel * PANEL..((panel + 1) * PANEL).min(w.k());
        let mut block = [0.0_f32; GROUP * PANEL];
        for outputs in depth.clone().step_by(PANEL) {
            // SAFETY: `depth` starts at a multiple of 32, so this is one packed panel; `block` holds 32 x 32 values
            // (rows of inputs that do not exist stay zero), and `scratch` has room for `depth` rows.
            unsafe {
                unpack_panel::<V>(w, outputs / PANEL, inputs.clone(), block.as_mut_ptr());
                let rows = (depth.end - outputs).min(PANEL);
                let to = scratch.add((outputs - depth.start) * PANEL);
                drive::transpose::<V>(PANEL, rows, block.as_ptr(), PANEL, to, PANEL);
            }
        }
        scratch
    }
}

/// A row-major f32 matrix.
struct Plain {
    start: *const f32,
    row: usize,
    cols: usize,
}

// SAFETY: only shared reads.
unsafe impl Sync for Plain {}

// SAFETY: writes whole panels of the asked depth.
unsafe impl Right for Plain {
    unsafe fn panel<V: Vector>(&self, panel: usize, depth: Range<usize>, scratch: *mut f32) -> *const f32 {
        let cols = (self.cols - panel * PANEL).min(PANEL);
        for (i, k) in depth.enumerate() {
            // SAFETY: row k and the columns of the panel are inside the matrix; `scratch` has room for `depth` rows.
            unsafe {
                let to = std::slice::from_raw_parts_mut(scratch.add(i * PANEL), PANEL);
                let from = std::slice::from_raw_parts(self.start.add(k * self.row + panel * PANEL), cols);
                to[..cols].copy_from_slice(from);
                to[cols..].fill(0.0);
            }
        }
        scratch
    }
}

#[cfg(test)]
mod tests;
