//! The error type of the crate.

use std::path::PathBuf;

/// What can go wrong while reading a model or running it.
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
    /// A file was read but its content is wrong: truncated, malformed or of a kind that is not supported.
    #[error("{path}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and what to do about it.
        what: String,
    },
    /// The request cannot be served by this model (too long a prompt, an adapter for another base, …).
    #[error("{0}")]
    Unsupported(String),
    /// A logit is NaN or infinite, so that no token can be chosen or scored by it: numbers grew out of the format's range on
    /// the way, by weights or an adapter that do not belong to this model.
    #[error(
        "the logit of token {token} is {value} after row {row} of the pass: nothing can be chosen or scored by it (are the \
         weights damaged, or does an adapter not belong to this base?)"
    )]
    NotFinite {
        /// What it is.
        value: f32,
        /// Whose logit.
        token: u32,
        /// After which token of the pass, counted over all its sequences.
        row: usize,
    },
    /// A tensor operation failed; shapes and devices are checked before, so this is a bug or a device fault.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Invalid`] about `path`.
    pub fn invalid(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), what: what.into() }
    }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
