//! The error type of the crate.

use std::path::{Path, PathBuf};

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A line of a data file is malformed.
    #[error("{path}:{line}: {what}")]
    Row {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A file, setting or request as a whole is wrong: unknown task, missing few-shot material, a model without a chat
    /// template.
    #[error("{0}")]
    Invalid(String),
    /// Generated code cannot be run, or cannot be run safely enough.
    #[error("sandbox: {0}")]
    Sandbox(String),
    /// The caller asked to stop; what was made so far is kept.
    #[error("stopped")]
    Stopped,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] mixse_model::Error),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Row`] about line `line` (from 1) of `path`.
    pub fn row(path: &Path, line: usize, what: impl Into<String>) -> Self {
        Self::Row { path: path.into(), line, what: what.into() }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
