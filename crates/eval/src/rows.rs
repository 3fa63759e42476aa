//! Files of JSON lines that survive being killed at any moment.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// No file of rows is larger; a larger one is a mistake and would only fill the memory.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Reads a file of rows that a killed process may have left with an unfinished last line, which is ignored; none if there is no file.
///
/// # Errors
/// The file cannot be read, or another line is not a row.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let mut bytes = match mixse_files::read(path, MAX_FILE_BYTES) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(path, e)),
    };
    // The unfinished line may end inside a character.
    bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1));
    let whole = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::row(path, line, "not UTF-8".to_owned())
    })?;
    Ok(parse(path, &whole)?.into_iter().map(|(_, row)| row).collect())
}

/// Reads a complete data file; empty lines are ignored. Rows come with their line number, from 1.
///
/// # Errors
/// The file is missing, no regular file or unreadable, or a line is not a row.
pub fn read_data<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>> {
    parse(path, &mixse_files::read_text(path, MAX_FILE_BYTES).map_err(|e| Error::io(path, e))?)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Vec<(usize, T)>> {
    // Files that were put together from several keep the byte order mark of each.
    let lines = text.lines().map(|line| line.trim_start_matches('\u{feff}'));
    let lines = (1..).zip(lines).filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let row = serde_json::from_str(line);
            // The parser counts lines within the row: only its column means something in the file.
            let told = |e: serde_json::Error| e.to_string().replace(" at line 1 column ", " at column ");
            row.map(|row| (number, row)).map_err(|e| Error::row(path, number, told(e)))
        })
        .collect()
}

/// Replaces a file by rows, atomically.
///
/// # Errors
/// The directory cannot be written, or the disk is full; the old file is untouched then.
pub fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&line(path, row)?);
        text.push('\n');
    }
    write_bytes(path, text.as_bytes())
}

/// As [`write()`], for a file of any content.
///
/// # Errors
/// As [`write()`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    mixse_files::write_atomic(path, bytes).map_err(|e| Error::io(path, e))
}

fn line<T: Serialize>(path: &Path, row: &T) -> Result<String> {
    serde_json::to_string(row).map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))
}

/// Appends rows to a file, one line each, in one write.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: mixse_files::Appender,
}

impl Appender {
    /// Opens or makes the file (and its directory), and cuts off an unfinished last line.
    ///
    /// # Errors
    /// It cannot be opened or written.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, _) = mixse_files::Appender::open(path, MAX_FILE_BYTES).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn append<T: Serialize>(&mut self, row: &T) -> Result<()> {
        self.file.push(&line(&self.path, row)?).map_err(|e| Error::io(&self.path, e))
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
    fn an_unfinished_line_may_end_anywhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.jsonl");
        let whole = "\"eins\"\n\"zwölf\"\n".as_bytes();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let expected: &[&str] = match cut {
                0..7 => &[],
                _ if cut < whole.len() => &["eins"],
                _ => &["eins", "zwölf"],
            };
            assert_eq!(read::<String>(&path).unwrap(), expected, "cut at {cut}");
        }
        std::fs::write(&path, b"1\n\xff\n").unwrap();
        assert!(read::<u32>(&path).unwrap_err().to_string().contains("rows.jsonl:2: not UTF-8"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_row() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.jsonl");
        std::fs::write(&path, "\u{feff}1\n\n\u{feff}2\r\n").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [1, 2]);
        assert_eq!(read_data::<u32>(&path).unwrap(), [(1, 1), (3, 2)]);
    }

    #[test]
    fn devices_are_no_files_of_rows() {
        if Path::new("/dev/zero").exists() {
            let told = read_data::<u32>(Path::new("/dev/zero")).unwrap_err().to_string();
            assert!(told.contains("/dev/zero: is a device"), "{told}");
        }
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
