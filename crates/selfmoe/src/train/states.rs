//! The base's final hidden states of the rows. They do not depend on what is trained, so every epoch reads the same ones.

use std::collections::HashMap;

use candle_core::Tensor;
use mixse_model::mixture::Mixture;

use super::{Job, Result, TrainRow, batch};

/// Hidden states of the rows that were seen so far.
pub(super) struct BaseStates {
    /// They are read, and kept from one epoch to the next.
    kept: bool,
    rows: HashMap<*const TrainRow, Vec<f32>>,
}

impl BaseStates {
    pub(super) fn new(job: &Job<'_>, mixture: &Mixture) -> Self {
        let kept = job.keep_states && job.config.epochs != 1 && mixture.reads_base_last();
        Self { kept, rows: HashMap::new() }
    }

    /// The states of a pass over these rows, `[tokens, d]`; `None`: the pass computes what it needs.
    pub(super) fn of_pass(&mut self, job: &Job<'_>, rows: &[&TrainRow]) -> Result<Option<Tensor>> {
        if !self.kept {
            return Ok(None);
        }
        let (d, max_tokens) = (job.decoder.config.hidden_size, job.config.max_tokens);
        let new: Vec<&TrainRow> =
            rows.iter().copied().filter(|row| !self.rows.contains_key(&std::ptr::from_ref(*row))).collect();
        if !new.is_empty() {
            let batch = batch::ragged(&new, max_tokens);
            let states = job.decoder.base_last(&batch.ids, &batch.ragged)?.flatten_all()?.to_vec1::<f32>()?;
            for (row, segment) in new.into_iter().zip(&batch.ragged.segments) {
                let own = states[segment.start * d..(segment.start + segment.len) * d].to_vec();
                self.rows.insert(std::ptr::from_ref(row), own);
            }
        }
        let all: Vec<f32> = rows
            .iter()
            .filter_map(|row| self.rows.get(&std::ptr::from_ref(*row)))
            .flatten()
            .copied()
            .collect();
        let tokens = all.len() / d;
        Ok(Some(Tensor::from_vec(all, (tokens, d), job.decoder.device())?))
    }
}
