//! A slice of the rows that is not trained on: its loss says which parameters are kept and when to stop.

use std::fmt;

use mixse_model::random;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Result, TrainConfig, TrainError, TrainRow,
    batch::{self, Placed},
};

/// How many rows are held out of a training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum HeldOut {
    /// None: the last parameters are kept (the paper).
    #[default]
    None,
    /// This share of the rows, above 0 and below 1, and at least one row.
    Share(f64),
    /// This many rows, at least one.
    Rows(usize),
}

impl HeldOut {
    /// Held-out rows among `rows`.
    fn count(self, rows: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Share(share) => ((rows as f64 * share).round() as usize).max(1),
            Self::Rows(count) => count,
        }
    }

    pub(super) fn fault(self) -> Option<String> {
        let fine = match self {
            Self::None => true,
            Self::Share(share) => share > 0.0 && share < 1.0,
            Self::Rows(count) => count > 0,
        };
        (!fine)
            .then(|| format!("validation = {self} is neither \"none\", a share in 0..1 nor a number of rows"))
    }
}

impl fmt::Display for HeldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Share(share) => share.fmt(f),
            Self::Rows(count) => count.fmt(f),
        }
    }
}

impl Serialize for HeldOut {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Share(share) => share.serialize(serializer),
            Self::Rows(count) => count.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for HeldOut {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Rows(usize),
            Share(f64),
            Word(String),
        }
        match Written::deserialize(deserializer) {
            Ok(Written::Rows(count)) => Ok(Self::Rows(count)),
            Ok(Written::Share(share)) => Ok(Self::Share(share)),
            Ok(Written::Word(word)) if word == "none" => Ok(Self::None),
            _ => Err(de::Error::custom(
                "expected \"none\", a share such as 0.1 or a number of rows such as 50",
            )),
        }
    }
}

/// The held-out rows at one moment of a training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// Optimiser steps done; 0: the start.
    pub step: usize,
    /// Mean loss over the target tokens of the held-out rows.
    pub loss: f32,
}

/// The rows that are trained on and those that are held out, each in file order.
pub(super) struct Split<'r> {
    pub(super) trained: Vec<Placed<'r>>,
    pub(super) held_out: Vec<Placed<'r>>,
}

impl<'r> Split<'r> {
    pub(super) fn new(rows: &'r [TrainRow], config: &TrainConfig, seed: u64) -> Result<Self> {
        let count = config.validation.count(rows.len());
        if count > 0 && count >= rows.len() {
            return Err(TrainError::Rows(format!(
                "validation = {} holds {count} of {} rows out and leaves none to train on: hold out fewer or make more",
                config.validation,
                rows.len()
            )));
        }
        let mut is_held_out = vec![false; rows.len()];
        let order = random::permutation(rows.len(), seed, random::stream(&["held out"]));
        order.into_iter().take(count).for_each(|index| is_held_out[index] = true);
        let part = |wanted: bool| {
            batch::placed(rows).into_iter().filter(|row| is_held_out[row.place] == wanted).collect()
        };
        Ok(Self { trained: part(false), held_out: part(true) })
    }
}

/// The look whose parameters are kept: the first one with the lowest loss after the start.
pub(super) fn best(looks: &[Validated]) -> Option<Validated> {
    looks
        .iter()
        .copied()
        .filter(|look| look.step > 0 && look.loss.is_finite())
        .reduce(|best, look| if look.loss < best.loss { look } else { best })
}

/// The last `patience` looks brought nothing better.
pub(super) fn is_over(looks: &[Validated], patience: usize) -> bool {
    let later = |best: Validated| looks.iter().filter(|look| look.step > best.step).count();
    patience > 0 && best(looks).is_some_and(|best| later(best) >= patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(losses: &[f32]) -> Vec<Validated> {
        losses.iter().enumerate().map(|(step, &loss)| Validated { step, loss }).collect()
    }

    #[test]
    fn the_first_lowest_loss_after_the_start_is_the_best() {
        let check = |losses: &[f32], step: Option<usize>| {
            assert_eq!(best(&looks(losses)).map(|look| look.step), step, "{losses:?}");
        };
        check(&[1.0], None);
        check(&[1.0, 2.0], Some(1));
        check(&[1.0, 3.0, 2.0, 2.0, 2.5], Some(2));
        check(&[1.0, f32::NAN, 2.0], Some(2));
    }

    #[test]
    fn patience_counts_looks_without_a_better_loss() {
        let check = |losses: &[f32], patience: usize, over: bool| {
            assert_eq!(is_over(&looks(losses), patience), over, "{losses:?} {patience}");
        };
        check(&[3.0, 2.0, 1.0, 1.5], 2, false);
        check(&[3.0, 2.0, 1.0, 1.5, 1.0], 2, true);
        check(&[3.0, 2.0, 1.0, 1.5, 0.5], 2, false);
        check(&[3.0, 2.0, 3.0, 3.0], 0, false);
        check(&[], 1, false);
    }

    #[test]
    fn written_forms() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Holder {
            validation: HeldOut,
        }
        let check = |json: &str, expected: Option<HeldOut>| {
            let found = serde_json::from_str::<Holder>(json).ok().map(|holder| holder.validation);
            assert_eq!(found, expected, "{json}");
            if let Some(validation) = found {
                assert_eq!(serde_json::to_string(&Holder { validation }).unwrap(), json);
            }
        };
        check(r#"{"validation":"none"}"#, Some(HeldOut::None));
        check(r#"{"validation":0.1}"#, Some(HeldOut::Share(0.1)));
        check(r#"{"validation":20}"#, Some(HeldOut::Rows(20)));
        check(r#"{"validation":"all"}"#, None);
        assert!(
            HeldOut::Share(-3.0).fault().is_some()
                && HeldOut::Share(1.0).fault().is_some()
                && HeldOut::Rows(0).fault().is_some()
        );
    }

    #[test]
    fn every_row_is_on_one_side() {
        let rows: Vec<TrainRow> =
            (0..10).map(|i| TrainRow { prompt_ids: vec![i], target_ids: vec![1], domain: None }).collect();
        let split = |validation, seed| {
            let config = TrainConfig { validation, ..TrainConfig::default() };
            Split::new(&rows, &config, seed)
        };
        let found = split(HeldOut::Share(0.25), 1).unwrap();
        assert_eq!((found.trained.len(), found.held_out.len()), (7, 3));
        let mut all: Vec<u32> =
            found.trained.iter().chain(&found.held_out).map(|r| r.prompt_ids[0]).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        let ids = |seed| {
            split(HeldOut::Rows(3), seed).unwrap().held_out.iter().map(|r| r.prompt_ids[0]).sum::<u32>()
        };
        assert!((2..9).any(|seed| ids(seed) != ids(1)), "the slice depends on the seed");
        assert!(split(HeldOut::Rows(10), 1).is_err());
        assert_eq!(split(HeldOut::None, 1).unwrap().trained.len(), 10);
    }
}
