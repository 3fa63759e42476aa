//! Figures about a data set: how varied it is, what its rows look like, and whether it holds evaluation text.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::{
    record::SyntheticRow,
    rouge::{self, Index},
};

/// Five numbers about a list of numbers; all 0 for an empty one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The smallest.
    pub min: f64,
    /// A quarter is at most this.
    pub lower_quartile: f64,
    /// Half is at most this.
    pub median: f64,
    /// Three quarters are at most this.
    pub upper_quartile: f64,
    /// The largest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Distribution {
    /// Of these numbers; quartiles are the nearest values at or above (no interpolation).
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else { return Self::default() };
        let at = |quarter: usize| values[(last * quarter).div_ceil(4)];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Self { min: at(0), lower_quartile: at(1), median: at(2), upper_quartile: at(3), max: at(4), mean }
    }
}

/// Figures about the rows of a domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Rows.
    pub rows: usize,
    /// distinct-n (Li et al. 2016) for n = 1 to 4: different word n-grams of all tasks over all of them.
    pub distinct: [f64; 4],
    /// ROUGE-L of each task to the nearest other one.
    pub nearest: Distribution,
    /// Words of instruction and input.
    pub task_words: Distribution,
    /// Words of the output.
    pub response_words: Distribution,
    /// The commonest final answers, with how often; at most [`MAX_ANSWERS`].
    pub answers: Vec<(String, usize)>,
    /// Different final answers.
    pub different_answers: usize,
    /// Agreement of the rows that were verified; `None`: none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Distribution>,
    /// ROUGE-L of tasks and those made again from their responses; `None`: not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<Distribution>,
}

/// Everything that is told about a domain's rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DomainQuality {
    /// The domain.
    pub domain: String,
    /// Figures of the texts.
    pub quality: Quality,
    /// How far the rows' tasks lie apart in the base.
    pub spread: Spread,
    /// The same of the seeds, for comparison.
    pub seed_spread: Spread,
    /// Rows that share text with evaluation files.
    pub overlaps: Vec<FileOverlap>,
}

/// Shared text with one evaluation file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOverlap {
    /// What is evaluated with the file.
    pub file: String,
    /// Items in it.
    pub items: usize,
    /// Rows that share a word sequence with one of them.
    pub overlaps: Vec<Overlap>,
}

/// How far texts lie apart as a model represents them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Texts.
    pub texts: usize,
    /// Mean of 1 − cosine over all pairs. Hidden states share a large part, so that even unlike texts are close.
    pub mean_distance: f64,
    /// Number of directions over which the texts spread evenly: the participation ratio (Σλ)² / Σλ² of the eigenvalues λ
    /// of the covariance of the texts' unit vectors. At most `texts − 1`.
    pub directions: f64,
}

impl Spread {
    /// Of embeddings of equal length; fewer than two have no spread.
    pub fn of(embeddings: &[Vec<f32>]) -> Self {
        let texts = embeddings.len();
        let (Some(first), true) = (embeddings.first(), texts > 1) else {
            return Self { texts, ..Self::default() };
        };
        let mut units: Vec<Vec<f64>> = embeddings
            .iter()
            .map(|values| {
                let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                values.iter().map(|&v| f64::from(v) / norm).collect()
            })
            .collect();
        let mut mean = vec![0.0; first.len()];
        for unit in &units {
            mean.iter_mut().zip(unit).for_each(|(m, v)| *m += v / texts as f64);
        }
        // Of n unit vectors with mean m: Σ over pairs i≠j of u_i·u_j = n² |m|² − n.
        let n = texts as f64;
        let length: f64 = mean.iter().map(|m| m * m).sum();
        let mean_cosine = (n * n * length - n) / (n * (n - 1.0));
        for unit in &mut units {
            unit.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m);
        }
        // The Gram matrix has the eigenvalues of the covariance, n times: its trace is Σλ, its squared norm Σλ².
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut trace, mut squares) = (0.0, 0.0);
        for (i, a) in units.iter().enumerate() {
            let own = dot(a, a);
            trace += own;
            squares += own * own + 2.0 * units[..i].iter().map(|b| dot(a, b).powi(2)).sum::<f64>();
        }
        let directions = if squares > 1e-24 { trace * trace / squares } else { 0.0 };
        Self { texts, mean_distance: 1.0 - mean_cosine, directions }
    }
}

/// So many answers are listed.
pub const MAX_ANSWERS: usize = 20;

/// Computes the figures.
pub fn quality(rows: &[SyntheticRow]) -> Quality {
    let tasks: Vec<String> = rows.iter().map(|r| format!("{}\n{}", r.instruction, r.input)).collect();
    let words: Vec<Vec<String>> = tasks.iter().map(|task| rouge::words(task).collect()).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in rows.iter().filter_map(|row| row.checks.answer.as_deref()) {
        *counts.entry(answer).or_default() += 1;
    }
    let different_answers = counts.len();
    let mut answers: Vec<(String, usize)> = counts.into_iter().map(|(a, n)| (a.to_owned(), n)).collect();
    // Stable: equal counts stay in alphabetical order.
    answers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    answers.truncate(MAX_ANSWERS);
    Quality {
        rows: rows.len(),
        distinct: std::array::from_fn(|i| distinct(&words, i + 1)),
        nearest: Distribution::of(nearest(&tasks)),
        task_words: Distribution::of(words.iter().map(|w| w.len() as f64)),
        response_words: Distribution::of(rows.iter().map(|r| rouge::words(&r.output).count() as f64)),
        answers,
        different_answers,
        agreement: some(rows.iter().filter_map(|row| row.checks.agreement)),
        round_trip: some(rows.iter().filter_map(|row| row.checks.round_trip)),
    }
}

/// The distribution of the values, if there are any.
fn some(values: impl Iterator<Item = f64>) -> Option<Distribution> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| Distribution::of(values))
}

fn distinct(texts: &[Vec<String>], n: usize) -> f64 {
    let mut different = HashSet::new();
    let mut all = 0usize;
    for text in texts {
        for ngram in text.windows(n) {
            different.insert(ngram);
            all += 1;
        }
    }
    if all == 0 { 0.0 } else { different.len() as f64 / all as f64 }
}

fn nearest(tasks: &[String]) -> Vec<f64> {
    let mut index = Index::default();
    let queries: Vec<_> = tasks.iter().map(|task| index.query(task)).collect();
    for query in &queries {
        index.insert(query.clone());
    }
    let others = |(i, query)| index.nearest(query, Some(i)).map(|n| n.similarity);
    queries.iter().enumerate().filter_map(others).collect()
}

/// The length of the word sequences by which contamination is usually judged (Brown et al. 2020).
pub const CONTAMINATION_WORDS: usize = 13;

/// A row that shares a word sequence with an evaluation item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The row's id.
    pub row: String,
    /// The evaluation item's id.
    pub item: String,
    /// The first shared sequence.
    pub words: String,
}

/// Rows that share [`CONTAMINATION_WORDS`] words in a row with an item (id, text) of an evaluation file, each with the
/// first such item. An item with fewer words is compared as a whole, if it has at least 5.
pub fn contamination<'a>(
    rows: &[SyntheticRow],
    items: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<Overlap> {
    const MIN_WORDS: usize = 5;
    let mut sequences: HashMap<Vec<String>, &str> = HashMap::new();
    let mut lengths = HashSet::new();
    for (id, text) in items {
        let words: Vec<String> = rouge::words(text).collect();
        let length = words.len().min(CONTAMINATION_WORDS);
        if length >= MIN_WORDS {
            lengths.insert(length);
            for sequence in words.windows(length) {
                sequences.entry(sequence.to_vec()).or_insert(id);
            }
        }
    }
    let mut lengths: Vec<usize> = lengths.into_iter().collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    rows.iter()
        .filter_map(|row| {
            let text = format!("{}\n{}\n{}", row.instruction, row.input, row.output);
            let words: Vec<String> = rouge::words(&text).collect();
            let found =
                lengths.iter().flat_map(|&n| words.windows(n)).find_map(|w| Some((w, sequences.get(w)?)));
            found.map(|(w, item)| Overlap {
                row: row.id.clone(),
                item: (*item).to_owned(),
                words: w.join(" "),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confirm::tests;

    fn row(id: &str, instruction: &str, output: &str, answer: Option<&str>) -> SyntheticRow {
        SyntheticRow { instruction: instruction.into(), ..tests::row(id, output, answer) }
    }

    #[test]
    fn distributions() {
        let d = Distribution::of([4.0, 1.0, 2.0, 3.0, 10.0]);
        assert_eq!(
            (d.min, d.lower_quartile, d.median, d.upper_quartile, d.max, d.mean),
            (1.0, 2.0, 3.0, 4.0, 10.0, 4.0)
        );
        assert_eq!(Distribution::of([]), Distribution::default());
        assert_eq!(Distribution::of([7.0]).median, 7.0);
    }

    #[test]
    fn figures() {
        let rows = [
            row("a", "One two three", "x y", Some("B")),
            row("b", "One two four", "x", Some("B")),
            row("c", "five", "x", Some("A")),
        ];
        let q = quality(&rows);
        assert_eq!(q.distinct, [5.0 / 7.0, 3.0 / 4.0, 1.0, 0.0]);
        assert_eq!((q.nearest.min, q.nearest.max), (0.0, 2.0 / 3.0));
        assert_eq!((q.task_words.max, q.response_words.max), (3.0, 2.0));
        assert_eq!((q.answers, q.different_answers), (vec![("B".into(), 2), ("A".into(), 1)], 2));
        assert_eq!(quality(&[]), Quality::default());
    }

    #[test]
    fn spreads() {
        let check = |embeddings: &[[f32; 3]], distance: f64, directions: f64| {
            let embeddings: Vec<Vec<f32>> = embeddings.iter().map(|e| e.to_vec()).collect();
            let spread = Spread::of(&embeddings);
            assert!((spread.mean_distance - distance).abs() < 1e-6, "{spread:?}");
            assert!((spread.directions - directions).abs() < 1e-6, "{spread:?}");
        };
        check(&[[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], 0.0, 0.0);
        check(&[[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]], 1.0, 1.0);
        check(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 1.0, 2.0);
        check(&[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], 2.0, 1.0);
        assert_eq!(Spread::of(&[]), Spread::default());
        assert_eq!(Spread::of(&[vec![1.0]]).texts, 1);
    }

    #[test]
    fn contaminated_rows_are_found() {
        let long = "a b c d e f g h i j k l m n o p";
        let rows = [
            row("copy", "Say: B c d e f g h i, j k l m n!", "x", None),
            row("near", "Say: b c d e f g h i j k l m", "x", None),
            row("whole", "Why is it, that the sky is blue?", "x", None),
            row("own", "Something else", "x", None),
        ];
        let items = [("long", long), ("short", "the sky is blue"), ("five", "why is it that the sky")];
        let found = contamination(&rows, items);
        let pairs: Vec<_> = found.iter().map(|o| (o.row.as_str(), o.item.as_str())).collect();
        assert_eq!(pairs, [("copy", "long"), ("whole", "five")]);
        assert_eq!(found[0].words, "b c d e f g h i j k l m n");
    }
}
