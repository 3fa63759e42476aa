//! `mixse pull`

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    args::PullArgs,
    output::{bytes, print, usage_error},
    pull::{Cache, Present, catalog, hub::HubModel, pull},
};

pub(super) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let cache = Cache::locate(args.cache.cache.as_deref())?;
    let format = args.json.format();
    let Some(name) = &args.model else { return print(format, &List::new(&cache)) };
    if let Some(model) = catalog::find(name) {
        let path = pull(model, &cache, Present::Verify)?;
        let pulled = Pulled {
            model: model.name.to_owned(),
            path,
            bytes: model.bytes,
            sha256: Some(model.sha256.to_owned()),
            revision: None,
            licence: Some(model.licence.to_owned()),
        };
        return print(format, &pulled);
    }
    let Some(model) = HubModel::parse(name) else {
        return Err(usage_error(format!(
            "there is no model {name:?} to pull; there are: {}, and OWNER/NAME or OWNER/NAME/FILE.gguf of the Hugging Face hub",
            catalog::names()
        )));
    };
    let (path, pulled) = model.pull(&cache)?;
    let pulled = Pulled {
        model: model.to_string(),
        path,
        bytes: pulled.bytes(),
        sha256: None,
        revision: Some(pulled.revision),
        licence: pulled.licence,
    };
    print(format, &pulled)
}

#[derive(Serialize)]
struct Pulled {
    model: String,
    path: PathBuf,
    bytes: u64,
    /// Of the file; a model of the hub may be several.
    sha256: Option<String>,
    /// Commit in the hub's repository.
    revision: Option<String>,
    licence: Option<String>,
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
            writeln!(f, "{:28} {size:>9}  {state:10}  {} ({})", model.model, model.summary, model.licence)?;
        }
        Ok(())
    }
}
