//! Sequences that are being continued, and the pages that hold their keys and values.
//!
//! Pages are of [`PAGE_TOKENS`] tokens, and sequences share them while they are equal: a prompt prefix is computed once, and
//! forking a sequence copies at most its last, partly filled page. Which pages a sequence has is decided here, on the host; what is
//! in them lies with the backend, in one or more pools that are numbered alike.

use crate::backend::rows::{PAGE_TOKENS, PageTable};

/// A sequence in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(usize);

/// The page tables of the sequences.
#[derive(Debug, Default)]
pub(crate) struct PageTables {
    /// Sequences that hold each page.
    holders: Vec<u32>,
    free: Vec<u32>,
    sequences: Vec<Option<PageTable>>,
}

/// A page whose content has to be copied to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageCopy {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl PageTables {
    /// A sequence without tokens.
    pub(crate) fn start(&mut self) -> SequenceId {
        self.insert(PageTable { pages: Vec::new(), len: 0 })
    }

    /// Tokens of a sequence.
    pub(crate) fn len(&self, id: SequenceId) -> usize {
        self.table(id).map_or(0, |table| table.len)
    }

    /// A sequence's pages and tokens.
    pub(crate) fn table(&self, id: SequenceId) -> Option<&PageTable> {
        self.sequences.get(id.0)?.as_ref()
    }

    /// Pages that there must be room for.
    pub(crate) fn pages(&self) -> usize {
        self.holders.len()
    }

    /// Makes room for so many more tokens of each sequence at once. Growing by a quarter at least keeps the number of copies
    /// small, and memory in proportion to the tokens.
    pub(crate) fn reserve(&mut self, more: impl Iterator<Item = (SequenceId, usize)>) {
        let pages = more.map(|(id, new)| {
            let held = self.table(id).map_or((0, 0), |table| (table.len, table.pages.len()));
            (held.0 + new).div_ceil(PAGE_TOKENS).saturating_sub(held.1)
        });
        self.reserve_pages(pages.sum());
    }

    fn reserve_pages(&mut self, pages: usize) {
        if pages <= self.free.len() {
            return;
        }
        let old = self.holders.len();
        let new = old + (pages - self.free.len()).max(old / 4);
        self.holders.resize(new, 0);
        self.free.extend((old as u32..new as u32).rev());
    }

    fn take_page(&mut self) -> u32 {
        self.reserve_pages(1);
        let page = self.free.pop().unwrap_or_default();
        self.holders[page as usize] = 1;
        page
    }

    /// Counts `new` tokens as present; their keys and values are written by the pass that follows.
    pub(crate) fn extend(&mut self, id: SequenceId, new: usize) {
        let Some(mut table) = self.sequences.get_mut(id.0).and_then(Option::take) else { return };
        table.len += new;
        while table.pages.len() * PAGE_TOKENS < table.len {
            let page = self.take_page();
            table.pages.push(page);
        }
        self.sequences[id.0] = Some(table);
    }

    /// A sequence that starts with everything `id` holds, and the page that has to be copied for it.
    pub(crate) fn fork(&mut self, id: SequenceId) -> (SequenceId, Option<PageCopy>) {
        let mut table = self.table(id).cloned().unwrap_or(PageTable { pages: Vec::new(), len: 0 });
        let filled = table.len % PAGE_TOKENS;
        let shared = table.pages.len() - usize::from(filled > 0);
        for &page in &table.pages[..shared] {
            self.holders[page as usize] += 1;
        }
        let mut copy = None;
        if filled > 0 {
            let (from, to) = (table.pages[shared], self.take_page());
            table.pages[shared] = to;
            copy = Some(PageCopy { from, to });
        }
        (self.insert(table), copy)
    }

    /// Forgets a sequence.
    pub(crate) fn release(&mut self, id: SequenceId) {
        let Some(table) = self.sequences.get_mut(id.0).and_then(Option::take) else { return };
        for page in table.pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }

    fn insert(&mut self, table: PageTable) -> SequenceId {
        let free = self.sequences.iter().position(Option::is_none);
        let index = free.unwrap_or(self.sequences.len());
        if free.is_none() {
            self.sequences.push(None);
        }
        self.sequences[index] = Some(table);
        SequenceId(index)
    }

    /// Pages that hold live tokens.
    #[cfg(test)]
    fn used_pages(&self) -> usize {
        self.holders.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_shares_whole_pages_and_copies_the_last() {
        let mut tables = PageTables::default();
        let prefix = tables.start();
        tables.extend(prefix, PAGE_TOKENS + 3);
        let (fork, copy) = tables.fork(prefix);
        tables.extend(fork, 1);
        assert_eq!(tables.used_pages(), 3);
        let pages = |id| tables.table(id).unwrap().pages.clone();
        assert_eq!(pages(prefix)[0], pages(fork)[0]);
        assert_eq!(copy, Some(PageCopy { from: pages(prefix)[1], to: pages(fork)[1] }));
        assert_ne!(pages(prefix)[1], pages(fork)[1]);
        assert_eq!(tables.len(fork), PAGE_TOKENS + 4);
        tables.release(prefix);
        tables.release(fork);
        assert_eq!(tables.used_pages(), 0);
    }

    #[test]
    fn a_fork_at_the_end_of_a_page_copies_nothing() {
        let mut tables = PageTables::default();
        let prefix = tables.start();
        tables.extend(prefix, PAGE_TOKENS);
        let (fork, copy) = tables.fork(prefix);
        assert_eq!((copy, tables.used_pages()), (None, 1));
        tables.extend(fork, 1);
        tables.extend(prefix, 1);
        assert_ne!(tables.table(fork).unwrap().pages[1], tables.table(prefix).unwrap().pages[1]);
    }

    #[test]
    fn pages_are_reused_and_lengths_kept_apart() {
        let mut tables = PageTables::default();
        let first = tables.start();
        tables.extend(first, 200);
        tables.release(first);
        let second = tables.start();
        assert_eq!(tables.len(second), 0);
        tables.extend(second, 64);
        assert_eq!((tables.len(second), tables.used_pages()), (64, 1));
    }
}
