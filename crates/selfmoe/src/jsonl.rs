//! Files of one JSON object a line: strict reading, appending that survives a kill, atomic replacement.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

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
    let text = read_text(path, MAX_FILE_BYTES)?;
    Ok(parse(path, &text)?.into_iter().map(|line| line.value).collect())
}

/// Reads a UTF-8 file of at most `max_bytes`.
///
/// # Errors
/// As stated, or the file cannot be read.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let io = |e| Error::io(path, e);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(max_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::invalid(path, format!("larger than {max_bytes} bytes, the most that is read")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&b| b == b'\n').count();
        Error::at_line(path, line, "not UTF-8")
    })
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
    let io = |e| Error::io(path, e);
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(io)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

fn to_line<T: Serialize>(path: &Path, row: &T) -> Result<String> {
    let mut line = serde_json::to_string(row).map_err(|e| Error::invalid(path, e.to_string()))?;
    line.push('\n');
    Ok(line)
}

/// An append-only file. A process that dies while writing leaves at most one torn last line, which the next one drops.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: std::path::PathBuf,
}

impl Appender {
    /// Opens or makes `path` and returns the whole rows that it holds.
    ///
    /// # Errors
    /// The file cannot be written, or a line other than a torn last one is not a `T`.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        let io = |e| Error::io(path, e);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(io)?;
        }
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
        file.set_len(whole as u64).map_err(io)?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(io)?;
        let text = std::str::from_utf8(&bytes[..whole]).map_err(|_| Error::invalid(path, "not UTF-8"))?;
        let rows = parse(path, text)?.into_iter().map(|line| line.value).collect();
        Ok((Self { file, path: path.into() }, rows))
    }

    /// Appends one row with a single write.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub fn push<T: Serialize>(&mut self, row: &T) -> Result<()> {
        let line = to_line(&self.path, row)?;
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
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
