//! Whole directories: hashing, copying, syncing, swapping.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{atomic::is_temporary, read::open, temporary_directory};

/// Makes a directory and its parents; those that are new survive a crash of the machine.
///
/// # Errors
/// It cannot be made.
pub fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let missing: Vec<&Path> =
        path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    fs::create_dir_all(path)?;
    missing.iter().rev().try_for_each(|made| sync_directory(parent(made)))
}

/// SHA-256 (lower-case hex) of a file's content; of a directory: over the relative paths and contents of all files in it, in
/// the order of their paths.
///
/// # Errors
/// Something cannot be read, or is no regular file.
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
    hash_reader(open(path)?)
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
    let (mut files, _) = walk(directory)?;
    files.sort();
    Ok(files)
}

/// Relative paths of all files and of all directories below one, in no order.
fn walk(directory: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        for entry in fs::read_dir(directory.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            if is_temporary(&entry.file_name()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                open.push(path.clone());
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    Ok((files, directories))
}

/// Makes `to` the same file or directory tree as `from`: by hard links where the file system has them (files of a plan are
/// replaced, never written into), else by copies. `to` must not exist; its parent is made.
///
/// # Errors
/// Something cannot be read or written.
pub fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    create_directory(parent(to))?;
    if !from.is_dir() {
        return fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop));
    }
    create_directory(to)?;
    files_below(from)?.iter().try_for_each(|file| link_tree(&from.join(file), &to.join(file)))
}

/// Makes a file, or a directory with all that is in it, survive a crash of the machine.
///
/// # Errors
/// Something cannot be synced.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return File::open(path)?.sync_all();
    }
    let (files, directories) = walk(path)?;
    for file in files {
        File::open(path.join(file))?.sync_all()?;
    }
    for directory in directories {
        sync_directory(&path.join(directory))?;
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

/// Gives `made`, a synced directory on the same file system, the name `target`, in the place of a directory that may stand there and
/// is removed. At no time is there half of either under the name; where the system can exchange two names at once, one of the
/// two is always there.
///
/// # Errors
/// The rename fails; the old directory is still there then.
pub fn replace_directory(made: &Path, target: &Path) -> io::Result<()> {
    let directory = parent(target);
    if !target.is_dir() || is_empty(target)? {
        // Renaming onto an empty directory replaces it.
        fs::rename(made, target)?;
        return sync_directory(directory);
    }
    if exchange(made, target).is_ok() {
        sync_directory(directory)?;
        // The old content is at `made` now. What cannot be removed of it is in nobody's way there.
        let _ = fs::remove_dir_all(made);
        return Ok(());
    }
    let aside = temporary_directory(directory)?;
    let old = aside.path().join("old");
    fs::rename(target, &old)?;
    if let Err(e) = fs::rename(made, target) {
        fs::rename(&old, target)?;
        return Err(e);
    }
    sync_directory(directory)
}

/// Swaps two names in one step, where the system and the file system can.
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = (one, other);
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(crate) fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.next().is_none())
}

/// SHA-256 (lower-case hex) of `bytes`.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory that holds `path`; the current one for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_hash_sees_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let hash = |files: &[(&str, &str)]| {
            let root = dir.path().join("d");
            let _ = fs::remove_dir_all(&root);
            for (name, content) in files {
                let path = root.join(name);
                create_directory(parent(&path)).unwrap();
                fs::write(path, content).unwrap();
            }
            hash_path(&root).unwrap()
        };
        let one = hash(&[("a", "1"), ("b/c", "2")]);
        assert_eq!(hash(&[("b/c", "2"), ("a", "1"), (".mixse-tmp-x", "3")]), one);
        assert_ne!(hash(&[("a", "1"), ("b/d", "2")]), one);
        assert_ne!(hash(&[("a", "1"), ("b/c", "3")]), one);
    }

    #[test]
    fn a_directory_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (made, target) = (dir.path().join("made"), dir.path().join("target"));
        let make = |content: &str| {
            fs::create_dir(&made).unwrap();
            fs::write(made.join("f"), content).unwrap();
        };
        for content in ["one", "two"] {
            make(content);
            replace_directory(&made, &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("f")).unwrap(), content);
            assert!(!made.exists());
        }
        fs::remove_dir_all(&target).unwrap();
        fs::create_dir(&target).unwrap();
        make("three");
        replace_directory(&made, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "three");
        assert!(replace_directory(&made, &target).is_err());
        assert_eq!(fs::read_to_string(target.join("f")).unwrap(), "three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
