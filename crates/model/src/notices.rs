//! Things that a user should know although nothing failed, such as tensors that were left out. A library does not print:
//! they go to the program's logger (the [`log`] crate) as warnings.

use std::path::Path;

/// Says something about a file.
pub(crate) fn about(path: &Path, what: impl std::fmt::Display) {
    log::warn!("{}: {what}", path.display());
}
