//! Results that several run directories share.
//!
//! An entry is named by the hash of a task's id and of all its inputs, so a task of another run that would make the
//! same bytes finds them made. `STORE/KEY/state.json` is the maker's record, `STORE/KEY/files/` its outputs.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use mixse_files::{hash_bytes, hash_path, link_tree, sync_directory, sync_tree, temporary_directory};

use super::{Error, Result, State};

/// A directory of results by the hash of what they depend on. Several processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// A store in `directory`, which is made when something is kept.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn entry(&self, task: &str, inputs: &BTreeMap<String, String>) -> PathBuf {
        let list: String = inputs.iter().map(|(name, hash)| format!("{name}\0{hash}\n")).collect();
        self.directory.join(hash_bytes(format!("{task}\n{list}").as_bytes()))
    }

    /// Puts the outputs of a task with these inputs below `into` and returns their record; `None` if they are not there.
    /// An entry that does not have the hashes of its record is removed and not used.
    pub(super) fn fetch(
        &self,
        task: &str,
        inputs: &BTreeMap<String, String>,
        into: &Path,
    ) -> Result<Option<State>> {
        let entry = self.entry(task, inputs);
        let Ok(Some(state)) = State::read(&entry.join("state.json")) else { return Ok(None) };
        for (name, hash) in &state.outputs {
            let kept = entry.join("files").join(name);
            if !hash_path(&kept).is_ok_and(|found| found == *hash) {
                fs::remove_dir_all(&entry).map_err(Error::io(&entry))?;
                return Ok(None);
            }
            link_tree(&kept, &into.join(name)).map_err(Error::io(&kept))?;
        }
        Ok(Some(state))
    }

    /// Keeps the outputs of a finished task of the run in `run`.
    pub(super) fn keep(&self, state: &State, run: &Path) -> Result<()> {
        let entry = self.entry(&state.task, &state.inputs);
        fs::create_dir_all(&self.directory).map_err(Error::io(&self.directory))?;
        let made = temporary_directory(&self.directory).map_err(Error::io(&self.directory))?;
        for name in state.outputs.keys() {
            let from = run.join(name);
            link_tree(&from, &made.path().join("files").join(name)).map_err(Error::io(&from))?;
        }
        state.write(&made.path().join("state.json"))?;
        sync_tree(made.path()).map_err(Error::io(made.path()))?;
        match fs::rename(made.path(), &entry) {
            Ok(()) => sync_directory(&self.directory).map_err(Error::io(&self.directory)),
            // Another process has kept the same result.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(())
            }
            Err(e) => Err(Error::io(&entry)(e)),
        }
    }
}
