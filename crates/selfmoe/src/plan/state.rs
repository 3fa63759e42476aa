//! What a task's last success was: `tasks/state/ID.json`.

use std::{collections::BTreeMap, io, path::Path};

use mixse_files as files;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, Result};

/// The most bytes of a record.
const MAX_STATE: u64 = 64 << 20;

/// The record of a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The task's id.
    pub task: String,
    /// Hash of each input by its name.
    pub inputs: BTreeMap<String, String>,
    /// The values among the inputs that are small, by their names: what to say when one of them has changed.
    #[serde(default)]
    pub values: BTreeMap<String, Value>,
    /// Hash of each output by its path below the run directory.
    pub outputs: BTreeMap<String, String>,
    /// Name of the machine that ran it.
    pub host: String,
    /// Start of the attempt that finished, in seconds since 1970.
    pub started: f64,
    /// Length of that attempt.
    pub seconds: f64,
    /// What the task recorded about itself.
    pub figures: BTreeMap<String, f64>,
    /// The outputs came from a [`Store`](super::Store); the figures are those of the attempt that made them.
    #[serde(default)]
    pub reused: bool,
}

impl State {
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let text = match files::read(path, MAX_STATE) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path)(e)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::State { path: path.to_owned(), what: e.to_string() })
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| Error::Plan(e.to_string()))?;
        text.push(b'\n');
        files::write_atomic(path, &text).map_err(Error::io(path))
    }

    /// One hash over all outputs: what the tasks that need this one see of it.
    pub(super) fn outputs_hash(&self) -> String {
        let list: String = self.outputs.iter().map(|(path, hash)| format!("{path}\0{hash}\n")).collect();
        files::hash_bytes(list.as_bytes())
    }
}

/// A hash of a JSON value that does not depend on the order of its keys.
pub(super) fn hash_value(value: &Value) -> String {
    fn canonical(value: &Value) -> String {
        match value {
            Value::Object(map) => {
                let sorted: BTreeMap<&String, &Value> = map.iter().collect();
                let parts: Vec<String> = sorted
                    .into_iter()
                    .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                    .collect();
                format!("{{{}}}", parts.join(","))
            }
            Value::Array(items) => {
                format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
            }
            other => other.to_string(),
        }
    }
    files::hash_bytes(canonical(value).as_bytes())
}
