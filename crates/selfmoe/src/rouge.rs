//! ROUGE-L (Lin 2004): similarity of two texts by their longest common subsequence of words.
//!
//! `F = 2 · LCS(a, b) / (|a| + |b|)` over lower-case alphanumeric words. An [`Index`] answers "which earlier text is
//! closer than this?" without comparing all pairs: the number of shared words, which postings count, bounds the LCS
//! from above, and the LCS itself works on 64 words at a time.

use std::collections::HashMap;

/// The words of a text: maximal runs of letters and digits, in lower case.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

/// ROUGE-L of two texts, 0 if both are without words.
pub fn rouge_l(a: &str, b: &str) -> f64 {
    let mut index = Index::default();
    let a = index.query(a);
    let b = index.query(b);
    a.compare(&b.ids)
}

/// A text prepared for comparison: word ids and, per distinct word, the bit mask of its places.
#[derive(Debug, Clone)]
pub struct Query {
    ids: Vec<u32>,
    /// For each distinct word: how often it occurs, and 64-bit blocks with its places.
    places: HashMap<u32, (u32, Vec<u64>)>,
}

impl Query {
    fn new(ids: Vec<u32>) -> Self {
        let blocks = ids.len().div_ceil(64);
        let mut places: HashMap<u32, (u32, Vec<u64>)> = HashMap::new();
        for (i, &id) in ids.iter().enumerate() {
            let entry = places.entry(id).or_insert_with(|| (0, vec![0; blocks]));
            entry.0 += 1;
            entry.1[i / 64] |= 1 << (i % 64);
        }
        Self { ids, places }
    }

    /// ROUGE-L against another text of the same index.
    fn compare(&self, other: &[u32]) -> f64 {
        f_measure(self.lcs(other), self.ids.len(), other.len())
    }

    /// Length of the longest common subsequence. Bit-parallel (Hyyrö 2004): a zero bit of `v` marks a place of this
    /// text where the LCS with the words of `other` read so far grows by one.
    fn lcs(&self, other: &[u32]) -> usize {
        let blocks = self.ids.len().div_ceil(64);
        let mut v = vec![u64::MAX; blocks];
        for word in other {
            let Some((_, mask)) = self.places.get(word) else { continue };
            let mut carry = false;
            for (v, &m) in v.iter_mut().zip(mask) {
                let (sum, over1) = v.overflowing_add(*v & m);
                let (sum, over2) = sum.overflowing_add(u64::from(carry));
                carry = over1 || over2;
                *v = sum | (*v & !m);
            }
        }
        // Bits beyond the text's end meet no mask, so `v & !m` keeps them ones.
        v.iter().map(|b| b.count_zeros() as usize).sum()
    }
}

fn f_measure(lcs: usize, a: usize, b: usize) -> f64 {
    if a + b == 0 { 0.0 } else { 2.0 * lcs as f64 / (a + b) as f64 }
}

/// A text that is close to the one asked about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Its number, in order of insertion.
    pub row: usize,
    /// ROUGE-L.
    pub similarity: f64,
}

/// A growing set of texts.
#[derive(Debug, Default)]
pub struct Index {
    vocabulary: HashMap<String, u32>,
    rows: Vec<Vec<u32>>,
    /// For each word: the rows that hold it, with how often.
    postings: Vec<Vec<(u32, u32)>>,
}

impl Index {
    /// Prepares a text.
    pub fn query(&mut self, text: &str) -> Query {
        let mut ids = Vec::new();
        for word in words(text) {
            let next = self.vocabulary.len() as u32;
            ids.push(*self.vocabulary.entry(word).or_insert(next));
        }
        self.postings.resize(self.vocabulary.len(), Vec::new());
        Query::new(ids)
    }

    /// Adds a prepared text and returns its number.
    pub fn insert(&mut self, query: Query) -> usize {
        let row = self.rows.len();
        for (&word, (count, _)) in &query.places {
            if let Some(list) = self.postings.get_mut(word as usize) {
                list.push((row as u32, *count));
            }
        }
        self.rows.push(query.ids);
        row
    }

    /// The first inserted text that is more similar than `threshold`.
    pub fn first_above(&self, query: &Query, threshold: f64) -> Option<Neighbour> {
        let bounds = self.bounds(query);
        bounds.iter().enumerate().filter(|&(_, &bound)| bound > threshold).find_map(|(row, _)| {
            let similarity = query.compare(&self.rows[row]);
            (similarity > threshold).then_some(Neighbour { row, similarity })
        })
    }

    /// The most similar inserted text other than number `except`; the first one among equals.
    pub fn nearest(&self, query: &Query, except: Option<usize>) -> Option<Neighbour> {
        let bounds = self.bounds(query);
        let mut order: Vec<usize> = (0..bounds.len()).filter(|&row| Some(row) != except).collect();
        order.sort_by(|&a, &b| bounds[b].total_cmp(&bounds[a]).then(a.cmp(&b)));
        let mut best: Option<Neighbour> = None;
        for row in order {
            if best.is_some_and(|b| bounds[row] < b.similarity) {
                break;
            }
            let similarity = query.compare(&self.rows[row]);
            if best.is_none_or(|b| similarity > b.similarity || (similarity == b.similarity && row < b.row)) {
                best = Some(Neighbour { row, similarity });
            }
        }
        best
    }

    /// ROUGE-L to the inserted text number `row`, 0 if there is none.
    pub fn similarity(&self, query: &Query, row: usize) -> f64 {
        self.rows.get(row).map_or(0.0, |ids| query.compare(ids))
    }

    /// For each inserted text an upper bound of its ROUGE-L: the LCS is at most the number of shared words.
    fn bounds(&self, query: &Query) -> Vec<f64> {
        let mut shared = vec![0u32; self.rows.len()];
        for (&word, &(count, _)) in &query.places {
            for &(row, other) in self.postings.get(word as usize).map_or(&[][..], Vec::as_slice) {
                shared[row as usize] += count.min(other);
            }
        }
        shared
            .iter()
            .zip(&self.rows)
            .map(|(&shared, row)| f_measure(shared as usize, query.ids.len(), row.len()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain_lcs(a: &[u32], b: &[u32]) -> usize {
        let mut last = vec![0; b.len() + 1];
        for x in a {
            let mut now = vec![0; b.len() + 1];
            for (j, y) in b.iter().enumerate() {
                now[j + 1] = if x == y { last[j] + 1 } else { now[j].max(last[j + 1]) };
            }
            last = now;
        }
        last[b.len()]
    }

    #[test]
    fn known_values() {
        let check = |a: &str, b: &str, expected: f64| {
            assert!((rouge_l(a, b) - expected).abs() < 1e-12, "{a} | {b}: {}", rouge_l(a, b));
        };
        check("", "", 0.0);
        check("a", "", 0.0);
        check("The cat sat.", "the CAT, sat!", 1.0);
        check("police killed the gunman", "police kill the gunman", 0.75);
        check("police killed the gunman", "the gunman kill police", 0.5);
        check("a b c d", "a c", 2.0 * 2.0 / 6.0);
    }

    proptest! {
        #[test]
        fn bit_parallel_lcs_is_the_plain_one(
            a in prop::collection::vec(0u32..6, 0..200),
            b in prop::collection::vec(0u32..6, 0..200),
        ) {
            prop_assert_eq!(Query::new(a.clone()).lcs(&b), plain_lcs(&a, &b));
        }

        #[test]
        fn index_finds_what_all_pairs_find(texts in prop::collection::vec("[a-d ]{0,24}", 1..20), query in "[a-d ]{0,24}") {
            let mut index = Index::default();
            for text in &texts {
                let q = index.query(text);
                index.insert(q);
            }
            let all: Vec<f64> = texts.iter().map(|t| rouge_l(t, &query)).collect();
            let q = index.query(&query);
            prop_assert_eq!(index.first_above(&q, 0.5).map(|n| n.row), all.iter().position(|&s| s > 0.5));
            let best = all.iter().copied().fold(0.0, f64::max);
            let nearest = index.nearest(&q, None).unwrap();
            prop_assert_eq!(nearest.similarity, best);
            prop_assert_eq!(Some(nearest.row), all.iter().position(|&s| s == best));
        }
    }
}
