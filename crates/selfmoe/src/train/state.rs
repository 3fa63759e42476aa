//! Parameters, moments and losses of a training, in memory and on disk.

use std::path::Path;

use candle_core::Var;
use mixse_kernels::adamw::{AdamW, adamw};
use mixse_model::files::{self, NamedTensor};

use super::{
    Job, Result, TrainError,
    validation::{self, Validated},
};

/// AdamW's usual constants (Loshchilov and Hutter 2019).
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

const TENSORS: &str = "state.safetensors";

/// Everything that the next step depends on.
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
            Some(dir) if dir.join(TENSORS).exists() => start.load(&dir.join(TENSORS)),
            _ => Ok(start),
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

    /// Takes every tensor from the file; `self` gives the expected sizes.
    fn load(mut self, path: &Path) -> Result<Self> {
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
        self.losses = take("losses".into())?;
        self.looks = take("looks".into())?
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
                let values = take(format!("{kind}.{index}"))?;
                if values.len() != place.len() {
                    return Err(fault(format!(
                        "`{kind}.{index}` has {} values instead of {}",
                        values.len(),
                        place.len()
                    )));
                }
                *place = values;
            }
        }
        Ok(self)
    }
}
