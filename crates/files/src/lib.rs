//! The one way in which this program opens, writes and appends to files.
//!
//! - [`open`] and its friends take regular files only, and read no more than a bound: a device, a pipe or a file of a terabyte is an
//!   error that says so, not a process that hangs or is killed.
//! - [`AtomicFile`] and [`write_atomic`] make a file that is whole or not there: a temporary name in the same directory, synced,
//!   renamed, the directory synced.
//! - [`Appender`] adds lines to a file that a killed process may have left with half a line.
//! - [`OutputDirectory`] does for a directory what [`AtomicFile`] does for a file.

mod append;
mod atomic;
mod output;
mod read;
mod tree;

pub use append::Appender;
pub use atomic::{
    AtomicFile, TEMPORARY_PREFIX, is_temporary, temporary_directory, temporary_file, write_atomic,
};
pub use output::{Below, Existing, OutputDirectory, OutputError};
pub use read::{Refused, is_there, open, read, read_json, read_prefix, read_text};
pub use tree::{
    create_directory, files_below, hash_bytes, hash_path, hash_reader, link_tree, replace_directory,
    sync_directory, sync_tree,
};
