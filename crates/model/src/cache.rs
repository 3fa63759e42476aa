//! Keys and values of sequences that are being continued.
//!
//! On the CPU they live in pages of [`PAGE_TOKENS`] tokens that sequences share while they are equal: a prompt prefix is
//! computed once, and forking a sequence copies at most its last, partly filled page. The portable body keeps tensors.

use candle_core::Tensor;

use crate::ops::portable::Past;

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 64;

/// A sequence in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(usize);

/// The cache of one model.
#[derive(Debug)]
pub(crate) enum KvCache {
    /// For the fused body.
    Paged(PagedCache),
    /// For the portable body: by sequence, by block.
    Tensors(Vec<Option<TensorSequence>>),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct TensorSequence {
    pub(crate) len: usize,
    pub(crate) blocks: Vec<Option<(Tensor, Tensor)>>,
}

/// The page tables and lengths of some sequences, and one block's pools.
pub(crate) struct PagedParts<'a> {
    pub(crate) tables: Vec<(&'a [u32], usize)>,
    pub(crate) keys: &'a mut [f32],
    pub(crate) values: &'a mut [f32],
}

/// Pages of every block and the page tables of the sequences.
#[derive(Debug)]
pub(crate) struct PagedCache {
    /// Width of a key row (and of a value row).
    width: usize,
    /// By block: pages of `PAGE_TOKENS · width` values, laid out as [`mixse_kernels::KvPool`] says.
    pub(crate) keys: Vec<Vec<f32>>,
    pub(crate) values: Vec<Vec<f32>>,
    /// Sequences that hold each page.
    holders: Vec<u32>,
    free: Vec<u32>,
    sequences: Vec<Option<PagedSequence>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct PagedSequence {
    pub(crate) len: usize,
    pub(crate) pages: Vec<u32>,
}

impl PagedCache {
    pub(crate) fn new(blocks: usize, width: usize) -> Self {
        Self {
            width,
            keys: vec![Vec::new(); blocks],
            values: vec![Vec::new(); blocks],
            holders: Vec::new(),
            free: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Makes room for so many pages. Growing by a quarter at least keeps the number of copies small, and memory in proportion
    /// to the tokens.
    fn reserve(&mut self, pages: usize) {
        if pages <= self.free.len() {
            return;
        }
        let old = self.holders.len();
        let new = old + (pages - self.free.len()).max(old / 4);
        let len = new * PAGE_TOKENS * self.width;
        for pool in self.keys.iter_mut().chain(&mut self.values) {
            pool.reserve_exact(len - pool.len());
            pool.resize(len, 0.0);
        }
        self.holders.resize(new, 0);
        self.free.extend((old as u32..new as u32).rev());
    }

    fn take_page(&mut self) -> u32 {
        self.reserve(1);
        let page = self.free.pop().unwrap_or_default();
        self.holders[page as usize] = 1;
        page
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&PagedSequence> {
        self.sequences.get(id.0)?.as_ref()
    }

    /// Makes room for `new` more tokens and counts them as present.
    fn extend(&mut self, id: SequenceId, new: usize) {
        let Some(mut sequence) = self.sequences.get_mut(id.0).and_then(Option::take) else { return };
        sequence.len += new;
        while sequence.pages.len() * PAGE_TOKENS < sequence.len {
            let page = self.take_page();
            sequence.pages.push(page);
        }
        self.sequences[id.0] = Some(sequence);
    }

    fn fork(&mut self, id: SequenceId) -> PagedSequence {
        let mut copy = self.sequence(id).cloned().unwrap_or_default();
        let filled = copy.len % PAGE_TOKENS;
        let shared = copy.pages.len() - usize::from(filled > 0);
        for &page in &copy.pages[..shared] {
            self.holders[page as usize] += 1;
        }
        if filled > 0 {
            let (from, to) = (copy.pages[shared] as usize, self.take_page());
            let page = PAGE_TOKENS * self.width;
            for pool in self.keys.iter_mut().chain(&mut self.values) {
                pool.copy_within(from * page..(from + 1) * page, to as usize * page);
            }
            copy.pages[shared] = to;
        }
        copy
    }

    /// The page tables and lengths of `ids`, and the pools of one block.
    pub(crate) fn parts(&mut self, ids: &[SequenceId], block: usize) -> PagedParts<'_> {
        let tables = ids
            .iter()
            .map(|id| {
                self.sequences
                    .get(id.0)
                    .and_then(Option::as_ref)
                    .map_or((&[][..], 0), |s| (&s.pages[..], s.len))
            })
            .collect();
        PagedParts { tables, keys: &mut self.keys[block], values: &mut self.values[block] }
    }

    fn release(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(id.0).and_then(Option::take) else { return };
        for page in sequence.pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }

    /// Pages that hold live tokens.
    #[cfg(test)]
    fn used_pages(&self) -> usize {
        self.holders.len() - self.free.len()
    }
}

impl KvCache {
    /// A sequence without tokens.
    pub(crate) fn start(&mut self) -> SequenceId {
        match self {
            Self::Paged(cache) => insert(&mut cache.sequences, PagedSequence::default()),
            Self::Tensors(sequences) => insert(sequences, TensorSequence::default()),
        }
    }

    /// A sequence that starts with everything `id` holds.
    pub(crate) fn fork(&mut self, id: SequenceId) -> SequenceId {
        match self {
            Self::Paged(cache) => {
                let copy = cache.fork(id);
                insert(&mut cache.sequences, copy)
            }
            Self::Tensors(sequences) => {
                let copy = sequences.get(id.0).cloned().flatten().unwrap_or_default();
                insert(sequences, copy)
            }
        }
    }

    /// Forgets a sequence.
    pub(crate) fn release(&mut self, id: SequenceId) {
        match self {
            Self::Paged(cache) => cache.release(id),
            Self::Tensors(sequences) => {
                if let Some(slot) = sequences.get_mut(id.0) {
                    *slot = None;
                }
            }
        }
    }

    /// Tokens of a sequence.
    pub(crate) fn len(&self, id: SequenceId) -> usize {
        match self {
            Self::Paged(cache) => cache.sequence(id).map_or(0, |s| s.len),
            Self::Tensors(sequences) => sequences.get(id.0).and_then(Option::as_ref).map_or(0, |s| s.len),
        }
    }

    /// Bytes held for keys and values.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Paged(cache) => {
                cache.keys.iter().chain(&cache.values).map(|pool| pool.len() * size_of::<f32>()).sum()
            }
            Self::Tensors(sequences) => {
                let blocks = sequences.iter().flatten().flat_map(|s| s.blocks.iter().flatten());
                blocks.map(|(k, v)| (k.elem_count() + v.elem_count()) * size_of::<f32>()).sum()
            }
        }
    }

    /// Makes room for so many more tokens of each sequence at once.
    pub(crate) fn reserve(&mut self, more: impl Iterator<Item = (SequenceId, usize)>) {
        if let Self::Paged(cache) = self {
            let pages = more.map(|(id, new)| {
                let held = cache.sequence(id).map_or((0, 0), |s| (s.len, s.pages.len()));
                (held.0 + new).div_ceil(PAGE_TOKENS).saturating_sub(held.1)
            });
            let pages = pages.sum();
            cache.reserve(pages);
        }
    }

    /// Counts `new` tokens as present; their keys and values are written by the pass that follows.
    pub(crate) fn extend(&mut self, id: SequenceId, new: usize) {
        match self {
            Self::Paged(cache) => cache.extend(id, new),
            Self::Tensors(sequences) => {
                if let Some(Some(sequence)) = sequences.get_mut(id.0) {
                    sequence.len += new;
                }
            }
        }
    }
}

/// What block `block` of the given sequences holds, taken out for a portable pass and put back by [`put_past`].
pub(crate) fn take_past(
    sequences: &mut [Option<TensorSequence>],
    ids: &[SequenceId],
    block: usize,
) -> Vec<Past> {
    ids.iter().map(|id| sequences.get_mut(id.0)?.as_mut()?.blocks.get_mut(block)?.take()).collect()
}

/// Puts back what [`take_past`] took, with the new rows.
pub(crate) fn put_past(
    sequences: &mut [Option<TensorSequence>],
    ids: &[SequenceId],
    block: usize,
    past: Vec<Past>,
) {
    for (id, past) in ids.iter().zip(past) {
        if let Some(Some(sequence)) = sequences.get_mut(id.0) {
            if sequence.blocks.len() <= block {
                sequence.blocks.resize(block + 1, None);
            }
            sequence.blocks[block] = past;
        }
    }
}

fn insert<T>(slots: &mut Vec<Option<T>>, value: T) -> SequenceId {
    let free = slots.iter().position(Option::is_none);
    let index = free.unwrap_or(slots.len());
    if free.is_none() {
        slots.push(None);
    }
    slots[index] = Some(value);
    SequenceId(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cache: &PagedCache, id: SequenceId, at: usize) -> f32 {
        let sequence = cache.sequence(id).unwrap();
        cache.keys[0][sequence.pages[at / PAGE_TOKENS] as usize * PAGE_TOKENS + at % PAGE_TOKENS]
    }

    fn write(cache: &mut PagedCache, id: SequenceId, at: usize, value: f32) {
        let page = cache.sequence(id).unwrap().pages[at / PAGE_TOKENS] as usize;
        cache.keys[0][page * PAGE_TOKENS + at % PAGE_TOKENS] = value;
    }

    #[test]
    fn a_fork_shares_whole_pages_and_copies_the_last() {
        let mut cache = KvCache::Paged(PagedCache::new(1, 1));
        let prefix = cache.start();
        cache.extend(prefix, PAGE_TOKENS + 3);
        let KvCache::Paged(paged) = &mut cache else { unreachable!() };
        for at in 0..PAGE_TOKENS + 3 {
            write(paged, prefix, at, at as f32);
        }
        let fork = cache.fork(prefix);
        cache.extend(fork, 1);
        let KvCache::Paged(paged) = &mut cache else { unreachable!() };
        assert_eq!(paged.used_pages(), 3);
        write(paged, fork, PAGE_TOKENS + 3, 99.0);
        assert_eq!(row(paged, fork, 5), 5.0);
        assert_eq!(row(paged, fork, PAGE_TOKENS + 2), (PAGE_TOKENS + 2) as f32);
        write(paged, fork, PAGE_TOKENS, -1.0);
        assert_eq!(row(paged, prefix, PAGE_TOKENS), PAGE_TOKENS as f32, "the prefix's own page is untouched");
        cache.release(prefix);
        cache.release(fork);
        let KvCache::Paged(paged) = &cache else { unreachable!() };
        assert_eq!(paged.used_pages(), 0);
    }

    #[test]
    fn pages_are_reused_and_lengths_kept_apart() {
        let mut cache = KvCache::Paged(PagedCache::new(2, 4));
        let first = cache.start();
        cache.extend(first, 200);
        cache.release(first);
        let second = cache.start();
        assert_eq!(cache.len(second), 0);
        cache.extend(second, 64);
        assert_eq!(cache.len(second), 64);
        let KvCache::Paged(paged) = &cache else { unreachable!() };
        assert_eq!(paged.used_pages(), 1);
    }
}
