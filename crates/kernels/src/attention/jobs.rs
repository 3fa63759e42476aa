//! Which queries are computed together: blocks of one segment, or of several that begin with the same pages.
//!
//! What is together changes no bit of a result, only how often keys and values are read.

use std::ops::Range;

use super::{AttentionShape, PagedSegment, TILE};

/// Some queries of one segment.
pub(super) struct Queries {
    pub(super) segment: usize,
    pub(super) rows: Range<usize>,
    /// Their positions in the sequence.
    pub(super) positions: Range<usize>,
}

/// Blocks of queries.
#[derive(Default)]
pub(super) struct Jobs {
    /// Of all blocks, one block after the other.
    pub(super) queries: Vec<Queries>,
    pub(super) blocks: Vec<Job>,
}

/// A block of queries, of one segment or of several that begin with the same keys.
pub(super) struct Job {
    /// Which of [`Jobs::queries`].
    pub(super) queries: Range<usize>,
    /// So many tiles from the beginning have the same keys for all of them; 0 where there is one segment.
    pub(super) shared: usize,
}

impl Jobs {
    fn push(&mut self, queries: impl IntoIterator<Item = Queries>, shared: usize) {
        let start = self.queries.len();
        self.queries.extend(queries);
        self.blocks.push(Job { queries: start..self.queries.len(), shared });
    }

    /// A segment alone, by as many queries as a block holds.
    fn push_segment(
        &mut self,
        shape: &AttentionShape,
        segment: usize,
        start: usize,
        len: usize,
        total: usize,
    ) {
        let offset = total - len;
        for first in (0..len).step_by(shape.block()) {
            let last = (first + shape.block()).min(len);
            let (rows, positions) = (start + first..start + last, offset + first..offset + last);
            self.push([Queries { segment, rows, positions }], 0);
        }
    }
}

/// Cuts (first row, new tokens, tokens) of each segment into blocks of queries.
pub(super) fn blocks(
    shape: &AttentionShape,
    segments: impl Iterator<Item = (usize, usize, usize)>,
    tokens: usize,
) -> Jobs {
    let mut jobs = Jobs::default();
    for (segment, (start, queries, total)) in segments.enumerate() {
        assert!(start + queries <= tokens, "segment {segment} is inside of {tokens} tokens");
        jobs.push_segment(shape, segment, start, queries, total);
    }
    jobs
}

/// The same for segments in pages; those with few new tokens that begin with the same pages come into blocks together, as
/// long as there are as many blocks as `threads`.
pub(super) fn shared_blocks(
    shape: &AttentionShape,
    segments: &[PagedSegment<'_>],
    page_tokens: usize,
    threads: usize,
) -> Jobs {
    let mut jobs = Jobs::default();
    let total = segments.iter().map(|segment| segment.q_len).sum::<usize>();
    let most = shape.block().min(total.div_ceil(threads));
    let mut order: Vec<usize> = (0..segments.len()).filter(|&i| segments[i].q_len > 0).collect();
    // Segments with common pages become neighbours.
    order.sort_by_key(|&i| segments[i].pages);
    let mut rest = order.as_slice();
    while let Some((&first, others)) = rest.split_first() {
        let (mut count, mut queries, mut shared) = (1, segments[first].q_len, usize::MAX);
        for &other in others {
            let common = shared.min(common_tiles(&segments[first], &segments[other], page_tokens));
            queries += segments[other].q_len;
            // Fewer common tiles than half of what there were: the next block has more from it.
            if queries > most || common == 0 || (shared != usize::MAX && common < shared.div_ceil(2)) {
                break;
            }
            (count, shared) = (count + 1, common);
        }
        let (block, after) = rest.split_at(count);
        if let [alone] = *block {
            let PagedSegment { q_start, q_len, kv_len, .. } = segments[alone];
            jobs.push_segment(shape, alone, q_start, q_len, kv_len);
        } else {
            let queries = block.iter().map(|&segment| {
                let PagedSegment { q_start, q_len, kv_len, .. } = segments[segment];
                Queries { segment, rows: q_start..q_start + q_len, positions: kv_len - q_len..kv_len }
            });
            jobs.push(queries, shared);
        }
        rest = after;
    }
    jobs
}

/// Tiles from the beginning that lie in the same pages and before all new tokens but each first one.
fn common_tiles(a: &PagedSegment<'_>, b: &PagedSegment<'_>, page_tokens: usize) -> usize {
    let pages = a.pages.iter().zip(b.pages).take_while(|(a, b)| a == b).count();
    let before = |segment: &PagedSegment<'_>| segment.kv_len - segment.q_len + 1;
    (pages * page_tokens).min(before(a)).min(before(b)) / TILE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (Segments, shared tiles) of each block, with at most 4 queries a block.
    fn check(segments: &[(&[u32], usize, usize)], expected: &[(&[usize], usize)]) {
        let shape = AttentionShape {
            heads: 16,
            kv_heads: 1,
            head_dim: 8,
            scale: 1.0,
            window: None,
            softcap: None,
            bf16: false,
        };
        let mut at = 0;
        let segments: Vec<PagedSegment<'_>> = segments
            .iter()
            .map(|&(pages, kv_len, q_len)| {
                at += q_len;
                PagedSegment { q_start: at - q_len, q_len, kv_len, pages }
            })
            .collect();
        let jobs = shared_blocks(&shape, &segments, 64, 1);
        let blocks: Vec<(Vec<usize>, usize)> = jobs
            .blocks
            .iter()
            .map(|job| (jobs.queries[job.queries.clone()].iter().map(|q| q.segment).collect(), job.shared))
            .collect();
        let expected: Vec<_> =
            expected.iter().map(|(segments, shared)| (segments.to_vec(), *shared)).collect();
        assert_eq!(blocks, expected);
    }

    #[test]
    fn segments_that_begin_alike_come_into_blocks_together() {
        check(&[(&[7, 8], 100, 1)], &[(&[0], 0)]);
        check(&[(&[7, 8], 100, 9)], &[(&[0], 0), (&[0], 0), (&[0], 0)]);
        check(&[(&[7, 8], 100, 1), (&[3, 8], 100, 1)], &[(&[1], 0), (&[0], 0)]);
        check(&[(&[7, 8], 100, 1), (&[3], 9, 1), (&[7, 9], 90, 2)], &[(&[1], 0), (&[0, 2], 1)]);
        // The page is common, but some of its tokens are new to one of them.
        check(&[(&[7], 60, 1), (&[7, 9], 90, 2)], &[(&[0], 0), (&[1], 0)]);
        // No more than a block holds.
        let same: (&[u32], usize, usize) = (&[1, 2, 3], 150, 1);
        check(&[same; 6], &[(&[0, 1, 2, 3], 2), (&[4, 5], 2)]);
        // One with much less in common than the others have waits for the next block.
        let long: (&[u32], usize, usize) = (&[1, 2, 3, 4, 5], 300, 1);
        check(&[long, long, (&[1, 9], 100, 1)], &[(&[0, 1], 4), (&[2], 0)]);
        check(&[(&[1], 30, 0), long], &[(&[1], 0)]);
    }
}
