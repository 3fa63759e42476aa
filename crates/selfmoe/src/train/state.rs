//! Parameters, moments and losses of a training, in memory and on disk.

use std::{collections::BTreeMap, path::Path};

use candle_core::Var;
use mixse_kernels::adamw::{AdamW, adamw};
use mixse_model::files::{self, NamedTensor};
use sha2::{Digest, Sha256};

use super::{
    Job, Result,
    validation::{self, Validated},
};

/// AdamW's usual constants (Loshchilov and Hutter 2019).
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

const TENSORS: &str = "state.safetensors";
const CHECKSUM: &str = "checksum";

/// Everything that the next step depends on.
#[derive(Clone)]
pub(super) struct State {
    pub(super) values: Vec<Vec<f32>>,
    first_moments: Vec<Vec<f32>>,
    second_moments: Vec<Vec<f32>>,
    /// One a step done.
    pub(super) losses: Vec<f32>,
    /// The held-out rows' losses so far.
    pub(super) looks: Vec<Validated>,
    /// The values at the best of them; empty before the first.
    best: Vec<Vec<f32>>,
}

impl State {
    /// The state in the job's directory, or the start.
    pub(super) fn load_or_start(job: &Job<'_>, vars: &[Var]) -> Result<Self> {
        let values =
            vars.iter().map(|v| Ok(v.flatten_all()?.to_vec1::<f32>()?)).collect::<Result<Vec<_>>>()?;
        let zeros = || values.iter().map(|v| vec![0.0; v.len()]).collect::<Vec<_>>();
        let start = Self {
            first_moments: zeros(),
            second_moments: zeros(),
            values,
            losses: Vec::new(),
            looks: Vec::new(),
            best: Vec::new(),
        };
        match job.state {
            Some(dir) => match read(&dir.join(TENSORS))? {
                // What is damaged is as good as not there: the training starts again.
                Checkpoint::Missing | Checkpoint::Damaged(_) => Ok(start),
                Checkpoint::Whole(tensors) => Ok(start.clone().with(tensors).unwrap_or(start)),
            },
            None => Ok(start),
        }
    }

    /// One AdamW step; each variable has its own rate, times `factor`.
    pub(super) fn update(&mut self, grads: &[Vec<f32>], rates: &[f64], factor: f64, weight_decay: f64) {
        let settings = AdamW {
            lr: 0.0,
            beta1: BETA1,
            beta2: BETA2,
            eps: EPSILON,
            weight_decay: weight_decay as f32,
            step: self.losses.len() as u32 + 1,
        };
        for ((((values, grad), m), v), rate) in self
            .values
            .iter_mut()
            .zip(grads)
            .zip(&mut self.first_moments)
            .zip(&mut self.second_moments)
            .zip(rates)
        {
            adamw(values, grad, m, v, AdamW { lr: (rate * factor) as f32, ..settings });
        }
    }

    /// Takes note of the held-out rows' loss, and of the values if it is the best one.
    pub(super) fn look(&mut self, loss: f32) {
        let look = Validated { step: self.losses.len(), loss };
        self.looks.push(look);
        if validation::best(&self.looks) == Some(look) {
            self.best.clone_from(&self.values);
        }
    }

    /// The values to keep, and the steps after which they were reached.
    pub(super) fn kept(&self) -> (&[Vec<f32>], usize) {
        match validation::best(&self.looks) {
            Some(look) => (&self.best, look.step),
            None => (&self.values, self.losses.len()),
        }
    }

    /// Writes the state, atomically: one file, so that there is never half a state.
    pub(super) fn save(&self, job: &Job<'_>) -> Result<()> {
        let Some(dir) = job.state else { return Ok(()) };
        files::create_dir(dir)?;
        let mut tensors =
            vec![NamedTensor { name: "losses".into(), shape: vec![self.losses.len()], values: &self.losses }];
        let looks: Vec<f32> = self.looks.iter().flat_map(|look| [look.step as f32, look.loss]).collect();
        tensors.push(NamedTensor { name: "looks".into(), shape: vec![looks.len()], values: &looks });
        for (kind, group) in self.groups() {
            tensors.extend(group.iter().enumerate().map(|(index, values)| NamedTensor {
                name: format!("{kind}.{index}"),
                shape: vec![values.len()],
                values,
            }));
        }
        let sum = checksum(tensors.iter().map(|t| (t.name.as_str(), t.values)));
        tensors.push(NamedTensor { name: CHECKSUM.into(), shape: vec![sum.len()], values: &sum });
        Ok(files::write_tensors(&dir.join(TENSORS), &tensors)?)
    }

    fn groups(&self) -> [(&'static str, &Vec<Vec<f32>>); 4] {
        [
            ("value", &self.values),
            ("first_moment", &self.first_moments),
            ("second_moment", &self.second_moments),
            ("best", &self.best),
        ]
    }

    /// The state with the values of a checkpoint; `self` gives the expected sizes. `None` if it is one of another training.
    fn with(mut self, mut tensors: BTreeMap<String, Vec<f32>>) -> Option<Self> {
        self.losses = tensors.remove("losses")?;
        self.looks = tensors
            .remove("looks")?
            .chunks_exact(2)
            .map(|look| Validated { step: look[0] as usize, loss: look[1] })
            .collect();
        if validation::best(&self.looks).is_some() {
            self.best.clone_from(&self.values);
        }
        for (kind, group) in [
            ("value", &mut self.values),
            ("first_moment", &mut self.first_moments),
            ("second_moment", &mut self.second_moments),
            ("best", &mut self.best),
        ] {
            for (index, place) in group.iter_mut().enumerate() {
                let values = tensors.remove(&format!("{kind}.{index}"))?;
                if values.len() != place.len() {
                    return None;
                }
                *place = values;
            }
        }
        Some(self)
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
