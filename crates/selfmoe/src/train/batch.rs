//! From rows to batches: which rows a step takes, and how they lie in a forward pass.

use std::{fmt, ops::Deref, path::Path, sync::Arc};

use mixse_model::{
    engine::{Dropout, Ragged, Target},
    random,
};
use serde::{Deserialize, Serialize};

use super::{Result, TrainConfig, TrainError};
use crate::jsonl;

/// A tokenized row: the loss is on the target only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainRow {
    /// The prompt; at least one token.
    pub prompt_ids: Vec<u32>,
    /// The response, its end-of-sequence token included.
    pub target_ids: Vec<u32>,
    /// Index of the expert of the row's domain among those that a router chooses from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<u32>,
}

impl TrainRow {
    /// Target tokens left when the row is cut after `max_tokens`.
    pub(super) fn targets(&self, max_tokens: usize) -> usize {
        self.target_ids.len().min(max_tokens.saturating_sub(self.prompt_ids.len()))
    }

    /// Tokens that the row sends through the model: the last target is predicted, never read.
    pub(super) fn tokens(&self, max_tokens: usize) -> usize {
        self.prompt_ids.len() + self.targets(max_tokens) - 1
    }

    /// A number for the row's content.
    fn key(&self, seed: u64) -> u64 {
        let ids = self.prompt_ids.iter().chain(&self.target_ids);
        ids.fold(seed, |key, &id| random::bits(key, u64::from(id), 0))
    }
}

/// Reads rows of `{"prompt_ids": [..], "target_ids": [..]}`, one a line, for a model with so many tokens.
///
/// # Errors
/// Names the file and the line.
pub fn read_rows(path: &Path, vocabulary: usize) -> Result<Vec<TrainRow>> {
    let fault = |what: String| TrainError::Rows(format!("{}: {what}", path.display()));
    let lines = jsonl::read_lines::<TrainRow>(path).map_err(|e| TrainError::Rows(e.to_string()))?;
    for line in &lines {
        for (key, ids) in [("prompt_ids", &line.value.prompt_ids), ("target_ids", &line.value.target_ids)] {
            if let Some(at) = ids.iter().position(|&id| id as usize >= vocabulary) {
                return Err(fault(format!(
                    "line {}: {key}[{at}] is {}, outside the model's vocabulary of {vocabulary} tokens",
                    line.number, ids[at]
                )));
            }
        }
    }
    let rows: Vec<TrainRow> = lines.into_iter().map(|line| line.value).collect();
    if rows.is_empty() {
        return Err(fault("has no rows".into()));
    }
    Ok(rows)
}

/// Every row needs a token to predict from and a token to predict.
pub(super) fn check_rows(rows: &[TrainRow], max_tokens: usize) -> Result<()> {
    if rows.is_empty() {
        return Err(TrainError::Rows("there are no rows to train on".into()));
    }
    for (index, row) in rows.iter().enumerate() {
        if row.prompt_ids.is_empty() {
            return Err(TrainError::Rows(format!("row {} has no prompt token", index + 1)));
        }
        if row.targets(max_tokens) == 0 {
            return Err(TrainError::Rows(format!(
                "row {} has no target tokens: {} prompt and {} target tokens with max_tokens = {max_tokens}",
                index + 1,
                row.prompt_ids.len(),
                row.target_ids.len()
            )));
        }
    }
    Ok(())
}

/// A model knows no positions beyond its context.
pub(super) fn check_context(rows: &[TrainRow], max_tokens: usize, context: usize) -> Result<()> {
    match rows.iter().position(|row| row.tokens(max_tokens) > context) {
        None => Ok(()),
        Some(index) => Err(TrainError::Rows(format!(
            "row {} has {} tokens, and the model's context is {context}: rows are cut where max_tokens says ({max_tokens}); set it to at most \
             {context}",
            index + 1,
            rows[index].tokens(max_tokens)
        ))),
    }
}

/// What `max_tokens` takes away from rows; shown, it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Rows that are longer.
    pub rows: usize,
    /// All rows.
    pub of: usize,
    /// Target tokens that are not trained on, over all rows.
    pub targets: usize,
    /// Tokens of the longest row.
    pub longest: usize,
}

impl Cut {
    /// What is cut off these rows.
    pub fn of(rows: &[TrainRow], max_tokens: usize) -> Self {
        let lost = |row: &TrainRow| row.target_ids.len() - row.targets(max_tokens);
        Self {
            rows: rows.iter().filter(|row| lost(row) > 0).count(),
            of: rows.len(),
            targets: rows.iter().map(lost).sum(),
            longest: rows.iter().map(|row| row.prompt_ids.len() + row.target_ids.len()).max().unwrap_or(0),
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} rows are longer than what is trained on and lose their ends, {} target tokens in all; the longest has {} tokens",
            self.rows, self.of, self.targets, self.longest
        )
    }
}

/// A domain loss needs to know every row's domain.
pub(super) fn check_domains(rows: &[TrainRow]) -> Result<()> {
    match rows.iter().position(|row| row.domain.is_none()) {
        None => Ok(()),
        Some(index) => Err(TrainError::Rows(format!(
            "row {} has no domain: a domain loss needs it (`\"domain\": INDEX`, counted from 0 in the order of the experts)",
            index + 1
        ))),
    }
}

/// Which rows each optimiser step takes.
pub(super) struct Plan {
    rows: usize,
    batch: usize,
    steps_per_epoch: usize,
    steps: usize,
    shuffle: Option<u64>,
    /// Steps between two looks at the held-out rows.
    look_every: usize,
}

impl Plan {
    pub(super) fn new(rows: usize, config: &TrainConfig, seed: u64) -> Self {
        let steps_per_epoch = rows.div_ceil(config.batch_size);
        let epochs = steps_per_epoch.saturating_mul(config.epochs);
        let steps = match (config.max_steps, epochs) {
            (0, _) => epochs,
            (limit, 0) => limit,
            (limit, _) => epochs.min(limit),
        };
        Self {
            rows,
            batch: config.batch_size,
            steps_per_epoch,
            steps,
            shuffle: config.shuffle.then_some(seed),
            look_every: if config.validate_every == 0 { steps_per_epoch } else { config.validate_every },
        }
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Whether the held-out rows are looked at after `done` steps; in any case after the last one.
    pub(super) fn is_look(&self, done: usize) -> bool {
        done.is_multiple_of(self.look_every) || done == self.steps
    }

    /// Indices of the rows of `step`. Shuffled: each epoch is a new order, its last batch takes what is left. In file order
    /// the rows go round and round, every batch full.
    pub(super) fn batch(&self, step: usize) -> Vec<usize> {
        match self.shuffle {
            None => (0..self.batch).map(|i| (step * self.batch + i) % self.rows).collect(),
            Some(seed) => {
                let (epoch, within) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
                let order = random::permutation(self.rows, seed, epoch as u64);
                order.into_iter().skip(within * self.batch).take(self.batch).collect()
            }
        }
    }
}

/// Cuts a batch into passes of at most `limit` tokens (a longer row stands alone). Rows are taken by length, so that
/// passes are full and alike.
pub(super) fn passes<'r>(rows: &[Placed<'r>], max_tokens: usize, limit: usize) -> Vec<Vec<Placed<'r>>> {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|row| std::cmp::Reverse(row.tokens(max_tokens)));
    let mut passes: Vec<Vec<Placed<'_>>> = Vec::new();
    let mut room = 0;
    for row in rows {
        let tokens = row.tokens(max_tokens);
        if tokens > room {
            passes.push(Vec::new());
            room = limit.max(tokens);
        }
        room -= tokens;
        if let Some(pass) = passes.last_mut() {
            pass.push(row);
        }
    }
    passes
}

/// Rows laid one after another: several sequences in one pass, without padding and without attention across them.
pub(super) struct RaggedBatch {
    pub(super) ids: Vec<u32>,
    pub(super) ragged: Arc<Ragged>,
    pub(super) targets: Vec<Target>,
    /// The domain of each token's row, where it is known.
    pub(super) domains: Vec<u32>,
    /// The place of each row among all.
    pub(super) keys: Vec<usize>,
}

/// A row with its place among all of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placed<'r> {
    pub(super) row: &'r TrainRow,
    pub(super) place: usize,
}

impl Deref for Placed<'_> {
    type Target = TrainRow;

    fn deref(&self) -> &TrainRow {
        self.row
    }
}

/// All rows with their places.
pub(super) fn placed(rows: &[TrainRow]) -> Vec<Placed<'_>> {
    rows.iter().enumerate().map(|(place, row)| Placed { row, place }).collect()
}

/// Lays rows out.
pub(super) fn ragged(rows: &[Placed<'_>], max_tokens: usize) -> RaggedBatch {
    let mut ids = Vec::new();
    let mut targets = Vec::new();
    let mut domains = Vec::new();
    for row in rows {
        let kept = &row.target_ids[..row.targets(max_tokens)];
        let first = ids.len() + row.prompt_ids.len() - 1;
        ids.extend(&row.prompt_ids);
        ids.extend(&kept[..kept.len() - 1]);
        targets.extend(kept.iter().enumerate().map(|(i, &token)| Target { row: first + i, token }));
        if let Some(domain) = row.domain {
            domains.resize(ids.len(), domain);
        }
    }
    let lengths = rows.iter().map(|row| (row.prompt_ids.len(), row.tokens(max_tokens)));
    let ragged = Arc::new(Ragged::with_prompts(lengths));
    RaggedBatch { ids, ragged, targets, domains, keys: rows.iter().map(|row| row.place).collect() }
}

/// Which inputs of adapters a pass over `rows` drops in a step. It depends on each row and the position in it, not on the
/// other rows of the pass.
pub(super) fn dropout(rows: &[Placed<'_>], max_tokens: usize, rate: f64, seed: u64, step: usize) -> Dropout {
    let seed = random::bits(seed, random::stream(&["dropout"]), step as u64);
    let keys = rows.iter().flat_map(|row| {
        let key = row.key(seed);
        (0..row.tokens(max_tokens) as u64).map(move |position| random::bits(key, position, 1))
    });
    Dropout::new(rate, keys.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: usize, target: usize) -> TrainRow {
        TrainRow {
            prompt_ids: (0..prompt as u32).collect(),
            target_ids: (100..100 + target as u32).collect(),
            domain: None,
        }
    }

    #[test]
    fn every_epoch_takes_every_row_once_in_another_order() {
        let config = TrainConfig { epochs: 2, batch_size: 4, ..TrainConfig::default() };
        let plan = Plan::new(10, &config, 5);
        assert_eq!(plan.steps(), 6);
        let epoch = |first: usize| (first..first + 3).flat_map(|s| plan.batch(s)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(3));
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_cut_is_counted() {
        let rows = [row(3, 4), row(2, 9), row(4, 1)];
        assert_eq!(Cut::of(&rows, 11), Cut { rows: 0, of: 3, targets: 0, longest: 11 });
        assert_eq!(Cut::of(&rows, 6), Cut { rows: 2, of: 3, targets: 6, longest: 11 });
        let told = Cut::of(&rows, 6).to_string();
        assert!(told.starts_with("2 of 3 rows") && told.contains("6 target tokens"), "{told}");
        // The last target is predicted, never read.
        assert!(check_context(&rows, 11, 10).is_ok());
        let told = check_context(&rows, 11, 9).unwrap_err().to_string();
        assert!(told.contains("row 2") && told.contains("at most 9"), "{told}");
        assert!(check_context(&rows, 6, 5).is_ok());
    }

    #[test]
    fn file_order_goes_round() {
        let config =
            TrainConfig { max_steps: 3, epochs: 0, batch_size: 2, shuffle: false, ..TrainConfig::default() };
        let plan = Plan::new(3, &config, 0);
        assert_eq!((0..plan.steps()).map(|s| plan.batch(s)).collect::<Vec<_>>(), [[0, 1], [2, 0], [1, 2]]);
    }

    #[test]
    fn rows_lie_one_after_another_and_predict_their_targets() {
        let batch = ragged(&placed(&[row(2, 3), row(1, 1)]), 512);
        assert_eq!(batch.keys, [0, 1]);
        assert_eq!(batch.ids, [0, 1, 100, 101, 0]);
        assert_eq!(batch.ragged.positions, [0, 1, 2, 3, 0]);
        let targets: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token)).collect();
        assert_eq!(targets, [(1, 100), (2, 101), (3, 102), (4, 100)]);
    }

    #[test]
    fn long_rows_are_cut_and_rows_without_targets_refused() {
        let long = row(4, 10);
        assert_eq!(long.targets(6), 2);
        assert_eq!(ragged(&placed(&[long]), 6).ids.len(), 5);
        assert!(check_rows(&[row(3, 1), row(8, 2)], 8).unwrap_err().to_string().contains("row 2"));
        assert!(check_rows(&[row(0, 1)], 8).unwrap_err().to_string().contains("no prompt"));
        assert!(check_rows(&[row(3, 0)], 8).is_err());
    }

    #[test]
    fn passes_hold_every_row_within_the_limit() {
        let rows: Vec<TrainRow> = [5, 30, 7, 12, 3, 90].map(|n| row(n, 2)).into();
        let passes = passes(&placed(&rows), 512, 40);
        assert_eq!(passes.iter().map(Vec::len).sum::<usize>(), 6);
        for pass in &passes {
            let tokens: usize = pass.iter().map(|r| r.tokens(512)).sum();
            assert!(tokens <= 40 || pass.len() == 1);
        }
    }
}
