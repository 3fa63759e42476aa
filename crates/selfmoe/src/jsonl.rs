//! Files of one JSON object a line: strict reading, appending that survives a kill, atomic replacement.

use std::{
    io,
    path::{Path, PathBuf},
};

use mixse_files::Refused;
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Fault, Result};

/// No file of rows is larger; a larger one is a mistake and would only fill the memory.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// A value and the line that it stood on, counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Line<T> {
    /// The line number.
    pub number: usize,
    /// The value.
    pub value: T,
}

/// Parses `text`, which stands in `path` (named in faults only). Empty lines are skipped; every bad line is reported.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Vec<Line<T>>> {
    let mut rows = Vec::new();
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        // Files that were put together from several keep the mark of each.
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(value) => rows.push(Line { number, value }),
            Err(e) => faults.push(Fault {
                path: path.into(),
                line: Some(number),
                // serde_json counts lines within the row, which is always 1.
                what: e.to_string().replace(" at line 1 column ", " at column "),
            }),
        }
    }
    if faults.is_empty() { Ok(rows) } else { Err(Error::Faults(faults)) }
}

/// Reads every row of a file.
///
/// # Errors
/// The file cannot be read, is not UTF-8 or has lines that are not a `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    Ok(read_lines(path)?.into_iter().map(|line| line.value).collect())
}

/// [`read`], with the number of each row's line.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<Line<T>>> {
    parse(path, &read_text(path, MAX_FILE_BYTES)?)
}

/// Reads a UTF-8 file of at most `max_bytes`; a byte order mark in front is left out.
///
/// # Errors
/// As stated, or the file is no regular file or cannot be read.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    mixse_files::read_text(path, max_bytes).map_err(|e| unreadable(path, e))
}

/// A line that is not UTF-8 is a fault of that line.
fn unreadable(path: &Path, error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Refused>()) {
        Some(Refused::NotUtf8 { line }) => Error::at_line(path, *line, "not UTF-8"),
        Some(refused) => Error::invalid(path, refused.to_string()),
        None => Error::io(path, error),
    }
}

/// Replaces `path` by `rows` in one step: temporary file, sync, rename.
///
/// # Errors
/// The directory cannot be written.
pub fn write_atomic<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&to_line(path, &row)?);
    }
    write_text_atomic(path, &text)
}

/// Replaces `path` by `text` in one step.
///
/// # Errors
/// The directory cannot be written.
pub fn write_text_atomic(path: &Path, text: &str) -> Result<()> {
    mixse_files::write_atomic(path, text.as_bytes()).map_err(|e| Error::io(path, e))
}

fn to_line<T: Serialize>(path: &Path, row: &T) -> Result<String> {
    let mut line = to_json(path, row)?;
    line.push('\n');
    Ok(line)
}

fn to_json<T: Serialize>(path: &Path, row: &T) -> Result<String> {
    serde_json::to_string(row).map_err(|e| Error::invalid(path, e.to_string()))
}

/// An append-only file of rows. A process that dies while writing leaves at most one torn last line, which the next one drops.
#[derive(Debug)]
pub struct Appender {
    file: mixse_files::Appender,
    path: PathBuf,
}

impl Appender {
    /// Opens or makes `path` and returns the whole rows that it holds.
    ///
    /// # Errors
    /// The file cannot be written, or a line other than a torn last one is not a `T`.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        let (file, text) =
            mixse_files::Appender::open(path, MAX_FILE_BYTES).map_err(|e| unreadable(path, e))?;
        let rows = parse(path, &text)?.into_iter().map(|line| line.value).collect();
        Ok((Self { file, path: path.into() }, rows))
    }

    /// Appends one row with a single write.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn push<T: Serialize>(&mut self, row: &T) -> Result<()> {
        self.file.push(&to_json(&self.path, row)?).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn torn_last_line_is_dropped_and_the_rest_continued() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/rows.jsonl");
        let (mut file, rows) = Appender::open::<u32>(&path).unwrap();
        assert!(rows.is_empty());
        file.push(&1).unwrap();
        file.push(&22).unwrap();
        drop(file);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut file, rows) = Appender::open::<u32>(&path).unwrap();
            file.push(&9).unwrap();
            let expected: Vec<u32> = [1].into_iter().take(usize::from(cut >= 2)).collect();
            assert_eq!(rows, expected, "cut at {cut}");
            assert_eq!(read::<u32>(&path).unwrap(), [expected, vec![9]].concat());
        }
    }

    #[test]
    fn every_bad_line_is_named() {
        let message = parse::<u32>(Path::new("x.jsonl"), "1\n\n\"a\"\n2\n{\n").unwrap_err().to_string();
        assert!(message.contains("x.jsonl:3: ") && message.contains("x.jsonl:5: "), "{message}");
        assert_eq!(message.lines().count(), 2, "{message}");
    }

    #[test]
    fn bad_utf8_is_located() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, b"ok\nbad \xff\n").unwrap();
        assert!(read_text(&path, 100).unwrap_err().to_string().contains("x:2: not UTF-8"));
        assert!(read_text(&path, 3).unwrap_err().to_string().contains("larger than 3 bytes"));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows.jsonl");
        write_atomic(&path, [1, 2]).unwrap();
        write_atomic(&path, [3]).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [3]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
