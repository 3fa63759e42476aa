//! From answers to the numbers of the tables.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Answers, Findings};
use crate::{
    report::MethodKind,
    stats::{Difference, Interval, compare_paired, holm, wilson_of_share},
};

/// The numbers of a study.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The rows of the table.
    pub rows: Vec<Row>,
}

/// One method of one group, all seeds together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// As in [`Answers`].
    pub group: String,
    /// As in [`Answers`].
    pub method: String,
    /// What it is.
    pub kind: MethodKind,
    /// The seeds that it was run with.
    pub seeds: Vec<u64>,
    /// All items together.
    pub overall: Cell,
    /// By domain, in the order of the columns; `None`: not evaluated.
    pub domains: Vec<Option<Cell>>,
    /// Against the group's base.
    pub to_base: Option<Contrast>,
    /// The group's own mixture against this row: above 0 where the mixture is better.
    pub mixture_to_this: Option<Contrast>,
}

/// A share of right answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// Mean over items and seeds, 0 to 1.
    pub share: f64,
    /// Wilson's 95 % interval for that share of so many items. Several seeds answer the same items, so they do not count
    /// as more items.
    pub interval: Interval,
    /// Items.
    pub items: usize,
    /// Right answers of each seed.
    pub correct: Vec<usize>,
    /// Sample standard deviation of the seeds' shares; `None` with one seed.
    pub seed_deviation: Option<f64>,
    /// No other row of the group has a larger share.
    pub best: bool,
}

/// A difference between two rows on the same items, each item's answers averaged over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contrast {
    /// The difference with its 95 % interval and p ([`compare_paired`]).
    #[serde(flatten)]
    pub difference: Difference,
    /// p corrected for the number of rows compared in this column of the group (Holm 1979).
    pub p_holm: f64,
}

/// One row of the table before its numbers are compared.
struct Pooled<'a> {
    group: &'a str,
    method: &'a str,
    kind: MethodKind,
    runs: Vec<&'a Answers>,
}

/// The tables' numbers. Rows stand in the order in which they first occur.
pub fn summarise(findings: &Findings) -> Summary {
    let mut pooled: Vec<Pooled<'_>> = Vec::new();
    for answers in &findings.answers {
        let same = |row: &&mut Pooled<'_>| row.group == answers.group && row.method == answers.method;
        match pooled.iter_mut().find(same) {
            Some(row) => row.runs.push(answers),
            None => pooled.push(Pooled {
                group: &answers.group,
                method: &answers.method,
                kind: answers.kind,
                runs: vec![answers],
            }),
        }
    }
    let mut rows: Vec<Row> = pooled.iter().map(|row| row.row(&findings.domains)).collect();
    let groups: Vec<String> = rows.iter().map(|row| row.group.clone()).collect();
    for group in groups.iter().collect::<std::collections::BTreeSet<_>>() {
        let of_group: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].group == *group).collect();
        mark_best(&mut rows, &of_group, findings.domains.len());
        let find = |kind| of_group.iter().copied().find(|&i| pooled[i].kind == kind);
        if let Some(base) = find(MethodKind::Base) {
            let differences = of_group.iter().map(|&i| contrast(&pooled[i], &pooled[base], i == base));
            set_contrasts(&mut rows, &of_group, differences.collect(), |row| &mut row.to_base);
        }
        if let Some(own) = find(MethodKind::Mixture) {
            let differences = of_group.iter().map(|&i| contrast(&pooled[own], &pooled[i], i == own));
            set_contrasts(&mut rows, &of_group, differences.collect(), |row| &mut row.mixture_to_this);
        }
    }
    Summary { rows }
}

impl Pooled<'_> {
    fn row(&self, domains: &[String]) -> Row {
        Row {
            group: self.group.to_owned(),
            method: self.method.to_owned(),
            kind: self.kind,
            seeds: self.runs.iter().map(|run| run.seed).collect(),
            overall: self.cell(|_| true).unwrap_or_else(|| Cell::new(0, Vec::new())),
            domains: domains.iter().map(|domain| self.cell(|name| name == domain)).collect(),
            to_base: None,
            mixture_to_this: None,
        }
    }

    /// The domains for which `wanted` holds together; `None` without items.
    fn cell(&self, wanted: impl Fn(&str) -> bool) -> Option<Cell> {
        let answers = |run: &Answers| -> Vec<bool> {
            let domains = run.domains.iter().filter(|d| wanted(&d.domain));
            domains.flat_map(|d| d.items.iter().map(|(_, right)| *right)).collect()
        };
        let runs: Vec<Vec<bool>> = self.runs.iter().map(|run| answers(run)).collect();
        let items = runs.iter().map(Vec::len).max().filter(|&items| items > 0)?;
        Some(Cell::new(items, runs.iter().map(|run| run.iter().filter(|right| **right).count()).collect()))
    }

    /// Each item's mean over the seeds, by domain and id.
    fn item_means(&self) -> BTreeMap<(&str, &str), f64> {
        let mut sums: BTreeMap<(&str, &str), (f64, f64)> = BTreeMap::new();
        for run in &self.runs {
            for domain in &run.domains {
                for (id, right) in &domain.items {
                    let sum = sums.entry((&domain.domain, id)).or_default();
                    sum.0 += f64::from(u8::from(*right));
                    sum.1 += 1.0;
                }
            }
        }
        sums.into_iter().map(|(key, (right, count))| (key, right / count)).collect()
    }
}

impl Cell {
    fn new(items: usize, correct: Vec<usize>) -> Self {
        let shares: Vec<f64> = correct.iter().map(|&n| n as f64 / items.max(1) as f64).collect();
        let seeds = shares.len() as f64;
        let share = shares.iter().sum::<f64>() / seeds.max(1.0);
        let squares: f64 = shares.iter().map(|s| (s - share).powi(2)).sum();
        let seed_deviation = (shares.len() > 1).then(|| (squares / (seeds - 1.0)).sqrt());
        Self { share, interval: wilson_of_share(share, items), items, correct, seed_deviation, best: false }
    }
}

/// First minus second on the items that both have; `None` for a row against itself, or without common items.
fn contrast(first: &Pooled<'_>, second: &Pooled<'_>, same: bool) -> Option<Difference> {
    if same {
        return None;
    }
    let other = second.item_means();
    let (a, b): (Vec<f64>, Vec<f64>) =
        first.item_means().into_iter().filter_map(|(key, value)| Some((value, *other.get(&key)?))).unzip();
    compare_paired(&a, &b)
}

fn set_contrasts(
    rows: &mut [Row],
    of_group: &[usize],
    differences: Vec<Option<Difference>>,
    place: impl Fn(&mut Row) -> &mut Option<Contrast>,
) {
    let p_values: Vec<f64> = differences.iter().flatten().map(|d| d.p).collect();
    let mut adjusted = holm(&p_values).into_iter();
    for (&row, difference) in of_group.iter().zip(differences) {
        *place(&mut rows[row]) = difference
            .zip(difference.and_then(|_| adjusted.next()))
            .map(|(difference, p_holm)| Contrast { difference, p_holm });
    }
}

/// The oracle knows each item's domain, which no method may, so it is not in the race.
fn mark_best(rows: &mut [Row], of_group: &[usize], domains: usize) {
    fn cell(row: &mut Row, column: Option<usize>) -> Option<&mut Cell> {
        match column {
            None => Some(&mut row.overall),
            Some(domain) => row.domains[domain].as_mut(),
        }
    }
    for column in std::iter::once(None).chain((0..domains).map(Some)) {
        let racing: Vec<usize> = of_group.iter().copied().filter(|&i| rows[i].method != "oracle").collect();
        let mut best = 0.0;
        for &i in &racing {
            best = cell(&mut rows[i], column).map_or(best, |c| c.share.max(best));
        }
        for &i in &racing {
            if let Some(cell) = cell(&mut rows[i], column) {
                cell.best = best > 0.0 && cell.share >= best;
            }
        }
    }
}
