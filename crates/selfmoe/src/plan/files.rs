//! Files that are whole or not there: written to a temporary name in the same directory, synced, renamed.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// Temporary names start with this, so that what a killed process left behind can be told from results.
pub const TEMPORARY_PREFIX: &str = ".mixse-tmp-";

/// A file that appears under its name, complete, when [`AtomicFile::commit`] succeeds, and never otherwise. Its SHA-256 is
/// computed as it is written.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    writer: BufWriter<NamedTempFile>,
    hash: Sha256,
}

impl AtomicFile {
    /// Starts the file; its directory is made if needed.
    ///
    /// # Errors
    /// The directory or the temporary file cannot be made.
    pub fn create(target: &Path) -> io::Result<Self> {
        let directory = parent(target);
        fs::create_dir_all(directory)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        // Results are meant to be shared as any other file is; the default of temporary files is owner-only.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(directory)?;
        Ok(Self { target: target.to_owned(), writer: BufWriter::new(file), hash: Sha256::new() })
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

/// SHA-256 (lower-case hex) of a file's content; of a directory: over the relative paths and contents of all files in it, in
/// the order of their paths.
///
/// # Errors
/// Something cannot be read.
pub fn hash_path(path: &Path) -> io::Result<String> {
    if !path.is_dir() {
        return hash_file(path);
    }
    let mut hash = Sha256::new();
    for file in files_below(path)? {
        hash.update(format!("{}\0{}\n", file.display(), hash_file(&path.join(&file))?));
    }
    Ok(hex(&hash.finalize()))
}

fn hash_file(path: &Path) -> io::Result<String> {
    hash_reader(File::open(path)?)
}

/// SHA-256 (lower-case hex) of what is left to read.
///
/// # Errors
/// Reading fails.
pub fn hash_reader(mut from: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Relative paths of all files in a directory and below, sorted, temporary ones left out.
///
/// # Errors
/// A directory cannot be read.
pub fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        for entry in fs::read_dir(directory.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Makes `to` the same file or directory tree as `from`: by hard links where the file system has them (files of a plan are
/// replaced, never written into), else by copies. `to` must not exist; its parent is made.
///
/// # Errors
/// Something cannot be read or written.
pub fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if !from.is_dir() {
        return fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop));
    }
    fs::create_dir_all(to)?;
    files_below(from)?.iter().try_for_each(|file| link_tree(&from.join(file), &to.join(file)))
}

/// SHA-256 (lower-case hex) of `bytes`.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory that holds `path`; the current one for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a file, or a directory with all that is in it, survive a crash of the machine.
///
/// # Errors
/// Something cannot be opened or synced.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return File::open(path)?.sync_all();
    }
    for file in files_below(path)? {
        File::open(path.join(file))?.sync_all()?;
    }
    sync_directory(path)
}

/// Makes renames in a directory survive a crash of the machine. Some file systems cannot sync a directory; there the
/// rename is as durable as they make it.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory).and_then(|d| d.sync_all()) {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        AtomicFile::create(&dir.path().join("x")).unwrap().write_all(b"abc").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_hash_sees_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let hash = |files: &[(&str, &str)]| {
            let root = dir.path().join("d");
            let _ = fs::remove_dir_all(&root);
            for (name, content) in files {
                write_atomic(&root.join(name), content.as_bytes()).unwrap();
            }
            hash_path(&root).unwrap()
        };
        let first = hash(&[("a", "1"), ("b/c", "2")]);
        assert_eq!(first, hash(&[("b/c", "2"), ("a", "1")]));
        assert_ne!(first, hash(&[("a", "1"), ("b/d", "2")]));
        assert_ne!(first, hash(&[("a", "1"), ("b/c", "3")]));
    }
}
