//! How much the differences between models mean.

use serde::Serialize;

use super::{
    run::Evaluated,
    summary::{keys, values},
};
use crate::stats::{Difference, holm, mcnemar, paired_bootstrap};

/// Two models on one measure of one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The task.
    pub task: String,
    /// The measure.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// The first model.
    pub first: String,
    /// The second model.
    pub second: String,
    /// Rows that both answered.
    pub rows: usize,
    /// First minus second, by paired bootstrap.
    pub bootstrap: Difference,
    /// McNemar's exact p-value, for measures that are 0 or 1.
    pub mcnemar: Option<f64>,
    /// The p-value (McNemar's where there is one) after Holm's correction for all comparisons of the list.
    pub adjusted: f64,
}

/// Compares any two models on every measure that both have.
pub fn compare(evaluated: &[Evaluated], resamples: usize, seed: u64) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for (i, first) in evaluated.iter().enumerate() {
        for second in &evaluated[i + 1..] {
            comparisons.extend(pair(first, second, resamples, seed));
        }
    }
    let p: Vec<f64> = comparisons.iter().map(|c| c.mcnemar.unwrap_or(c.bootstrap.p)).collect();
    for (comparison, adjusted) in comparisons.iter_mut().zip(holm(&p)) {
        comparison.adjusted = adjusted;
    }
    comparisons
}

fn pair(first: &Evaluated, second: &Evaluated, resamples: usize, seed: u64) -> Vec<Comparison> {
    let mut found = Vec::new();
    for a in &first.tasks {
        let Some(b) = second.tasks.iter().find(|b| b.task.name == a.task.name) else { continue };
        for (metric, filter) in keys(a) {
            let of_second: std::collections::HashMap<usize, f64> =
                values(&b.samples, &metric, &filter).collect();
            let (x, y): (Vec<f64>, Vec<f64>) = values(&a.samples, &metric, &filter)
                .filter_map(|(row, v)| Some((v, *of_second.get(&row)?)))
                .unzip();
            let Some(bootstrap) = paired_bootstrap(&x, &y, resamples, seed) else { continue };
            found.push(Comparison {
                task: a.task.name.clone(),
                first: first.contender.clone(),
                second: second.contender.clone(),
                rows: x.len(),
                mcnemar: discordant(&x, &y).map(|(only_first, only_second)| mcnemar(only_first, only_second)),
                adjusted: bootstrap.p,
                bootstrap,
                metric,
                filter,
            });
        }
    }
    found
}

/// How many rows only the first, and only the second, gets right; `None` if a value is neither 0 nor 1.
fn discordant(x: &[f64], y: &[f64]) -> Option<(usize, usize)> {
    if x.iter().chain(y).any(|v| *v != 0.0 && *v != 1.0) {
        return None;
    }
    let count = |a: &[f64], b: &[f64]| a.iter().zip(b).filter(|(a, b)| a > b).count();
    Some((count(x, y), count(y, x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_right_and_wrong_are_counted() {
        assert_eq!(discordant(&[1.0, 0.0, 1.0], &[0.0, 0.0, 1.0]), Some((1, 0)));
        assert_eq!(discordant(&[0.5], &[1.0]), None);
    }
}
