//! What a response or a list of log-likelihoods scores.

use fancy_regex::Regex;

use super::{filter::compile, task::Gold};
use crate::Result;

/// Exact match after normalisation of both sides.
#[derive(Debug, Clone, Default)]
pub struct ExactMatch {
    /// Removed wherever they match, one after the other.
    pub ignore: Vec<Regex>,
    /// Compare in lower case.
    pub ignore_case: bool,
    /// Remove the punctuation of ASCII.
    pub ignore_punctuation: bool,
}

impl ExactMatch {
    pub(super) fn ignoring(patterns: &[&str]) -> Result<Vec<Regex>> {
        patterns.iter().map(|p| compile(p)).collect()
    }

    fn normalise(&self, text: &str) -> String {
        let mut text = text.to_string();
        for pattern in &self.ignore {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        text
    }

    /// 1 if the answer equals one of the accepted ones, else 0.
    pub fn score(&self, answer: &str, accepted: &[String]) -> f64 {
        let answer = self.normalise(answer);
        f64::from(u8::from(accepted.iter().any(|a| self.normalise(a) == answer)))
    }
}

/// The measures of a multiple-choice item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceMetrics {
    /// `acc`: the most likely choice is the right one.
    Accuracy,
    /// `acc`, and `acc_norm`: log-likelihoods divided by the number of characters of the choice.
    AccuracyAndNormalised,
    /// `acc` is the share of the probability that the true choices have (TruthfulQA's mc2).
    TrueMass,
}

impl ChoiceMetrics {
    /// Names of the measures, in the order of the files.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Accuracy | Self::TrueMass => &["acc"],
            Self::AccuracyAndNormalised => &["acc", "acc_norm"],
        }
    }

    /// The measures of an item from the natural-log likelihoods of its choices.
    pub(super) fn score(self, log_likelihoods: &[f64], choices: &[String], gold: &Gold) -> Vec<f64> {
        let hit = |best: Option<usize>| match gold {
            Gold::Index(right) => f64::from(u8::from(best == Some(*right))),
            _ => 0.0,
        };
        match self {
            Self::Accuracy => vec![hit(argmax(log_likelihoods))],
            Self::AccuracyAndNormalised => {
                let normalised: Vec<f64> =
                    log_likelihoods.iter().zip(choices).map(|(l, c)| l / c.chars().count() as f64).collect();
                vec![hit(argmax(log_likelihoods)), hit(argmax(&normalised))]
            }
            Self::TrueMass => {
                let Gold::Labels(labels) = gold else { return vec![0.0] };
                let probabilities: Vec<f64> = log_likelihoods.iter().map(|l| l.exp()).collect();
                let total: f64 = probabilities.iter().sum();
                let right = probabilities.iter().zip(labels).filter(|(_, label)| **label);
                vec![right.map(|(p, _)| p / total).sum()]
            }
        }
    }
}

/// The index of the first of the largest values.
fn argmax(values: &[f64]) -> Option<usize> {
    let mut best = None;
    for (i, v) in values.iter().enumerate() {
        if best.is_none_or(|b: usize| *v > values[b]) {
            best = Some(i);
        }
    }
    best
}

/// The unbiased estimate of the chance that at least one of `k` attempts passes, from `correct` of `n` (Chen et al.
/// 2021): 1 − C(n−c, k) / C(n, k). `k` is at most `n`.
pub fn pass_at_k(n: usize, correct: usize, k: usize) -> f64 {
    if n - correct < k {
        return 1.0;
    }
    let missed: f64 = (n - correct + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    1.0 - missed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_match_ignores_what_it_is_told() {
        let check = |metric: &ExactMatch, answer: &str, gold: &str, expected: f64| {
            assert_eq!(metric.score(answer, &[gold.to_string()]), expected, "{answer} {gold}");
        };
        let plain = ExactMatch::default();
        check(&plain, "a", "a", 1.0);
        check(&plain, "a ", "a", 0.0);
        let math = ExactMatch {
            ignore: ExactMatch::ignoring(&[",", r"\$", r"(?s).*#### ", r"\.(?=\n?\z)"]).unwrap(),
            ignore_case: true,
            ignore_punctuation: false,
        };
        check(&math, "$1,000.", "1000", 1.0);
        check(&math, "1000.5", "1000", 0.0);
        check(&math, "a\n#### 7", "7", 1.0);
        let open = ExactMatch { ignore_case: true, ignore_punctuation: true, ..ExactMatch::default() };
        check(&open, "St. John's", "st johns", 1.0);
        assert_eq!(plain.score("b", &["a".into(), "b".into()]), 1.0);
    }

    #[test]
    fn choices_are_measured() {
        let choices = ["ab".to_string(), "abcdef".into()];
        let check = |metrics: ChoiceMetrics, lls: &[f64], gold: Gold, expected: &[f64]| {
            let found = metrics.score(lls, &choices, &gold);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
            assert_eq!(found.len(), metrics.names().len());
        };
        check(ChoiceMetrics::Accuracy, &[-1.0, -2.0], Gold::Index(0), &[1.0]);
        check(ChoiceMetrics::Accuracy, &[-1.0, -1.0], Gold::Index(1), &[0.0]);
        check(ChoiceMetrics::AccuracyAndNormalised, &[-1.0, -2.0], Gold::Index(1), &[0.0, 1.0]);
        let mass = 1.0 / (1.0 + 1.0_f64.exp());
        check(ChoiceMetrics::TrueMass, &[-1.0, -2.0], Gold::Labels(vec![false, true]), &[mass]);
    }

    #[test]
    fn pass_at_k_is_unbiased() {
        for (n, c, k, p) in [(1, 1, 1, 1.0), (1, 0, 1, 0.0), (10, 3, 1, 0.3), (5, 2, 4, 1.0), (4, 1, 2, 0.5)]
        {
            assert!((pass_at_k(n, c, k) - p).abs() < 1e-12, "{n} {c} {k}");
        }
    }
}
