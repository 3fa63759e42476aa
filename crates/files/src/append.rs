//! Files that grow line by line.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use crate::{
    read::{Refused, open},
    tree::{create_directory, parent},
};

/// An append-only file of lines. A process that dies while writing leaves at most one torn last line, which the next one drops.
#[derive(Debug)]
pub struct Appender {
    file: File,
}

impl Appender {
    /// Opens or makes `path` (and its directory), cuts off a torn last line, and returns the whole lines that are there.
    ///
    /// # Errors
    /// The file is no regular one, is larger than `limit` bytes, is not UTF-8, or cannot be read or written.
    pub fn open(path: &Path, limit: u64) -> io::Result<(Self, String)> {
        create_directory(parent(path))?;
        let mut bytes = Vec::new();
        match open(path) {
            Ok(file) => {
                file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        if bytes.len() as u64 > limit {
            return Err(Refused::TooLarge { limit }.into());
        }
        // Appending, not writing at a place: two processes with one file lose no line of each other.
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
            bytes.truncate(whole);
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
            Refused::NotUtf8 { line: 1 + good.iter().filter(|&&byte| byte == b'\n').count() }
        })?;
        Ok((Self { file }, text))
    }

    /// Appends one line, without its line break, by a single write. If only a part of it can be written (the disk is full), that
    /// part is taken back.
    ///
    /// # Errors
    /// The line holds a line break, or cannot be written.
    pub fn push(&mut self, line: &str) -> io::Result<()> {
        if line.contains('\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a line with a line break inside"));
        }
        let before = self.file.metadata()?.len();
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).inspect_err(|_| {
            // A torn line would be dropped anyway, unless another one came after it.
            let _ = self.file.set_len(before);
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_torn_line_is_dropped_wherever_it_was_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/rows");
        let (mut file, text) = Appender::open(&path, 100).unwrap();
        assert_eq!(text, "");
        file.push("first").unwrap();
        file.push("zweite ä").unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut file, text) = Appender::open(&path, 100).unwrap();
            let expected = match cut {
                0..6 => "",
                _ if cut < whole.len() => "first\n",
                _ => "first\nzweite ä\n",
            };
            assert_eq!(text, expected, "cut at {cut}");
            file.push("next").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{expected}next\n"));
        }
    }

    #[test]
    fn two_appenders_lose_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows");
        let (mut one, mut other) =
            (Appender::open(&path, 100).unwrap().0, Appender::open(&path, 100).unwrap().0);
        for (file, line) in [(&mut one, "a"), (&mut other, "b")] {
            file.push(line).unwrap();
        }
        one.push("c").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\nc\n");
        assert!(one.push("d\ne").is_err());
    }

    #[test]
    fn what_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows");
        let check = |path: &Path, limit, expected: &str| {
            let message = Appender::open(path, limit).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        fs::write(&path, "abc\nd\n").unwrap();
        check(&path, 5, "larger than 5 bytes");
        fs::write(&path, b"a\n\xff\n").unwrap();
        check(&path, 50, "line 2 is not UTF-8");
        check(Path::new("/dev/null"), 50, "a device");
        check(directory.path(), 50, "is a directory");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn half_a_line_on_a_full_disk_is_taken_back() {
        // /dev/full fails every write; there is nothing to take back, and no panic.
        let mut file = Appender { file: OpenOptions::new().append(true).open("/dev/full").unwrap() };
        assert!(file.push("x").is_err());
    }
}
