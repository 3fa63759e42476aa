//! Memory for intermediate values, kept by each thread between operations.

use std::cell::RefCell;

/// A cache line of f32 values.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; LINE]);

pub(crate) const LINE: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with `len` values of arbitrary content, aligned to a cache line. May be nested.
pub(crate) fn with<T>(len: usize, body: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut lines = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let needed = len.div_ceil(LINE);
    if lines.len() < needed {
        // Nothing of the old content is needed, so nothing is copied.
        lines = vec![Line([0.0; LINE]); needed];
    }
    let result = body(&mut flat_mut(&mut lines)[..len]);
    FREE.with_borrow_mut(|free| free.push(lines));
    result
}

/// The lines' values.
pub(crate) fn flat_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 f32 values without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nested_buffers_are_distinct() {
        super::with(5, |a| {
            a.fill(1.0);
            super::with(7, |b| b.fill(2.0));
            assert_eq!(a, [1.0; 5]);
        });
    }
}
