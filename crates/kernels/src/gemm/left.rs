//! The left matrix of a product, as a tile reads it: one element after the other, each for all columns.

/// Element (row, k) of the left matrix.
pub(crate) trait Left: Copy {
    /// # Safety
    /// The element is inside the matrix.
    unsafe fn at(self, row: usize, k: usize) -> f32;
}

/// A left matrix that can be entered at any row.
pub(crate) trait Rows: Left {
    /// The matrix from `rows` down.
    fn down(self, rows: usize) -> Self;
}

/// Any two strides.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl Left for Strided {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(row * self.row + k * self.col) }
    }
}

impl Rows for Strided {
    #[inline(always)]
    fn down(self, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(rows * self.row), ..self }
    }
}

/// Contiguous rows.
#[derive(Clone, Copy)]
pub(crate) struct RowMajor {
    pub(crate) start: *const f32,
    pub(crate) row: usize,
}

impl Left for RowMajor {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(row * self.row + k) }
    }
}

impl Rows for RowMajor {
    #[inline(always)]
    fn down(self, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(rows * self.row), ..self }
    }
}

/// Contiguous columns: the transpose of contiguous rows.
#[derive(Clone, Copy)]
pub(crate) struct ColMajor {
    pub(crate) start: *const f32,
    pub(crate) col: usize,
}

impl Left for ColMajor {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(k * self.col + row) }
    }
}

impl Rows for ColMajor {
    #[inline(always)]
    fn down(self, rows: usize) -> Self {
        Self { start: self.start.wrapping_add(rows), ..self }
    }
}

/// `[k][M]`: the M values of one step side by side.
#[derive(Clone, Copy)]
pub(crate) struct Interleaved<const M: usize>(pub(crate) *const f32);

impl<const M: usize> Left for Interleaved<M> {
    #[inline(always)]
    unsafe fn at(self, row: usize, k: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(k * M + row) }
    }
}
