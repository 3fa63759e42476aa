//! What can go wrong.

use std::path::PathBuf;

/// A [`std::result::Result`] with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Why CUDA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A library that is nowhere to be found.
    #[error(
        "{name} is not there: install a CUDA toolkit 13, or the Python package {package}, \
         or name its folder in LD_LIBRARY_PATH"
    )]
    Missing {
        /// The library's file name.
        name: &'static str,
        /// The Python package that carries it.
        package: &'static str,
    },
    /// A library that is there and cannot be loaded.
    #[error("cannot load {path}: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The compiler refuses a kernel.
    #[error("NVRTC does not compile the kernel {kernel} for {architecture} ({code}):\n{log}")]
    Compile {
        /// File name of the kernel's source.
        kernel: &'static str,
        /// As in `sm_90`.
        architecture: String,
        /// NVRTC's own name of the fault.
        code: String,
        /// What the compiler says.
        log: String,
    },
}
