//! Losses of a training, and everything that it holds on disk.

use std::{collections::BTreeMap, path::Path};

use mixse_model::{
    engine::{Parameters, Trainer},
    files::{self, NamedTensor},
};
use sha2::{Digest, Sha256};

use super::{
    Job, Result,
    validation::{self, Validated},
};

const TENSORS: &str = "state.safetensors";
const CHECKSUM: &str = "checksum";

/// What a state holds of a trainer, by the names of its tensors.
const GROUPS: [(&str, Parameters); 4] = [
    ("value", Parameters::Values),
    ("first_moment", Parameters::FirstMoments),
    ("second_moment", Parameters::SecondMoments),
    ("best", Parameters::Best),
];

/// What the next step depends on beside the trainer.
#[derive(Default)]
pub(super) struct State {
    /// One a step done.
    pub(super) losses: Vec<f32>,
    /// The held-out rows' losses so far.
    pub(super) looks: Vec<Validated>,
}

impl State {
    /// The state in the job's directory, which the trainer goes on from, or the start.
    pub(super) fn load_or_start(job: &Job<'_>, trainer: &mut dyn Trainer) -> Result<Self> {
        match job.state {
            Some(dir) => match read(&dir.join(TENSORS))? {
                // What is damaged is as good as not there: the training starts again.
                Checkpoint::Missing | Checkpoint::Damaged(_) => Ok(Self::default()),
                Checkpoint::Whole(tensors) => Ok(Self::taken(tensors, trainer)?.unwrap_or_default()),
            },
            None => Ok(Self::default()),
        }
    }

    /// Takes note of the held-out rows' loss, and of the values if it is the best one.
    pub(super) fn look(&mut self, loss: f32, trainer: &mut dyn Trainer) -> Result<()> {
        let look = Validated { step: self.losses.len(), loss };
        self.looks.push(look);
        if validation::best(&self.looks) == Some(look) {
            trainer.keep_best()?;
        }
        Ok(())
    }

    /// Leaves the trainer with the values to keep; returns the steps after which they were reached.
    pub(super) fn keep(&self, trainer: &mut dyn Trainer) -> Result<usize> {
        match validation::best(&self.looks) {
            Some(look) => {
                trainer.restore_best()?;
                Ok(look.step)
            }
            None => Ok(self.losses.len()),
        }
    }

    /// Writes the state, atomically: one file, so that there is never half a state.
    pub(super) fn save(&self, job: &Job<'_>, trainer: &dyn Trainer) -> Result<()> {
        let Some(dir) = job.state else { return Ok(()) };
        files::create_dir(dir)?;
        let looks: Vec<f32> = self.looks.iter().flat_map(|look| [look.step as f32, look.loss]).collect();
        let mut all = vec![("losses".to_owned(), self.losses.clone()), ("looks".to_owned(), looks)];
        for (kind, which) in GROUPS {
            let named = |(index, values)| (format!("{kind}.{index}"), values);
            all.extend(trainer.read(which)?.into_iter().enumerate().map(named));
        }
        let sum = checksum(all.iter().map(|(name, values)| (name.as_str(), values.as_slice())));
        all.push((CHECKSUM.to_owned(), sum));
        let tensors: Vec<NamedTensor<'_>> = all
            .iter()
            .map(|(name, values)| NamedTensor { name: name.clone(), shape: vec![values.len()], values })
            .collect();
        Ok(files::write_tensors(&dir.join(TENSORS), &tensors)?)
    }

    /// Takes every tensor of a checkpoint; the trainer's values give the expected sizes. `None`, with the trainer as it was, if it
    /// is one of another training.
    fn taken(mut tensors: BTreeMap<String, Vec<f32>>, trainer: &mut dyn Trainer) -> Result<Option<Self>> {
        let (Some(losses), Some(looks)) = (tensors.remove("losses"), tensors.remove("looks")) else {
            return Ok(None);
        };
        let looks: Vec<Validated> =
            looks.chunks_exact(2).map(|look| Validated { step: look[0] as usize, loss: look[1] }).collect();
        let lengths: Vec<usize> = trainer.read(Parameters::Values)?.iter().map(Vec::len).collect();
        let mut groups = Vec::new();
        for (kind, which) in GROUPS {
            if which == Parameters::Best && validation::best(&looks).is_none() {
                continue;
            }
            let mut group = Vec::with_capacity(lengths.len());
            for (index, &len) in lengths.iter().enumerate() {
                match tensors.remove(&format!("{kind}.{index}")) {
                    Some(values) if values.len() == len => group.push(values),
                    _ => return Ok(None),
                }
            }
            groups.push((which, group));
        }
        for (which, group) in groups {
            trainer.write(which, group)?;
        }
        Ok(Some(Self { losses, looks }))
    }
}

/// A checkpoint's file.
enum Checkpoint {
    Missing,
    /// Cut off, changed, or written without a checksum; why.
    Damaged(String),
    Whole(BTreeMap<String, Vec<f32>>),
}

/// Reads a checkpoint and compares its checksum.
fn read(path: &Path) -> Result<Checkpoint> {
    if !path.exists() {
        return Ok(Checkpoint::Missing);
    }
    let mut tensors: BTreeMap<String, Vec<f32>> = match files::read_tensors(path) {
        Ok(tensors) => tensors.into_iter().map(|t| (t.name, t.values)).collect(),
        Err(mixse_model::Error::Invalid { what, .. }) => return Ok(Checkpoint::Damaged(what)),
        Err(other) => return Err(other.into()),
    };
    let Some(recorded) = tensors.remove(CHECKSUM) else {
        return Ok(Checkpoint::Damaged("it has no checksum".into()));
    };
    let found = checksum(tensors.iter().map(|(name, values)| (name.as_str(), values.as_slice())));
    Ok(if recorded == found {
        Checkpoint::Whole(tensors)
    } else {
        Checkpoint::Damaged("its checksum is not that of its content".into())
    })
}

/// SHA-256 over names, lengths and values in the order of the names, a byte a number: so it fits into the file that it is about, and file and
/// checksum appear together.
fn checksum<'a>(tensors: impl Iterator<Item = (&'a str, &'a [f32])>) -> Vec<f32> {
    let sorted: BTreeMap<&str, &[f32]> = tensors.collect();
    let mut hash = Sha256::new();
    for (name, values) in sorted {
        hash.update(format!("{name}\0{}\n", values.len()));
        for value in values {
            hash.update(value.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|&byte| f32::from(byte)).collect()
}

/// Removes the checkpoint in the directory of a training's state if it is damaged, and says what was wrong with it: that training starts
/// again. A training does not go on from a damaged one in any case; this is for who wants to tell.
///
/// # Errors
/// It cannot be read or removed.
pub fn discard_damaged(directory: &Path) -> Result<Option<String>> {
    let path = directory.join(TENSORS);
    match read(&path)? {
        Checkpoint::Missing | Checkpoint::Whole(_) => Ok(None),
        Checkpoint::Damaged(what) => {
            std::fs::remove_file(&path).map_err(|e| mixse_model::Error::io(&path, e))?;
            Ok(Some(format!("{}: {what}", path.display())))
        }
    }
}
