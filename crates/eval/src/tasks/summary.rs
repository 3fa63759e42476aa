//! Means and standard errors of tasks and groups, as the harness computes them.

use std::collections::BTreeSet;

use super::{
    run::{Sample, TaskResult},
    task::{Kind, Task},
};
use crate::stats::{Mean, mean};

/// A measure of a task or group.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// Such as `acc`.
    pub metric: String,
    /// Such as `none` or `strict-match`.
    pub filter: String,
    /// The mean, with its standard error.
    pub value: Mean,
}

/// The measures of a task, or of a group of tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Name of the task or group.
    pub name: String,
    /// Its short name.
    pub alias: String,
    /// Rows.
    pub rows: usize,
    /// The measures, in the order of the task's filters.
    pub measures: Vec<Measure>,
    /// Names of the tasks of a group.
    pub tasks: Vec<String>,
}

/// The values of one measure under one filter, in the order of the rows.
pub(super) fn values<'r>(
    samples: &'r [Sample],
    metric: &'r str,
    filter: &'r str,
) -> impl Iterator<Item = (usize, f64)> + 'r {
    samples.iter().filter(move |s| s.filter == filter).filter_map(move |s| {
        let (_, value) = s.metrics.iter().find(|(name, _)| name == metric)?;
        Some((s.doc_id, *value))
    })
}

/// Filters and measures of a result, in order.
pub(super) fn keys(result: &TaskResult) -> Vec<(String, String)> {
    let mut keys: Vec<(String, String)> = Vec::new();
    for sample in &result.samples {
        for (metric, _) in &sample.metrics {
            if !keys.iter().any(|(m, f)| m == metric && *f == sample.filter) {
                keys.push((metric.clone(), sample.filter.clone()));
            }
        }
    }
    keys
}

/// Summarises a task.
pub fn task(result: &TaskResult) -> Summary {
    let measures = keys(result).into_iter().filter_map(|(metric, filter)| {
        let values: Vec<f64> = values(&result.samples, &metric, &filter).map(|(_, v)| v).collect();
        Some(Measure { value: mean(&values)?, metric, filter })
    });
    let rows: BTreeSet<usize> = result.samples.iter().map(|s| s.doc_id).collect();
    Summary {
        name: result.task.name.clone(),
        alias: result.task.alias.clone(),
        rows: rows.len(),
        measures: measures.collect(),
        tasks: Vec::new(),
    }
}

/// Summarises the groups that the tasks belong to: means weighted by size with the pooled standard error.
pub fn groups(results: &[TaskResult]) -> Vec<Summary> {
    let mut names: Vec<&str> = Vec::new();
    for name in results.iter().flat_map(|r| r.task.groups.iter()) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    names.into_iter().filter_map(|name| group(name, results)).collect()
}

fn group(name: &str, results: &[TaskResult]) -> Option<Summary> {
    let members: Vec<Summary> = results.iter().filter(|r| r.task.groups.contains(&name)).map(task).collect();
    let rows = members.iter().map(|m| m.rows).sum();
    let measures = members.first()?.measures.iter().map(|first| {
        let same = |m: &&Measure| m.metric == first.metric && m.filter == first.filter;
        let parts: Vec<(Mean, usize)> =
            members.iter().filter_map(|s| Some((s.measures.iter().find(same)?.value, s.rows))).collect();
        Measure { metric: first.metric.clone(), filter: first.filter.clone(), value: pooled(&parts) }
    });
    Some(Summary {
        name: name.into(),
        alias: name.strip_prefix("mmlu_").unwrap_or(name).into(),
        rows,
        measures: measures.collect(),
        tasks: members.iter().map(|m| m.name.clone()).collect(),
    })
}

/// The mean weighted by size, and the pooled standard error: with n_i rows and error e_i each,
/// √( Σ (n_i − 1) n_i e_i² / (N − k) / N ) for N rows in k tasks. Unknown if one of them is.
fn pooled(parts: &[(Mean, usize)]) -> Mean {
    let total: usize = parts.iter().map(|(_, n)| n).sum();
    let mean = parts.iter().map(|(m, n)| m.mean * *n as f64).sum::<f64>() / total as f64;
    let errors: Option<Vec<f64>> =
        parts.iter().map(|(m, n)| m.stderr.map(|e| (*n as f64 - 1.0) * e * e * *n as f64)).collect();
    let stderr = errors
        .filter(|_| total > parts.len())
        .map(|e| (e.iter().sum::<f64>() / (total - parts.len()) as f64 / total as f64).sqrt());
    Mean { mean, stderr }
}

/// Names of the measures that a task has.
pub(super) fn metric_names(task: &Task) -> Vec<&'static str> {
    use super::task::{CodeMetric, Judge};
    match &task.kind {
        Kind::Choice(metrics) => metrics.names().to_vec(),
        Kind::Generate(g) => match g.judge {
            Judge::Code(CodeMetric::PassAt1) => vec!["pass_at_1"],
            Judge::Code(CodeMetric::PassAtK) => vec!["pass@1"],
            Judge::ExactMatch(_) | Judge::Math => vec!["exact_match"],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_pooled() {
        let part = |mean, stderr| Mean { mean, stderr };
        // lm_eval.api.metrics.pooled_sample_stderr([0.1, 0.2], [10, 20])
        let found = pooled(&[(part(0.5, Some(0.1)), 10), (part(0.2, Some(0.2)), 20)]);
        assert!((found.mean - 0.3).abs() < 1e-12);
        assert!((found.stderr.unwrap() - 0.138_443_73).abs() < 1e-6, "{found:?}");
        assert_eq!(pooled(&[(part(1.0, None), 1), (part(0.0, Some(0.1)), 3)]).stderr, None);
        assert_eq!(pooled(&[(part(1.0, Some(0.0)), 1)]).stderr, None);
    }
}
