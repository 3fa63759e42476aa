//! Files that are whole or not there: written to a temporary name in the same directory, synced, renamed.

use std::{
    fs, io,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use sha2::{Digest, Sha256};
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::tree::{create_directory, hex, parent, sync_directory};

/// Temporary names start with this, so that what a killed process left behind can be told from results.
pub const TEMPORARY_PREFIX: &str = ".mixse-tmp-";

/// Letters of a machine's name that go into temporary names.
const HOST_LETTERS: usize = 32;

/// Whether a name is that of a file or directory which is just being written, or was when its process died.
pub fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(TEMPORARY_PREFIX)
}

/// `.mixse-tmp-HOST-PROCESS-`: with the random letters that follow, no two processes of machines that share a directory have
/// a name in common; who left a file behind can be told from it. A file is made only if its name is free in any case.
fn prefix() -> String {
    static HOST: OnceLock<String> = OnceLock::new();
    let host = HOST.get_or_init(|| {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(HOST_LETTERS).collect()
    });
    format!("{TEMPORARY_PREFIX}{host}-{}-", std::process::id())
}

/// Calls `make` with a builder of temporary names whose files have the mode that any other file or directory would have: the
/// default of temporary ones is owner-only.
fn build<T>(mode: u32, make: impl FnOnce(&mut Builder<'_, '_>) -> io::Result<T>) -> io::Result<T> {
    let prefix = prefix();
    let mut builder = Builder::new();
    builder.prefix(&prefix).rand_bytes(8);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    make(&mut builder)
}

/// A temporary file in `directory`, removed when it is dropped.
///
/// # Errors
/// It cannot be made.
pub fn temporary_file(directory: &Path) -> io::Result<NamedTempFile> {
    build(0o666, |builder| builder.tempfile_in(directory))
}

/// A temporary directory in `directory`, removed with its content when it is dropped.
///
/// # Errors
/// It cannot be made.
pub fn temporary_directory(directory: &Path) -> io::Result<TempDir> {
    build(0o777, |builder| builder.tempdir_in(directory))
}

/// A file that appears under its name, complete, when [`AtomicFile::commit`] succeeds, and never otherwise. Its SHA-256 is
/// computed as it is written.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    writer: BufWriter<NamedTempFile>,
    hash: Sha256,
}

impl AtomicFile {
    /// Starts the file; its directory is made if needed. A symbolic link is followed: the file that it names is replaced.
    ///
    /// # Errors
    /// The directory or the temporary file cannot be made, or something that is no regular file has the name.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = match fs::metadata(target) {
            Ok(about) if !about.is_file() => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "is no regular file and is not replaced by one",
                ));
            }
            Ok(_) if target.is_symlink() => fs::canonicalize(target)?,
            _ => target.to_owned(),
        };
        let directory = parent(&target);
        create_directory(directory)?;
        let file = temporary_file(directory)?;
        Ok(Self { writer: BufWriter::new(file), hash: Sha256::new(), target })
    }

    /// SHA-256 (lower-case hex) of what was written so far.
    pub fn hash(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Syncs the content and gives the file its name, replacing what stood there.
    ///
    /// # Errors
    /// The content cannot be flushed or synced, or the rename fails; nothing is left behind then.
    pub fn commit(self) -> io::Result<()> {
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.target).map_err(|e| e.error)?;
        sync_directory(parent(&self.target))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes a whole file at once, atomically.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(content)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{hash_bytes, hash_path};

    #[test]
    fn a_file_appears_only_when_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"abc").unwrap();
        assert!(!path.exists());
        assert_eq!(file.hash(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(hash_path(&path).unwrap(), hash_bytes(b"abc"));
        // A name as long as the file system takes leaves room for the temporary one.
        write_atomic(&dir.path().join("x".repeat(255)), b"abc").unwrap();
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        AtomicFile::create(&dir.path().join("x")).unwrap().write_all(b"abc").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn temporary_names_tell_their_process_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..100).map(|_| temporary_file(dir.path()).unwrap()).collect();
        let names: HashSet<_> =
            files.iter().map(|f| f.path().file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names.len(), 100);
        let host: String = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(HOST_LETTERS)
            .collect();
        let start = format!(".mixse-tmp-{host}-{}-", std::process::id());
        assert!(names.iter().all(|name| name.starts_with(&start)), "{names:?}");
    }

    #[cfg(unix)]
    #[test]
    fn modes_are_those_of_other_files() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(dir.path().join("plain"), "").unwrap();
        write_atomic(&dir.path().join("atomic"), b"").unwrap();
        assert_eq!(mode(&dir.path().join("atomic")), mode(&dir.path().join("plain")));
        fs::create_dir(dir.path().join("folder")).unwrap();
        let made = temporary_directory(dir.path()).unwrap();
        assert_eq!(mode(made.path()), mode(&dir.path().join("folder")));
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_other_things_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("far")).unwrap();
        fs::write(at("far/real"), "old").unwrap();
        std::os::unix::fs::symlink("far/real", at("link")).unwrap();
        write_atomic(&at("link"), b"new").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(fs::read(at("far/real")).unwrap(), b"new");
        assert!(write_atomic(&at("far"), b"x").unwrap_err().to_string().contains("no regular file"));
        assert!(
            write_atomic(Path::new("/dev/null"), b"x").unwrap_err().to_string().contains("no regular file")
        );
    }
}
