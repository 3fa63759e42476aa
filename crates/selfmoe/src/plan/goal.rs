//! Reaching some tasks: them and what they need, and nothing else.

use std::collections::HashMap;

use super::{Done, Error, Event, Plan, Result, State, Task, differing};

/// What [`Plan::recorded`] has found, by task.
type Records = HashMap<String, Option<State>>;

impl<'a> Plan<'a> {
    /// Runs some tasks and whatever has to run before them. A task that is done stays done when files that it was made from are gone: as long as
    /// the record of the tasks before it is the one it was made from, they need not be made again.
    ///
    /// # Errors
    /// As [`Plan::run`]; and there is no such task.
    pub fn run_up_to(&self, ids: &[String], observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let (mut records, mut done, mut open) = (Records::new(), Done::default(), Vec::new());
        for id in ids {
            self.collect(self.find(id)?, &mut records, &mut done, &mut open)?;
        }
        self.run_these(open, done, observe)
    }

    /// Puts into `open` what has to run for a task, each after those it needs, and into `done` what need not.
    fn collect<'p>(
        &'p self,
        task: &'p Task<'a>,
        records: &mut Records,
        done: &mut Done,
        open: &mut Vec<&'p Task<'a>>,
    ) -> Result<()> {
        if done.outputs(&task.id).is_some() || open.iter().any(|other| other.id == task.id) {
            return Ok(());
        }
        if let Some(state) = self.recorded(task, records)?
            && task.outputs.iter().all(|output| self.directory.join(output).exists())
        {
            done.insert(&task.id, &state);
            return Ok(());
        }
        for id in task.dependencies() {
            self.collect(self.find(id)?, records, done, open)?;
        }
        open.push(task);
        Ok(())
    }

    /// The last success of a task, if it was made from what the plan says now: the same values and files, and tasks before it whose
    /// records are the same. Outputs may be missing, but not changed.
    fn recorded(&self, task: &Task<'a>, records: &mut Records) -> Result<Option<State>> {
        if let Some(known) = records.get(&task.id) {
            return Ok(known.clone());
        }
        let found = self.look_up(task, records)?;
        records.insert(task.id.clone(), found.clone());
        Ok(found)
    }

    fn look_up(&self, task: &Task<'a>, records: &mut Records) -> Result<Option<State>> {
        let state = match State::read(&self.state_path(task)) {
            Ok(Some(state)) => state,
            Ok(None) | Err(Error::State { .. }) => return Ok(None),
            Err(other) => return Err(other),
        };
        let mut before = Done::default();
        for id in task.dependencies() {
            match self.recorded(self.find(id)?, records)? {
                Some(state) => before.insert(id, &state),
                None => return Ok(None),
            }
        }
        let inputs = match self.input_hashes(task, &before) {
            Ok(inputs) => inputs.unwrap_or_default(),
            Err(Error::MissingInput { .. }) => return Ok(None),
            Err(other) => return Err(other),
        };
        if !differing(&state.inputs, &inputs).is_empty() {
            return Ok(None);
        }
        for output in &task.outputs {
            let hash = self.hash_if_there(&self.directory.join(output))?;
            if hash.is_some() && hash.as_ref() != state.outputs.get(&output.display().to_string()) {
                return Ok(None);
            }
        }
        Ok(Some(state))
    }
}
