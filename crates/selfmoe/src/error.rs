//! The error type of the crate.

use std::{fmt, path::PathBuf};

/// What can go wrong while reading domains, making data, training or merging.
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
    /// A file was read but its content is wrong; every fault that was found, in file order.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
    /// A setting is out of its range or two settings contradict each other.
    #[error("{key}: {what}")]
    Setting {
        /// The setting's name.
        key: String,
        /// What is wrong and what is allowed.
        what: String,
    },
    /// Two adapters do not fit together (other modules, shapes or ranks).
    #[error("merging {module}: {what}")]
    Merge {
        /// The module where they differ.
        module: String,
        /// How they differ.
        what: String,
    },
    /// The model refused a request or failed.
    #[error(transparent)]
    Model(#[from] mixse_model::Error),
    /// A tensor operation failed; shapes are checked before, so this is a bug or a device fault.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1, where one can be named.
    pub line: Option<usize>,
    /// What is wrong and what to do about it.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.what),
            None => write!(f, "{}: {}", self.path.display(), self.what),
        }
    }
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Faults`] with one fault of a whole file.
    pub fn invalid(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Faults(vec![Fault { path: path.into(), line: None, what: what.into() }])
    }

    /// An [`Error::Faults`] with one fault at a line.
    pub fn at_line(path: impl Into<PathBuf>, line: usize, what: impl Into<String>) -> Self {
        Self::Faults(vec![Fault { path: path.into(), line: Some(line), what: what.into() }])
    }

    /// An [`Error::Setting`].
    pub fn setting(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Setting { key: key.into(), what: what.into() }
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
