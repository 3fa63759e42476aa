//! Keys and values of every block, in pages.

use mixse_kernels::KvStorage;

/// By block: pages laid out as [`mixse_kernels::KvPool`] says.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Elements of a page of keys (and of one of values).
    page: usize,
    storage: KvStorage,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Pages {
    pub(super) fn new(blocks: usize, page: usize, storage: KvStorage) -> Self {
        Self { page, storage, keys: vec![Vec::new(); blocks], values: vec![Vec::new(); blocks] }
    }

    /// How keys and values are kept.
    pub(super) fn storage(&self) -> KvStorage {
        self.storage
    }

    pub(super) fn grow(&mut self, count: usize) {
        let len = count * self.page;
        for pool in self.keys.iter_mut().chain(&mut self.values) {
            pool.reserve_exact(len.saturating_sub(pool.len()));
            pool.resize(len.max(pool.len()), 0.0);
        }
    }

    pub(super) fn copy(&mut self, from: u32, to: u32) {
        let page = self.page;
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
