//! A directory that a command writes: whole or not there, and never in the place of something else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    atomic::temporary_directory,
    tree::{create_directory, files_below, is_empty, parent, replace_directory, sync_tree},
};

/// What becomes of a directory that holds something already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    /// It is refused.
    Refuse,
    /// It is replaced, if every file in it has one of these names and lies in it or in a directory that goes with it: a directory
    /// that holds anything else was not made by such a command, and what is in it would be lost.
    Replace(&'static [&'static str], Below),
}

/// Which directories below one are replaced with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// Those of these names; often none.
    Named(Vec<String>),
    /// Any: it is not known yet which will be written.
    Any,
}

impl Existing {
    /// The first file in a directory that may not be replaced.
    fn first_foreign(&self, directory: &Path) -> io::Result<Option<PathBuf>> {
        let Self::Replace(names, below) = self else { return Ok(files_below(directory)?.into_iter().next()) };
        let goes_with = |file: &Path| match (file.parent(), below) {
            (None, _) | (_, Below::Any) => true,
            (Some(parent), _) if parent.as_os_str().is_empty() => true,
            (Some(parent), Below::Named(named)) => named.iter().any(|name| parent == Path::new(name)),
        };
        let known = |file: &PathBuf| {
            goes_with(file) && file.file_name().is_some_and(|name| names.iter().any(|known| name == *known))
        };
        Ok(files_below(directory)?.into_iter().find(|file| !known(file)))
    }
}

/// Why a directory cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A file has the name.
    #[error("{0} is a file: choose another --out")]
    File(PathBuf),
    /// It holds something.
    #[error("{0} is not empty: choose another --out, or replace what is there with --force")]
    NotEmpty(PathBuf),
    /// A link that leads nowhere has the name.
    #[error("{0} is a link that leads nowhere: choose another --out, or make the directory that it names")]
    Broken(PathBuf),
    /// It holds something that such a command does not write.
    #[error(
        "{directory} holds {file}, which this command would not have written: nothing is replaced; choose another --out"
    )]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// The file in it.
        file: PathBuf,
    },
    /// It is one of the inputs.
    #[error("{0} is what this command reads: it is not replaced by its own result; choose another --out")]
    Input(PathBuf),
    /// An input lies in it.
    #[error("{directory} contains {input}, which this command reads: choose another --out")]
    ContainsInput {
        /// The directory.
        directory: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// Something came to be there meanwhile.
    #[error("{directory} came to hold something while this command ran: the result was kept in {kept}")]
    Taken {
        /// The directory.
        directory: PathBuf,
        /// Where the result is.
        kept: PathBuf,
    },
    /// The directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A directory that appears under its name, complete and synced, when [`OutputDirectory::commit`] succeeds, and never otherwise. It is
/// built beside its place, so an old directory there stays as it is until then, on a full disk too.
#[derive(Debug)]
pub struct OutputDirectory {
    target: PathBuf,
    existing: Existing,
    made: TempDir,
}

impl OutputDirectory {
    /// Checks that `target` may be written, without writing anything: to be called before any work is done.
    ///
    /// # Errors
    /// It is one of the `inputs` or contains one, is a file, or holds what `existing` does not let go.
    pub fn check(target: &Path, inputs: &[&Path], existing: &Existing) -> Result<(), OutputError> {
        let io = |source| OutputError::Io { path: target.to_owned(), source };
        let there = match fs::metadata(target) {
            Ok(there) => there,
            Err(e) if e.kind() == io::ErrorKind::NotFound && target.is_symlink() => {
                return Err(OutputError::Broken(target.to_owned()));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io(e)),
        };
        for input in inputs {
            // A path that is not there yet, or not a path at all (a model's name), is in no directory.
            let Ok(place) = fs::canonicalize(input) else { continue };
            for ancestor in place.ancestors() {
                if fs::metadata(ancestor).is_ok_and(|about| same(&about, &there, ancestor, target)) {
                    let (directory, input) = (target.to_owned(), (*input).to_owned());
                    return Err(if ancestor == place {
                        OutputError::Input(directory)
                    } else {
                        OutputError::ContainsInput { directory, input }
                    });
                }
            }
        }
        if !there.is_dir() {
            return Err(OutputError::File(target.to_owned()));
        }
        if is_empty(target).map_err(io)? {
            return Ok(());
        }
        if *existing == Existing::Refuse {
            return Err(OutputError::NotEmpty(target.to_owned()));
        }
        match existing.first_foreign(target).map_err(io)? {
            Some(file) => Err(OutputError::Foreign { directory: target.to_owned(), file }),
            None => Ok(()),
        }
    }

    /// Starts the directory.
    ///
    /// # Errors
    /// As [`OutputDirectory::check`], or the directory around it cannot be written.
    pub fn create(target: &Path, inputs: &[&Path], existing: Existing) -> Result<Self, OutputError> {
        Self::check(target, inputs, &existing)?;
        let io = |source| OutputError::Io { path: target.to_owned(), source };
        // What a symbolic link names is written, not the link.
        let place = if target.exists() { fs::canonicalize(target).map_err(io)? } else { plain(target) };
        create_directory(parent(&place)).map_err(io)?;
        let made = temporary_directory(parent(&place)).map_err(io)?;
        Ok(Self { target: place, existing, made })
    }

    /// Where the files are to be written.
    pub fn path(&self) -> &Path {
        self.made.path()
    }

    /// Where they will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Syncs what was written and gives the directory its name.
    ///
    /// # Errors
    /// Something cannot be synced or renamed, or another process has written there meanwhile; what is there stays as it is.
    pub fn commit(self) -> Result<(), OutputError> {
        let Self { target, existing, made } = self;
        let io = |source| OutputError::Io { path: target.clone(), source };
        sync_tree(made.path()).map_err(io)?;
        let free = match target.is_dir() && !is_empty(&target).map_err(io)? {
            // Hours may have passed since it was looked at.
            true => existing != Existing::Refuse && existing.first_foreign(&target).map_err(io)?.is_none(),
            false => target.is_dir() || !target.exists(),
        };
        if !free {
            return Err(OutputError::Taken { directory: target, kept: made.keep() });
        }
        replace_directory(made.path(), &target).map_err(io)
    }
}

/// The path without a slash at its end, under which nothing can be made that is not there.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(unix)]
fn same(one: &fs::Metadata, other: &fs::Metadata, _: &Path, _: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
fn same(_: &fs::Metadata, _: &fs::Metadata, one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).ok() == fs::canonicalize(other).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::is_temporary;

    const NAMES: &[&str] = &["a.json", "b.bin"];

    fn replace(below: &[&str]) -> Existing {
        Existing::Replace(NAMES, Below::Named(below.iter().map(|name| (*name).to_owned()).collect()))
    }

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        /// `old/a.json`, `old/deep/b.bin`, `foreign/letter.txt`, `empty/`, `file`.
        fn new() -> Self {
            let f = Self(tempfile::tempdir().unwrap());
            for (name, text) in [("old/a.json", "1"), ("old/deep/b.bin", "2"), ("foreign/letter.txt", "Dear")]
            {
                create_directory(parent(&f.at(name))).unwrap();
                fs::write(f.at(name), text).unwrap();
            }
            fs::create_dir(f.at("empty")).unwrap();
            fs::write(f.at("file"), "x").unwrap();
            f
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, existing: &Existing) -> Result<(), OutputError> {
            let output = OutputDirectory::create(&self.at(name), &[], existing.clone())?;
            fs::write(output.path().join("a.json"), "new").unwrap();
            output.commit()
        }
    }

    #[test]
    fn what_is_written_and_what_is_refused() {
        let check = |name: &str, existing, expected: Result<(), &str>| {
            let f = Fixture::new();
            let result = f.write(name, &existing).map_err(|e| e.to_string());
            match expected {
                Ok(()) => {
                    result.unwrap();
                    assert_eq!(files_below(&f.at(name)).unwrap(), [Path::new("a.json")], "{name}");
                    assert_eq!(fs::read_to_string(f.at(name).join("a.json")).unwrap(), "new");
                }
                Err(part) => {
                    let message = result.unwrap_err();
                    assert!(message.contains(part) && message.contains("--out"), "{name}: {message}");
                    assert_eq!(fs::read_to_string(f.at("old/deep/b.bin")).unwrap(), "2");
                    assert_eq!(fs::read_to_string(f.at("foreign/letter.txt")).unwrap(), "Dear");
                }
            }
            let left = fs::read_dir(f.0.path()).unwrap();
            assert!(left.flatten().all(|entry| !is_temporary(&entry.file_name())), "{name}");
        };
        for existing in [Existing::Refuse, replace(&["deep"])] {
            check("new", existing.clone(), Ok(()));
            check("new/", existing.clone(), Ok(()));
            check("new/deeper", existing.clone(), Ok(()));
            check("empty", existing.clone(), Ok(()));
            check("file", existing, Err("is a file"));
        }
        check("old", Existing::Refuse, Err("--force"));
        check("old", replace(&["deep"]), Ok(()));
        check("old", Existing::Replace(NAMES, Below::Any), Ok(()));
        // What another call has written into a directory below is not this one's to replace.
        check("old", replace(&[]), Err("deep/b.bin"));
        check("old", replace(&["dee", "deep/er"]), Err("deep/b.bin"));
        check("foreign", Existing::Refuse, Err("not empty"));
        check("foreign", replace(&["deep"]), Err("letter.txt"));
    }

    #[test]
    fn inputs_are_kept() {
        let f = Fixture::new();
        let check = |target: &str, input: &str, expected: Option<&str>| {
            let result = OutputDirectory::check(&f.at(target), &[&f.at(input)], &replace(&["deep"]))
                .map_err(|e| e.to_string());
            match expected {
                None => result.unwrap(),
                Some(part) => {
                    assert!(result.clone().unwrap_err().contains(part), "{target} {input}: {result:?}")
                }
            }
        };
        check("old", "old", Some("is what this command reads"));
        check("old/.", "foreign/../old", Some("is what this command reads"));
        check("old", "old/deep", Some("contains"));
        check("old", "old/deep/b.bin", Some("contains"));
        check("old", "foreign", None);
        check("new", "old", None);
        check("old/new", "old", None);
        check("old", "nowhere", None);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("old", f.at("link")).unwrap();
            check("link", "old", Some("is what this command reads"));
            check("old", "link/deep", Some("contains"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_refused_before_any_work() {
        let f = Fixture::new();
        std::os::unix::fs::symlink("gone", f.at("broken")).unwrap();
        let result = OutputDirectory::check(&f.at("broken"), &[], &replace(&[]));
        assert!(result.unwrap_err().to_string().contains("leads nowhere"));
    }

    #[test]
    fn what_came_meanwhile_is_not_replaced() {
        let f = Fixture::new();
        for (came, existing) in
            [("old/letter.txt", replace(&["deep"])), ("old/new/a.json", replace(&["deep"]))]
        {
            let output = OutputDirectory::create(&f.at("old"), &[], existing).unwrap();
            fs::write(output.path().join("a.json"), "mine").unwrap();
            create_directory(parent(&f.at(came))).unwrap();
            fs::write(f.at(came), "theirs").unwrap();
            let OutputError::Taken { kept, .. } = output.commit().unwrap_err() else { panic!() };
            assert_eq!(fs::read_to_string(f.at(came)).unwrap(), "theirs");
            assert_eq!(fs::read_to_string(kept.join("a.json")).unwrap(), "mine");
            fs::remove_file(f.at(came)).unwrap();
        }
    }

    #[test]
    fn an_abandoned_directory_leaves_the_old_one() {
        let f = Fixture::new();
        let output = OutputDirectory::create(&f.at("old"), &[], replace(&["deep"])).unwrap();
        fs::write(output.path().join("a.json"), "half").unwrap();
        drop(output);
        assert_eq!(fs::read_to_string(f.at("old/a.json")).unwrap(), "1");
        assert_eq!(fs::read_to_string(f.at("old/deep/b.bin")).unwrap(), "2");
    }

    #[test]
    fn a_place_that_was_taken_meanwhile_is_not_replaced() {
        let f = Fixture::new();
        let output = OutputDirectory::create(&f.at("new"), &[], Existing::Refuse).unwrap();
        fs::write(output.path().join("a.json"), "mine").unwrap();
        create_directory(&f.at("new")).unwrap();
        fs::write(f.at("new/a.json"), "theirs").unwrap();
        let OutputError::Taken { kept, .. } = output.commit().unwrap_err() else { panic!() };
        assert_eq!(fs::read_to_string(f.at("new/a.json")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(kept.join("a.json")).unwrap(), "mine");
    }
}
