//! A directory that holds one run: made once, then only continued with the same configuration.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use mixse_files::write_atomic;
use mixse_selfmoe::plan::{Plan, State};
use serde::{Deserialize, Serialize};

use super::{read_json, write_pretty};
use crate::{
    config::{Config, MAX_CONFIG, compare, read_resolved},
    machine::Machine,
    output::usage_error,
};

/// Name of the configuration in it.
const CONFIG: &str = "mixse.toml";
/// Name of the summary in it.
const SUMMARY: &str = "run.json";

#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
}

/// `run.json`: what was done, by what, where.
#[derive(Serialize, Deserialize)]
pub(super) struct RunFile {
    pub(super) version: String,
    pub(super) machine: Machine,
    finished: bool,
    tasks: Vec<State>,
}

impl RunDirectory {
    /// Where the configuration of a run directory is.
    pub(crate) fn config_file(path: &Path) -> PathBuf {
        path.join(CONFIG)
    }

    /// The configuration that the directory was made with, if it is a run.
    pub(crate) fn stored_config(path: &Path) -> anyhow::Result<Option<Config>> {
        let file = Self::config_file(path);
        if file.exists() { read_resolved(&file).map(Some) } else { Ok(None) }
    }

    /// Refuses a directory that cannot be used with this configuration. Nothing is written.
    pub(crate) fn check(path: &Path, config: &Config) -> anyhow::Result<()> {
        if let Some(there) = Self::stored_config(path)? {
            let differences = compare(&there, config)?;
            if differences.is_empty() {
                return Ok(());
            }
            return Err(usage_error(format!(
                "{} holds a run with another configuration; choose another --out, or remove it. It differs in:\n  {}",
                path.display(),
                differences.join("\n  ")
            )));
        }
        match fs::read_dir(path) {
            Ok(mut entries) => match entries.find(|entry| !entry.as_ref().is_ok_and(is_temporary)) {
                None => Ok(()),
                Some(_) => Err(usage_error(format!(
                    "{} is not empty and is no run (it has no {CONFIG}); choose another --out",
                    path.display()
                ))),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot use {} as run directory", path.display())),
        }
    }

    /// The directory as it is, which need not exist.
    pub(crate) fn look(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The directory, made and given its configuration if it is new or evaluates other methods now.
    pub(crate) fn open(path: &Path, config: &Config) -> anyhow::Result<Self> {
        Self::check(path, config)?;
        let there = Self::stored_config(path)?;
        if there.is_none_or(|there| there.methods != config.methods) {
            Self::look(path).reconfigure(config)?;
            // Another process may have been faster, with another configuration.
            Self::check(path, config)?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Gives a run another configuration: tasks whose inputs it changes are to be done again.
    pub(crate) fn reconfigure(&self, config: &Config) -> anyhow::Result<()> {
        let file = Self::config_file(&self.path);
        write_atomic(&file, toml::to_string(config)?.as_bytes())
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// A directory that is a run already, with its configuration.
    pub(crate) fn existing(path: &Path) -> anyhow::Result<(Self, Config)> {
        match Self::stored_config(path)? {
            Some(config) => Ok((Self { path: path.to_owned() }, config)),
            None => Err(usage_error(format!("{} is no run: it has no {CONFIG}", path.display()))),
        }
    }

    /// The summary as it was written last; nothing before the first task is done.
    pub(super) fn summary(&self) -> anyhow::Result<Option<RunFile>> {
        let file = self.path.join(SUMMARY);
        if file.exists() { read_json(&file).map(Some) } else { Ok(None) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration as it was written.
    pub(crate) fn config_text(&self) -> anyhow::Result<String> {
        let file = self.path.join(CONFIG);
        mixse_files::read_text(&file, MAX_CONFIG).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Writes `run.json` from the states of all tasks.
    pub(crate) fn summarise(&self, plan: &Plan<'_>) -> anyhow::Result<()> {
        let mut tasks = Vec::new();
        for task in plan.tasks() {
            // A damaged state is the plan's to report; here it is left out.
            tasks.extend(plan.state(task.id()).ok().flatten());
        }
        let finished = tasks.len() == plan.tasks().len();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let run = RunFile { version, machine: Machine::detect(), finished, tasks };
        let file = self.path.join(SUMMARY);
        write_pretty(&file, &run)
    }
}

/// A file that another process, which starts the same run, is just writing.
fn is_temporary(entry: &fs::DirEntry) -> bool {
    mixse_files::is_temporary(&entry.file_name())
}
