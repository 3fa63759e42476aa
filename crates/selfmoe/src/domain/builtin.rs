//! The domains that come with the program, embedded in it.

use std::path::{Path, PathBuf};

use super::{Domain, Manifest};
use crate::{
    error::{Error, Result},
    jsonl,
};

/// The files of a built-in domain.
struct Embedded {
    name: &'static str,
    manifest: &'static str,
    seeds: &'static str,
    check: &'static str,
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        &[$(Embedded {
            name: $name,
            manifest: include_str!(concat!("../../../../domains/", $name, "/domain.toml")),
            seeds: include_str!(concat!("../../../../domains/", $name, "/seeds.jsonl")),
            check: include_str!(concat!("../../../../domains/", $name, "/check.jsonl")),
        }),*]
    };
}

const BUILT_IN: &[Embedded] = embedded!["knowledge", "reasoning", "math", "coding"];

/// The names of the built-in domains, in the order in which they are shown.
pub fn built_in_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|d| d.name)
}

/// A built-in domain, `None` if there is none with this name.
pub fn built_in(name: &str) -> Option<Result<Domain>> {
    BUILT_IN.iter().find(|d| d.name == name).map(Embedded::domain)
}

/// Writes the files of a built-in domain to `folder`, for a user to change.
///
/// # Errors
/// There is no such domain, the folder already holds one of its files, or it cannot be written.
pub fn write_built_in(name: &str, folder: &Path) -> Result<()> {
    let domain = BUILT_IN.iter().find(|d| d.name == name).ok_or_else(|| {
        let names: Vec<_> = built_in_names().collect();
        Error::setting(
            "domain",
            format!("no built-in domain is called `{name}`, there are: {}", names.join(", ")),
        )
    })?;
    let files = [
        ("seeds.jsonl", domain.seeds),
        ("check.jsonl", domain.check),
        // Last, because it is what makes the folder a domain.
        ("domain.toml", domain.manifest),
    ];
    if let Some((taken, _)) = files.iter().find(|(file, _)| folder.join(file).exists()) {
        return Err(Error::invalid(folder.join(taken), "already exists, choose another folder"));
    }
    files.iter().try_for_each(|(file, text)| jsonl::write_text_atomic(&folder.join(file), text))
}

impl Embedded {
    fn domain(&self) -> Result<Domain> {
        let path = |file: &str| PathBuf::from(format!("built-in domain {}/{file}", self.name));
        let manifest = Manifest::parse(&path("domain.toml"), self.manifest)?;
        Domain::from_texts(manifest, (&path("seeds.jsonl"), self.seeds), (&path("check.jsonl"), self.check))
    }
}
