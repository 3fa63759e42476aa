//! Opening what a user, a configuration or a request names.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    path::Path,
};

use serde::de::DeserializeOwned;

/// The byte order mark that some editors put in front of UTF-8.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Why a path was not read although it is there; inside of an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A directory where a file is wanted.
    #[error("is a directory, a file is wanted")]
    Directory,
    /// A device, pipe or socket.
    #[error("is {0}, not a regular file: such a thing may never end; copy its content into a file first")]
    Special(&'static str),
    /// The file is larger than such a file can be.
    #[error("is larger than {limit} bytes, the most that is read of such a file")]
    TooLarge {
        /// The most bytes.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("line {line} is not UTF-8")]
    NotUtf8 {
        /// The first line with a wrong byte, from 1.
        line: usize,
    },
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        Self::new(io::ErrorKind::InvalidData, refused)
    }
}

/// Opens a regular file for reading; a symbolic link is followed.
///
/// # Errors
/// [`Refused`] for anything else than a regular file; or it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a device can do something, opening a pipe waits for its other end.
    regular(&std::fs::metadata(path)?)?;
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        // Should a pipe have come in between, opening it does not wait. Regular files do not know the flag.
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// Whether something has this name, for files that need not be there. A link that leads nowhere, or a directory that may not be
/// looked into, is something: reading it is the error that says so, and not a file that was left out.
pub fn is_there(path: &Path) -> bool {
    !matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == io::ErrorKind::NotFound)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; it is larger, or cannot be read.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length > limit {
        return Err(Refused::TooLarge { limit }.into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // Files that are made as they are read (as in /proc) tell no length, and others may grow.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(Refused::TooLarge { limit }.into()) } else { Ok(bytes) }
}

/// Reads at most the first `length` bytes of a regular file.
///
/// # Errors
/// As [`open`], or it cannot be read.
pub fn read_prefix(path: &Path, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a regular UTF-8 file of at most `limit` bytes; a byte order mark in front is left out.
///
/// # Errors
/// As [`read`], or it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let mut bytes = read(path, limit)?;
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        Refused::NotUtf8 { line: 1 + good.iter().filter(|&&byte| byte == b'\n').count() }.into()
    })
}

/// Reads a JSON file of at most `limit` bytes; a fault names line and column.
///
/// # Errors
/// As [`read_text`], or it is not a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> io::Result<T> {
    serde_json::from_str(&read_text(path, limit)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

fn regular(about: &Metadata) -> Result<(), Refused> {
    if about.is_file() {
        return Ok(());
    }
    if about.is_dir() {
        return Err(Refused::Directory);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = about.file_type();
        for (is, what) in [
            (kind.is_fifo(), "a pipe"),
            (kind.is_socket(), "a socket"),
            (kind.is_char_device() || kind.is_block_device(), "a device"),
        ] {
            if is {
                return Err(Refused::Special(what));
            }
        }
    }
    Err(Refused::Special("something else"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn check<T: std::fmt::Debug>(result: io::Result<T>, expected: &str) {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{expected:?} is not in {message:?}");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abc").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"abc");
        assert_eq!(read_prefix(&path, 2).unwrap(), b"ab");
        check(read(directory.path(), 9), "is a directory");
        check(read(&directory.path().join("none"), 9), "No such file");
        #[cfg(unix)]
        {
            for device in ["/dev/zero", "/dev/null", "/dev/tty"] {
                if Path::new(device).exists() {
                    check(read(Path::new(device), 9), "a device, not a regular file");
                }
            }
            let pipe = directory.path().join("pipe");
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &pipe,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                0,
            )
            .unwrap();
            check(open(&pipe), "a pipe");
            let link = directory.path().join("link");
            std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
            check(open(&link), "a device");
            let socket = directory.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            check(open(&socket), "a socket");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("gone", at("broken")).unwrap();
        std::os::unix::fs::symlink("file", at("whole")).unwrap();
        for (name, expected) in [("file", true), ("whole", true), ("broken", true), ("gone", false)] {
            assert_eq!(is_there(&at(name)), expected, "{name}");
        }
        assert!(is_there(directory.path()));
        check(read(&at("broken"), 9), "No such file");
    }

    #[test]
    fn a_bound_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abcd").unwrap();
        check(read(&path, 3), "larger than 3 bytes");
        // A sparse file that would fill the memory is refused by its length.
        fs::File::create(&path).unwrap().set_len(1 << 36).unwrap();
        check(read(&path, 1 << 20), "larger than 1048576 bytes");
        // One that tells no length is cut off as it is read.
        if Path::new("/proc/self/status").exists() {
            check(read(Path::new("/proc/self/status"), 10), "larger than 10 bytes");
        }
    }

    #[test]
    fn texts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_text(&path, 100)
        };
        assert_eq!(read(b"\xEF\xBB\xBF{}\n").unwrap(), "{}\n");
        assert_eq!(read(b"\xEF\xBB").unwrap_err().to_string(), "line 1 is not UTF-8");
        assert_eq!(read("ä\u{feff}".as_bytes()).unwrap(), "ä\u{feff}");
        check(read(b"ok\nbad \xff\n"), "line 2 is not UTF-8");
        fs::write(&path, "{\"a\": }").unwrap();
        check(read_json::<serde_json::Value>(&path, 100), "line 1 column 7");
    }
}
