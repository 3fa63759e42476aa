//! The Python interpreter that runs generated code.

use std::{path::PathBuf, process::Command};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Asks the interpreter where it lives: a `python3` on the path may be a script or a link of a version manager.
const DESCRIBE: &str = "import json, os, sys
print(json.dumps({'version': sys.version.split()[0],
    'executable': sys.executable,
    'roots': sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix,
                     os.path.dirname(os.path.realpath(sys.executable))})}))";

/// A Python interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Python {
    /// Its version, such as `3.11.7`; belongs in every result that depends on executed code.
    pub version: String,
    /// The interpreter itself.
    pub executable: PathBuf,
    /// Directories that it needs to read: its prefixes and the one of the real executable.
    pub(crate) roots: Vec<PathBuf>,
}

impl Python {
    /// The `python3` of the search path.
    ///
    /// # Errors
    /// There is none, or it does not start. Callers show the message and skip what needs Python.
    pub fn find() -> Result<Self> {
        Self::at("python3")
    }

    /// The interpreter with this name or path.
    ///
    /// # Errors
    /// As [`Python::find`].
    pub fn at(name: &str) -> Result<Self> {
        let output = Command::new(name).args(["-I", "-c", DESCRIBE]).output().map_err(|e| {
            Error::Sandbox(format!("{name} does not start ({e}); install Python 3 to run generated code"))
        })?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Sandbox(format!("{name} fails: {}", reason.trim())));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|e| Error::Sandbox(format!("{name} is not a Python 3 interpreter ({e})")))
    }
}
