//! Any model of the Hugging Face hub, `OWNER/NAME`, or one GGUF file of it, `OWNER/NAME/FILE.gguf`; `@REVISION` after the name
//! chooses a branch, tag or commit.
//!
//! The hub's own client downloads (it knows mirrors, proxies, tokens for models behind an agreement, and how to go on with half a
//! file). It does so into `.partial/`; what has the lengths and checksums that the hub lists, and is a model that can be read,
//! gets its name: `CACHE/hub/OWNER/NAME[@REVISION]/model/` or `…/FILE.gguf`, with a `.json` beside it that keeps the checksums.

use std::{
    fmt, fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, bail};
use mixse_files::{hash_path, sync_directory, sync_tree, write_atomic};
use mixse_model::{config::ModelConfig, weights::Checkpoint};
use serde::{Deserialize, Serialize};

use super::{
    Cache, MEGABYTE, check_space,
    clients::{self, ListedFile, Listing},
    lock,
};
use crate::{
    output::{bytes, note},
    progress::{Progress, Spinner},
};

/// The branch that is taken when none is named.
pub(super) const MAIN: &str = "main";

/// Of a directory: its name in the cache.
const DIRECTORY: &str = "model";
/// Where files are until all of them are there.
const PARTIAL: &str = ".partial";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubModel {
    owner: String,
    name: String,
    /// Branch, tag or commit.
    revision: Option<String>,
    /// Path of a GGUF file in the repository; without it, the model in safetensors.
    file: Option<String>,
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// What was pulled, as it stands beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pulled {
    pub(crate) repository: String,
    /// The commit.
    pub(crate) revision: String,
    pub(crate) licence: Option<String>,
    files: Vec<PulledFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PulledFile {
    name: String,
    bytes: u64,
    /// Lower-case hex.
    sha256: String,
}

impl Pulled {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl HubModel {
    /// `None`: not a name that the hub could know.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split('/');
        let (owner, name) = (words.next()?, words.next()?);
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (name, None),
        };
        let rest: Vec<&str> = words.collect();
        let mut all = [owner, name].into_iter().chain(revision).chain(rest.iter().copied());
        let is_model = all.all(is_word) && (rest.is_empty() || is_gguf(rest[rest.len() - 1]));
        is_model.then(|| Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.map(str::to_owned),
            file: (!rest.is_empty()).then(|| rest.join("/")),
        })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Where everything of the repository at that revision is.
    fn home(&self, cache: &Cache) -> PathBuf {
        let name = match &self.revision {
            Some(revision) => format!("{}@{revision}", self.name),
            None => self.name.clone(),
        };
        cache.directory().join("hub").join(&self.owner).join(name)
    }

    fn path(&self, cache: &Cache) -> PathBuf {
        self.home(cache).join(self.file.as_deref().unwrap_or(DIRECTORY))
    }

    /// The model's file or directory if it has been pulled.
    pub(crate) fn find(&self, cache: &Cache) -> Option<PathBuf> {
        let path = self.path(cache);
        path.exists().then_some(path)
    }

    /// The model in the cache: checked if it is there, else downloaded.
    pub(crate) fn pull(&self, cache: &Cache) -> anyhow::Result<(PathBuf, Pulled)> {
        let path = self.path(cache);
        let pulled = self
            .pull_to(&self.home(cache), &path)
            .with_context(|| format!("cannot pull {self} into {}", path.display()))?;
        Ok((path, pulled))
    }

    fn pull_to(&self, home: &Path, path: &Path) -> anyhow::Result<Pulled> {
        fs::create_dir_all(home)?;
        let _lock = lock(home)?;
        let record = record_of(path);
        if path.exists() {
            if let Some(pulled) = read_record(&record).filter(|pulled| self.is_whole(pulled, path)) {
                return Ok(pulled);
            }
            note(format_args!("{} is damaged; pulling it again", path.display()));
        }
        let spinner = Spinner::new(format!("asking the Hugging Face hub for {self}"));
        let listing = clients::list_hub(&self.repository(), self.revision.as_deref().unwrap_or(MAIN));
        spinner.finish();
        let listing = listing
            .context(
                "the Hugging Face hub's client for Python was not found; install it with `python3 -m pip install huggingface_hub`",
            )?
            .with_context(|| format!("the Hugging Face hub did not list {self}; is it reachable, and is the name right?"))?;
        let partial = home.join(PARTIAL);
        let pulled = self.download(&listing, &self.wanted(&listing)?, &partial)?;
        let source = partial.join(self.file.as_deref().unwrap_or_default());
        // A tensor that is missing, a tokenizer that is not one: said now.
        if let Err(e) = Checkpoint::open(&source) {
            remove(&partial)?;
            return Err(e).context("it was downloaded, but cannot be used; nothing was kept");
        }
        sync_tree(&source)?;
        remove(path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_atomic(&record, serde_json::to_string_pretty(&pulled)?.as_bytes())?;
        fs::rename(&source, path)?;
        remove(&partial)?;
        sync_directory(home)?;
        note(format_args!(
            "{self}: {} in {} (licence: {})",
            bytes(pulled.bytes()),
            path.display(),
            pulled.licence.as_deref().unwrap_or("not named; see the model's page")
        ));
        Ok(pulled)
    }

    /// The files of the model among those of the repository.
    fn wanted<'a>(&self, listing: &'a Listing) -> anyhow::Result<Vec<&'a ListedFile>> {
        let files = &listing.files;
        let ggufs = || {
            let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).filter(|n| is_gguf(n)).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let repository = self.repository();
        if let Some(name) = &self.file {
            let found = files.iter().find(|file| file.name == *name);
            return Ok(vec![found.with_context(|| {
                format!("{repository} has no file {name}; its GGUF files: {}", ggufs())
            })?]);
        }
        if !files.iter().any(|f| f.name == "config.json")
            || !files.iter().any(|f| f.name.ends_with(".safetensors"))
        {
            bail!(
                "{repository} is no model in safetensors (config.json and *.safetensors); to take a GGUF file, name it: \
                 mixse pull {repository}/FILE.gguf (there are: {})",
                ggufs()
            );
        }
        // `model*`: some repositories hold the same weights a second time under another name.
        let is_part = |name: &str| match name.rsplit_once('.') {
            Some((stem, "safetensors")) => stem.starts_with("model"),
            Some((_, "json" | "jinja")) | Some(("tokenizer", "model")) => true,
            _ => false,
        };
        let mut wanted: Vec<_> = files.iter().filter(|f| is_word(&f.name) && is_part(&f.name)).collect();
        // The configuration comes before the weights, and may already refuse the model.
        wanted.sort_by_key(|file| (file.bytes, &file.name));
        Ok(wanted)
    }

    /// Fills `partial` with exactly these files.
    fn download(&self, listing: &Listing, wanted: &[&ListedFile], partial: &Path) -> anyhow::Result<Pulled> {
        fs::create_dir_all(partial)?;
        // A file of the same length from an earlier commit would not be noticed where the hub lists no checksum.
        let commit = partial.join(".commit");
        if fs::read_to_string(&commit).ok().as_ref() != Some(&listing.revision) {
            remove(partial)?;
            fs::create_dir_all(partial)?;
            fs::write(&commit, &listing.revision)?;
        }
        let total: u64 = wanted.iter().map(|file| file.bytes).sum();
        let there = |file: &ListedFile| fs::metadata(partial.join(&file.name)).map_or(0, |meta| meta.len());
        check_space(partial, total.saturating_sub(wanted.iter().map(|file| there(file)).sum()))?;
        note(format_args!("{self}: downloading {} (files: {})", bytes(total), wanted.len()));
        let mut progress = Progress::new(&self.to_string(), "MB", total / MEGABYTE);
        let mut done = 0;
        let mut files = Vec::new();
        for file in wanted {
            let downloaded = self.download_file(&listing.revision, file, partial).with_context(|| {
                format!("{}: what has arrived is kept (run it again to continue)", file.name)
            })?;
            if file.name == "config.json" {
                ModelConfig::from_directory(partial)?;
            }
            files.push(downloaded);
            done += file.bytes;
            progress.set(done / MEGABYTE, 0);
        }
        progress.finish();
        // What the client keeps for itself, and nothing else, lies beside the files.
        remove(&partial.join(".cache"))?;
        remove(&commit)?;
        Ok(Pulled {
            repository: self.repository(),
            revision: listing.revision.clone(),
            licence: listing.licence.clone(),
            files,
        })
    }

    fn download_file(&self, revision: &str, file: &ListedFile, partial: &Path) -> anyhow::Result<PulledFile> {
        let path = partial.join(&file.name);
        let hash_of_whole = || -> anyhow::Result<Option<String>> {
            let length = fs::metadata(&path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len());
            if length != Some(file.bytes) {
                return Ok(None);
            }
            let found = hash_path(&path)?;
            Ok(file.sha256.as_ref().is_none_or(|expected| *expected == found).then_some(found))
        };
        let pulled = |sha256| PulledFile { name: file.name.clone(), bytes: file.bytes, sha256 };
        if let Some(found) = hash_of_whole()? {
            return Ok(pulled(found));
        }
        clients::from_hub(&self.repository(), &file.name, revision, partial)
            .context("no client of the Hugging Face hub is installed")??;
        match hash_of_whole()? {
            Some(found) => Ok(pulled(found)),
            None => {
                remove(&path)?;
                bail!("what came is not the file that the hub lists ({} bytes)", file.bytes)
            }
        }
    }

    /// Whether the files are still those that were pulled.
    fn is_whole(&self, pulled: &Pulled, path: &Path) -> bool {
        pulled.files.iter().all(|file| {
            let path = if self.file.is_some() { path.to_owned() } else { path.join(&file.name) };
            hash_path(&path).is_ok_and(|found| found == file.sha256)
        })
    }
}

/// A name that is safe as part of a path and as an argument of a program.
fn is_word(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(allowed)
}

fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "gguf")
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

fn record_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

fn read_record(path: &Path) -> Option<Pulled> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes a file or a directory, if there is one.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(&str, &str, Option<&str>, Option<&str>)>) {
        let found = HubModel::parse(text);
        let parts = found
            .as_ref()
            .map(|m| (m.owner.as_str(), m.name.as_str(), m.revision.as_deref(), m.file.as_deref()));
        assert_eq!(parts, expected, "{text:?}");
        if let Some(model) = found {
            assert_eq!(model.to_string(), text);
        }
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        check("Qwen/Qwen2.5-0.5B", Some(("Qwen", "Qwen2.5-0.5B", None, None)));
        check("a/b@v1.0", Some(("a", "b", Some("v1.0"), None)));
        check("a/b/c.gguf", Some(("a", "b", None, Some("c.gguf"))));
        check("a/b@r/d/c.gguf", Some(("a", "b", Some("r"), Some("d/c.gguf"))));
        for text in [
            "",
            "a",
            "a/",
            "/a",
            "./a",
            "../a",
            "a/..",
            "a/b/c",
            "a/b/",
            "a/b/../c.gguf",
            "-a/b",
            "a/-b",
            "a/b@",
            "a/b@-x",
            "a/b c",
            "~/b",
            "a/b/.gguf",
            "a\\b/c",
            "a//c.gguf",
            "é/b",
        ] {
            check(text, None);
        }
    }
}
