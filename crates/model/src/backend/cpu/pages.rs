//! Keys and values of every block, in pages.

use crate::backend::rows::PAGE_TOKENS;

/// By block: pages of `PAGE_TOKENS · width` values, laid out as [`mixse_kernels::KvPool`] says.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Width of a key row (and of a value row).
    width: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Pages {
    pub(super) fn new(blocks: usize, width: usize) -> Self {
        Self { width, keys: vec![Vec::new(); blocks], values: vec![Vec::new(); blocks] }
    }

    pub(super) fn grow(&mut self, count: usize) {
        let len = count * PAGE_TOKENS * self.width;
        for pool in self.keys.iter_mut().chain(&mut self.values) {
            pool.reserve_exact(len.saturating_sub(pool.len()));
            pool.resize(len.max(pool.len()), 0.0);
        }
    }

    pub(super) fn copy(&mut self, from: u32, to: u32) {
        let page = PAGE_TOKENS * self.width;
        let (from, to) = (from as usize * page, to as usize * page);
        for pool in self.keys.iter_mut().chain(&mut self.values) {
            pool.copy_within(from..from + page, to);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(|pool| pool.len() * size_of::<f32>()).sum()
    }

    /// Keys and values of one block.
    pub(super) fn of_block(&mut self, block: usize) -> (&mut [f32], &mut [f32]) {
        (&mut self.keys[block], &mut self.values[block])
    }
}
