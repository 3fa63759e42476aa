//! How much the differences between models mean.

use serde::Serialize;

use super::{
    run::Evaluated,
    summary::{keys, values},
};
use crate::stats::{Difference, compare_paired, holm};

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
    /// First minus second, with its interval and its p-value.
    pub difference: Difference,
    /// The p-value after Holm's correction for all comparisons of the list.
    pub adjusted: f64,
}

/// Compares any two models on every measure that both have.
pub fn compare(evaluated: &[Evaluated]) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for (i, first) in evaluated.iter().enumerate() {
        for second in &evaluated[i + 1..] {
            comparisons.extend(pair(first, second));
        }
    }
    adjust(&mut comparisons.iter_mut().collect::<Vec<_>>());
    comparisons
}

/// Corrects the p-values for all comparisons that are made, which may be those of several lists.
pub fn adjust(comparisons: &mut [&mut Comparison]) {
    let p: Vec<f64> = comparisons.iter().map(|c| c.difference.p).collect();
    for (comparison, adjusted) in comparisons.iter_mut().zip(holm(&p)) {
        comparison.adjusted = adjusted;
    }
}

fn pair(first: &Evaluated, second: &Evaluated) -> Vec<Comparison> {
    let mut found = Vec::new();
    for a in &first.tasks {
        let Some(b) = second.tasks.iter().find(|b| b.task.name == a.task.name) else { continue };
        for (metric, filter) in keys(a) {
            let of_second: std::collections::HashMap<usize, f64> =
                values(&b.samples, &metric, &filter).collect();
            let (x, y): (Vec<f64>, Vec<f64>) = values(&a.samples, &metric, &filter)
                .filter_map(|(row, v)| Some((v, *of_second.get(&row)?)))
                .unzip();
            let Some(difference) = compare_paired(&x, &y) else { continue };
            found.push(Comparison {
                task: a.task.name.clone(),
                first: first.contender.clone(),
                second: second.contender.clone(),
                rows: x.len(),
                adjusted: difference.p,
                difference,
                metric,
                filter,
            });
        }
    }
    found
}
