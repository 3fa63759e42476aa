//! Keys and values, a row a slot.

use crate::backend::{PageTable, rows::PAGE_TOKENS};

/// A key or a value, `[kv_width]`.
type Row = Vec<f32>;

/// By block and slot: the key and the value.
#[derive(Debug)]
pub(crate) struct Pages {
    blocks: Vec<Vec<(Row, Row)>>,
}

impl Pages {
    pub(super) fn new(blocks: usize) -> Self {
        Self { blocks: vec![Vec::new(); blocks] }
    }

    pub(super) fn grow(&mut self, pages: usize) {
        for slots in &mut self.blocks {
            slots.resize((pages * PAGE_TOKENS).max(slots.len()), (Vec::new(), Vec::new()));
        }
    }

    pub(super) fn copy(&mut self, from: u32, to: u32) {
        for slots in &mut self.blocks {
            for slot in 0..PAGE_TOKENS {
                slots[to as usize * PAGE_TOKENS + slot] = slots[from as usize * PAGE_TOKENS + slot].clone();
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let rows = self.blocks.iter().flatten().map(|(k, v)| k.len() + v.len());
        rows.sum::<usize>() * size_of::<f32>()
    }

    /// Stores the last rows of a sequence and returns all its keys and values.
    pub(super) fn append(
        &mut self,
        block: usize,
        table: &PageTable,
        keys: Vec<Row>,
        values: Vec<Row>,
    ) -> (Vec<f32>, Vec<f32>) {
        let slots = &mut self.blocks[block];
        let slot = |at: usize| table.pages[at / PAGE_TOKENS] as usize * PAGE_TOKENS + at % PAGE_TOKENS;
        let first = table.len - keys.len();
        for (at, row) in (first..).zip(keys.into_iter().zip(values)) {
            slots[slot(at)] = row;
        }
        (0..table.len).map(|at| &slots[slot(at)]).fold((Vec::new(), Vec::new()), |(mut k, mut v), row| {
            k.extend_from_slice(&row.0);
            v.extend_from_slice(&row.1);
            (k, v)
        })
    }
}
