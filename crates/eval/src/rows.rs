//! Files of JSON lines that survive being killed at any moment.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Reads a file of rows that a killed process may have left with an unfinished last line, which is ignored; none if there is no file.
///
/// # Errors
/// The file cannot be read, or another line is not a row.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut reader = BufReader::new(file);
    let (mut rows, mut line) = (Vec::new(), String::new());
    for number in 1.. {
        line.clear();
        reader.read_line(&mut line).map_err(|e| Error::io(path, e))?;
        if !line.ends_with('\n') {
            break;
        }
        rows.push(serde_json::from_str(&line).map_err(|e| bad_row(path, number, &e))?);
    }
    Ok(rows)
}

/// Reads a complete data file; empty lines are ignored. Rows come with their line number, from 1.
///
/// # Errors
/// The file is missing or unreadable, or a line is not a row.
pub fn read_data<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| Error::io(path, e))?;
        if !line.trim().is_empty() {
            let row = serde_json::from_str(&line).map_err(|e| bad_row(path, i + 1, &e))?;
            rows.push((i + 1, row));
        }
    }
    Ok(rows)
}

/// The parser counts lines within the row: only its column means something in the file.
fn bad_row(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    Error::row(path, line, error.to_string().replace(" at line 1 column ", " at column "))
}

/// Writes rows to a temporary name in the same directory, syncs and renames.
///
/// # Errors
/// The directory cannot be written, or the disk is full; the old file is untouched then.
pub fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let mut text = Vec::new();
    for row in rows {
        text.extend(line(path, row)?);
    }
    write_bytes(path, &text)
}

/// As [`write()`], for a file of any content.
///
/// # Errors
/// As [`write()`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |e| Error::io(path, e);
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn line<T: Serialize>(path: &Path, row: &T) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(row).map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))?;
    line.push(b'\n');
    Ok(line)
}

/// Appends rows to a file, one line each, in one write.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    /// Opens or makes the file (and its directory), and cuts off an unfinished last line.
    ///
    /// # Errors
    /// It cannot be opened or written.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e| Error::io(path, e);
        if let Some(directory) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1) as u64;
        file.set_len(whole).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn append<T: Serialize>(&mut self, row: &T) -> Result<()> {
        let line = line(&self.path, row)?;
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }
}

/// A short hash of several texts: the first 16 hexadecimal digits of SHA-256 over each text's length and bytes.
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of a text, in hexadecimal digits.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_line_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/rows.jsonl");
        assert_eq!(read::<u32>(&path).unwrap(), Vec::<u32>::new());
        Appender::open(&path).unwrap().append(&1).unwrap();
        std::fs::write(&path, "1\n2\n3").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [1, 2]);
        Appender::open(&path).unwrap().append(&4).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [1, 2, 4]);
        write(&path, &[5]).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [5]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.jsonl");
        std::fs::write(&path, "1\nx\n3\n").unwrap();
        assert!(read::<u32>(&path).unwrap_err().to_string().contains("rows.jsonl:2: "));
        let error = read_data::<u32>(&path).unwrap_err().to_string();
        assert!(error.ends_with("rows.jsonl:2: expected value at column 1"), "{error}");
        assert!(read_data::<u32>(&directory.path().join("none")).unwrap_err().to_string().contains("none: "));
    }

    #[test]
    fn keys_keep_their_parts_apart() {
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["x"]).len(), 16);
        assert_eq!(&sha256("")[..8], "e3b0c442");
    }
}
