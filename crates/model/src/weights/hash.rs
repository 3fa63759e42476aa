//! The identity of a model.

use std::{io::Read, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// SHA-256 over the content of `files` one after the other, lower-case hex.
pub(super) fn sha256(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = mixse_files::open(path).map_err(|e| Error::io(path, e))?;
        loop {
            let read = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
