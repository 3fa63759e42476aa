//! AMX.

/// Whether tiles can be used here.
pub(crate) fn usable() -> bool {
    false
}
