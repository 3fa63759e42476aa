//! Losses of a training, and everything that it holds on disk.

use std::path::Path;

use mixse_model::{
    engine::{Parameters, Trainer},
    files::{self, NamedTensor},
};

use super::{
    Job, Result, TrainError,
    validation::{self, Validated},
};

const TENSORS: &str = "state.safetensors";

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
            Some(dir) if dir.join(TENSORS).exists() => Self::load(&dir.join(TENSORS), trainer),
            _ => Ok(Self::default()),
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
        let tensors: Vec<NamedTensor<'_>> = all
            .iter()
            .map(|(name, values)| NamedTensor { name: name.clone(), shape: vec![values.len()], values })
            .collect();
        Ok(files::write_tensors(&dir.join(TENSORS), &tensors)?)
    }

    /// Takes every tensor from the file; the trainer's values give the expected sizes.
    fn load(path: &Path, trainer: &mut dyn Trainer) -> Result<Self> {
        let fault = |what: String| {
            TrainError::Model(mixse_model::Error::invalid(
                path,
                format!("{what}: remove the file to start this training again"),
            ))
        };
        let mut tensors: std::collections::HashMap<String, Vec<f32>> =
            files::read_tensors(path)?.into_iter().map(|t| (t.name, t.values)).collect();
        let mut take =
            |name: String| tensors.remove(&name).ok_or_else(|| fault(format!("has no tensor `{name}`")));
        let losses = take("losses".into())?;
        let looks: Vec<Validated> = take("looks".into())?
            .chunks_exact(2)
            .map(|look| Validated { step: look[0] as usize, loss: look[1] })
            .collect();
        let lengths: Vec<usize> = trainer.read(Parameters::Values)?.iter().map(Vec::len).collect();
        for (kind, which) in GROUPS {
            if which == Parameters::Best && validation::best(&looks).is_none() {
                continue;
            }
            let mut group = Vec::with_capacity(lengths.len());
            for (index, &len) in lengths.iter().enumerate() {
                let values = take(format!("{kind}.{index}"))?;
                if values.len() != len {
                    let found = values.len();
                    return Err(fault(format!("`{kind}.{index}` has {found} values instead of {len}")));
                }
                group.push(values);
            }
            trainer.write(which, group)?;
        }
        Ok(Self { losses, looks })
    }
}
