//! What can go wrong in a plan.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Change, TaskError};

/// Why tasks could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the run directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The tasks do not make a plan.
    #[error("{0}")]
    Plan(String),
    /// A task was asked for that the plan does not have.
    #[error("there is no task {id:?}; there are: {known}")]
    UnknownTask {
        /// What was asked for.
        id: String,
        /// The ids that there are.
        known: String,
    },
    /// A task needs others that are not done.
    #[error("task {id} must wait for {}", missing.join(", "))]
    NotReady {
        /// The task.
        id: String,
        /// What it waits for.
        missing: Vec<String>,
    },
    /// An input file is not there.
    #[error("task {id} needs {path}, which does not exist")]
    MissingInput {
        /// The task.
        id: String,
        /// The file.
        path: PathBuf,
    },
    /// A state file cannot be understood. Its task counts as not done.
    #[error("{path} is damaged: {what}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A task was done elsewhere: with values that must be the same over a whole run and are not those of this process.
    #[error(
        "task {id} was done with other numbers than this machine or call would give ({}), and a run's results are not mixed: go on where it was begun \
         or with the same settings, choose another directory, or remove {state} and the records after it to make them again here",
        list(changes)
    )]
    Elsewhere {
        /// The task.
        id: String,
        /// Its record.
        state: PathBuf,
        /// What differs.
        changes: Vec<Change>,
    },
    /// Tasks were done by a program that did not record which version of its code made them.
    #[error(
        "{directory} was made by an earlier version of mixse, which did not record what its results depend on: they can be looked at and used \
         (report, chat, serve, eval, export), but not be continued by this version. Choose another directory, or remove {states} \
         to make everything again"
    )]
    Unversioned {
        /// The run.
        directory: PathBuf,
        /// The records.
        states: PathBuf,
    },
    /// Another process took the task over because this one had given no sign of life.
    #[error("task {0} was taken over by another process, because this one gave no sign of life for too long")]
    Lost(String),
    /// The body of a task failed.
    #[error("task {id} failed: {source}")]
    Task {
        /// The task.
        id: String,
        /// Why.
        source: TaskError,
    },
}

fn list(changes: &[Change]) -> String {
    changes.iter().map(Change::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// For `map_err`: an [`Error::Io`] about `path`.
    pub(super) fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }
}

/// A plan's result.
pub type Result<T> = std::result::Result<T, Error>;
