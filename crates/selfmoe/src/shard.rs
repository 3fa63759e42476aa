//! A shard of generation: requests go in, one row each is appended as it finishes, and the whole file appears under
//! its name, in request order, when all are there. Killed at any moment, the next run continues with what is missing.

use std::{
    collections::HashMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use mixse_model::language::{Completion, Finish, LanguageModel, Request};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    jsonl::{self, Appender},
};

/// Why a completion ended, as rows record it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The model ended it.
    Eos,
    /// A stop string appeared.
    Stop,
    /// The limit of tokens was reached: the text may be unfinished.
    Length,
}

impl From<&Finish> for End {
    fn from(finish: &Finish) -> Self {
        match finish {
            Finish::Eos => Self::Eos,
            Finish::Stop(_) => Self::Stop,
            Finish::Length => Self::Length,
        }
    }
}

/// How far a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Finished requests, those of earlier runs included.
    pub done: usize,
    /// All requests.
    pub total: usize,
    /// Tokens generated in this run.
    pub tokens: usize,
}

/// Whether a shard's file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// All rows are written.
    Complete,
    /// The caller stopped it; another run continues it.
    Stopped,
}

/// A row of a shard, found again by its key.
pub(crate) trait ShardRow: Serialize + DeserializeOwned {
    /// Unique within the shard.
    fn key(&self) -> String;
}

/// Generates what is missing of `asked` (key, what the row needs, request) and completes the file at `path`.
pub(crate) fn run<T, R: ShardRow>(
    model: &dyn LanguageModel,
    path: &Path,
    asked: Vec<(String, T, Request)>,
    row: impl Fn(&T, &Completion) -> R,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ShardState> {
    let total = asked.len();
    let order: HashMap<String, usize> = (0..).zip(&asked).map(|(i, (key, ..))| (key.clone(), i)).collect();
    if path.exists() {
        let rows: Vec<R> = jsonl::read(path)?;
        let same =
            rows.len() == total && rows.iter().enumerate().all(|(i, r)| order.get(&r.key()) == Some(&i));
        return if same { Ok(ShardState::Complete) } else { Err(other_shard(path)) };
    }
    let partial = partial_path(path);
    let (mut file, rows): (Appender, Vec<R>) = match Appender::open(&partial) {
        // Damaged by more than a torn last line (a crash of the machine): what it held is made again.
        Err(Error::Faults(_)) => {
            fs::remove_file(&partial).map_err(|e| Error::io(&partial, e))?;
            Appender::open(&partial)?
        }
        other => other?,
    };
    let mut rows: HashMap<usize, R> = rows
        .into_iter()
        .map(|r| order.get(&r.key()).map(|&i| (i, r)).ok_or_else(|| other_shard(&partial)))
        .collect::<Result<_>>()?;
    let mut places = Vec::new();
    let mut items = Vec::new();
    let mut requests = Vec::new();
    for (i, (_, item, request)) in asked.into_iter().enumerate() {
        if !rows.contains_key(&i) {
            places.push(i);
            items.push(item);
            requests.push(request);
        }
    }
    let mut failed = None;
    let mut state = Progress { done: rows.len(), total, tokens: 0 };
    let mut done = |request: usize, completion: Completion| {
        let row = row(&items[request], &completion);
        if let Err(e) = file.push(&row) {
            failed = Some(e);
            return ControlFlow::Break(());
        }
        rows.insert(places[request], row);
        state.done += 1;
        state.tokens += completion.ids.len();
        progress(state)
    };
    if !requests.is_empty() {
        model.generate(&requests, &mut done)?;
    }
    if let Some(e) = failed {
        return Err(e);
    }
    if rows.len() < total {
        return Ok(ShardState::Stopped);
    }
    jsonl::write_atomic(path, (0..total).filter_map(|i| rows.get(&i)))?;
    // The rows are safe under the final name; a leftover would only be ignored.
    fs::remove_file(&partial).map_err(|e| Error::io(&partial, e))?;
    Ok(ShardState::Complete)
}

/// Where rows are appended until the shard is complete.
fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn other_shard(path: &Path) -> Error {
    Error::invalid(
        path,
        "holds rows of another shard or configuration; remove it or choose another directory",
    )
}
