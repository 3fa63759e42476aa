//! `mixse pull`

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    args::PullArgs,
    output::{bytes, print, usage_error},
    pull::{Cache, Present, catalog, pull},
};

pub(super) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let cache = Cache::locate(args.cache.cache.as_deref())?;
    let format = args.json.format();
    let Some(name) = &args.model else { return print(format, &List::new(&cache)) };
    let Some(model) = catalog::find(name) else {
        return Err(usage_error(format!(
            "there is no model {name:?} to pull; there are: {}",
            catalog::names()
        )));
    };
    let path = pull(model, &cache, Present::Verify)?;
    print(
        format,
        &Pulled { model: model.name, path, bytes: model.bytes, sha256: model.sha256, licence: model.licence },
    )
}

#[derive(Serialize)]
struct Pulled {
    model: &'static str,
    path: PathBuf,
    bytes: u64,
    sha256: &'static str,
    licence: &'static str,
}

impl fmt::Display for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

#[derive(Serialize)]
struct List {
    cache: PathBuf,
    models: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    model: &'static str,
    summary: &'static str,
    bytes: u64,
    licence: &'static str,
    /// Where it is, if it has been pulled.
    path: Option<PathBuf>,
}

impl List {
    fn new(cache: &Cache) -> Self {
        let entry = |model: &catalog::KnownModel| Entry {
            model: model.name,
            summary: model.summary,
            bytes: model.bytes,
            licence: model.licence,
            path: cache.find(model),
        };
        Self { cache: cache.directory().to_owned(), models: catalog::MODELS.iter().map(entry).collect() }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cache: {}", self.cache.display())?;
        for model in &self.models {
            let state = if model.path.is_some() { "pulled" } else { "not pulled" };
            let size = bytes(model.bytes);
            writeln!(f, "{:24} {size:>9}  {state:10}  {} ({})", model.model, model.summary, model.licence)?;
        }
        Ok(())
    }
}
