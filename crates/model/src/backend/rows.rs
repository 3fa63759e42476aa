//! Where the rows of a pass stand: all that a pass is told besides its ids, small and known beforehand.

use std::ops::Range;

use mixse_kernels::Segment;

use crate::router::Granularity;

/// Tokens in a page of keys and values.
pub const PAGE_TOKENS: usize = 64;

/// The rows of a ragged batch: sequences one after another, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Ragged {
    /// Position of each row in its own sequence.
    pub positions: Vec<u32>,
    /// Which rows are one sequence.
    pub segments: Vec<Segment>,
    /// Rows at the start of each sequence that are its prompt, over which a router for whole sequences decides; 0: it has
    /// decided in an earlier pass.
    pub prompts: Vec<usize>,
}

impl Ragged {
    /// Whole sequences of the given lengths, each starting at position 0; all of each is a prompt.
    pub fn whole(lengths: impl IntoIterator<Item = usize>) -> Self {
        Self::with_prompts(lengths.into_iter().map(|len| (len, len)))
    }

    /// Whole sequences, each given by the tokens of its prompt and all its tokens.
    pub fn with_prompts(lengths: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut ragged = Self { positions: Vec::new(), segments: Vec::new(), prompts: Vec::new() };
        for (prompt, len) in lengths {
            ragged.segments.push(Segment { start: ragged.positions.len(), len });
            ragged.positions.extend(0..len as u32);
            ragged.prompts.push(prompt.clamp(1, len.max(1)));
        }
        ragged
    }

    /// Its sequences as those that decide together, where a router decides for sequences.
    pub(crate) fn sequences<'a>(
        &'a self,
        granularity: Granularity,
        earlier: &'a [f32],
    ) -> Option<Sequences<'a>> {
        (granularity == Granularity::Sequence).then_some(Sequences { ragged: self, earlier })
    }

    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}

/// The pages of one sequence in a pass, and its tokens with the new ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageTable {
    pub(crate) pages: Vec<u32>,
    pub(crate) len: usize,
}

/// Rows that decide together: one decision a sequence, from the mean over the rows of its prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequences<'a> {
    pub(crate) ragged: &'a Ragged,
    /// Gates `[sequences, experts]` of sequences that were decided in an earlier pass (those without prompt rows); empty where
    /// there is none.
    pub(crate) earlier: &'a [f32],
}

impl Sequences<'_> {
    pub(crate) fn len(&self) -> usize {
        self.ragged.segments.len()
    }

    /// Calls `visit` with each sequence that decides in this pass: its place, its rows and those of its prompt.
    pub(crate) fn deciding(&self, mut visit: impl FnMut(usize, Range<usize>, Range<usize>)) {
        for (place, (segment, &prompt)) in self.ragged.segments.iter().zip(&self.ragged.prompts).enumerate() {
            if prompt > 0 {
                let start = segment.start;
                visit(place, start..start + segment.len, start..start + prompt);
            }
        }
    }
}
