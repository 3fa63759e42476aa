//! From files and arguments to one checked [`Config`].

use std::{fmt, path::Path};

use anyhow::Context;
use serde::{Deserialize, de::DeserializeOwned};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{Config, Preset, validate};
use crate::output::usage_error;

/// Something wrong in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Dotted key.
    pub(crate) key: String,
    /// What is wrong and what would be right.
    pub(crate) what: String,
}

impl Fault {
    pub(super) fn new(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into() }
    }
}

/// The most bytes of a configuration.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

/// Reads a configuration file over a preset (or the preset alone), lets `adjust` lay command-line arguments over it, and
/// checks the result.
///
/// A `preset` given by the caller wins over the file's own `preset = "…"`; without either it is `quick`.
pub(crate) fn load(
    file: Option<&Path>,
    preset: Option<Preset>,
    adjust: impl FnOnce(&mut Config),
) -> anyhow::Result<Config> {
    let text = match file {
        Some(path) => mixse_files::read_text(path, MAX_CONFIG)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => String::new(),
    };
    let source = Source { name: file.map(|path| path.display().to_string()), text: &text };
    parse(&source, preset, adjust)
}

/// Refuses a configuration that was changed by other means than [`load`] and cannot work.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    let faults = validate::faults(config);
    if faults.is_empty() { Ok(()) } else { Err(Source { name: None, text: "" }.error(&faults)) }
}

/// Reads the full configuration that a run directory keeps.
pub(crate) fn read_resolved(path: &Path) -> anyhow::Result<Config> {
    load(Some(path), None, |_| {})
}

/// The keys in which two configurations differ, with both values; what does not change results is left out, and so are
/// the methods: others can be added to a run.
pub(crate) fn compare(there: &Config, wanted: &Config) -> anyhow::Result<Vec<String>> {
    let neutral = |config: &Config| Config {
        threads: super::Threads::All,
        memory_limit: super::MemoryLimit::Auto,
        ignore_unused: false,
        methods: super::Method::usual(),
        ..config.clone()
    };
    let (there, wanted) = (Table::try_from(neutral(there))?, Table::try_from(neutral(wanted))?);
    let mut differences = Vec::new();
    let mut keys = leaves(&there);
    keys.extend(leaves(&wanted).into_iter().filter(|key| lookup(&there, key).is_none()));
    let show = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    for key in keys {
        let (old, new) = (lookup(&there, &key), lookup(&wanted, &key));
        if old != new {
            differences.push(format!("{key}: {} there, {} wanted", show(old), show(new)));
        }
    }
    Ok(differences)
}

struct Source<'a> {
    name: Option<String>,
    text: &'a str,
}

impl Source<'_> {
    /// `mixse.toml, line 3, router.top_k`, as far as it is known.
    fn place(&self, key: &str) -> String {
        match (&self.name, line_of(self.text, key)) {
            (Some(name), Some(line)) => format!("{name}, line {line}, {key}"),
            _ => key.to_owned(),
        }
    }

    fn error(&self, faults: &[Fault]) -> anyhow::Error {
        let list: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}", self.place(&fault.key), fault.what)).collect();
        match list.as_slice() {
            [one] => usage_error(format!("wrong configuration: {one}")),
            _ => usage_error(format!("wrong configuration:\n  {}", list.join("\n  "))),
        }
    }
}

fn parse(
    source: &Source<'_>,
    preset: Option<Preset>,
    adjust: impl FnOnce(&mut Config),
) -> anyhow::Result<Config> {
    let name = || source.name.clone().unwrap_or_default();
    let given: Table = toml::from_str(source.text)
        .map_err(|e| usage_error(format!("wrong configuration: {}: {}", name(), e.to_string().trim_end())))?;
    match resolve(given, preset, adjust) {
        (Some(config), faults) if faults.is_empty() => Ok(config),
        (_, faults) => Err(source.error(&faults)),
    }
}

/// Lays what is given over a preset and checks the result. Returns everything that is wrong, and the configuration as far
/// as it can be made without the wrong values, so that more can be checked about it.
pub(crate) fn resolve(
    mut given: Table,
    preset: Option<Preset>,
    adjust: impl FnOnce(&mut Config),
) -> (Option<Config>, Vec<Fault>) {
    let mut faults = Vec::new();
    let preset = match (preset, given.remove("preset")) {
        (Some(preset), _) => preset,
        (None, None) => Preset::Quick,
        (None, Some(value)) => Preset::deserialize(value).unwrap_or_else(|e| {
            faults.push(Fault::new("preset", without_newlines(&e)));
            Preset::Quick
        }),
    };
    let broken = |e: &dyn fmt::Display| (None, vec![Fault::new("", without_newlines(&e))]);
    let mut full = match Table::try_from(Config::preset(preset)) {
        Ok(full) => full,
        Err(e) => return broken(&e),
    };
    for key in leaves(&given) {
        if let Some(value) = lookup(&given, &key)
            && let Err(fault) = set::<Config>(&mut full, &key, value)
        {
            faults.push(fault);
        }
    }
    let mut config = match Config::deserialize(full) {
        Ok(config) => config,
        Err(e) => return broken(&e),
    };
    adjust(&mut config);
    faults.extend(validate::faults(&config));
    (Some(config), faults)
}

/// Sections whose tables are named by the user: their keys need not stand in the full table.
const OPEN_SECTIONS: [&str; 1] = ["expert.domains."];

/// Puts one value into the full table of a `T`, where the key must stand already and the value must fit it.
pub(super) fn set<T: DeserializeOwned>(full: &mut Table, key: &str, value: &Value) -> Result<(), Fault> {
    let mut changed = full.clone();
    match lookup_mut(&mut changed, key) {
        Some(slot) => *slot = value.clone(),
        None if OPEN_SECTIONS.iter().any(|section| key.starts_with(section)) => {
            insert(&mut changed, key, value)
        }
        None => return Err(unknown_key(full, key)),
    }
    T::deserialize(changed.clone()).map_err(|e| Fault::new(key, without_newlines(&e)))?;
    *full = changed;
    Ok(())
}

/// Puts a value where nothing is, making the tables above it.
fn insert(table: &mut Table, key: &str, value: &Value) {
    let Some((section, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value.clone());
        return;
    };
    if let Value::Table(inner) = table.entry(section).or_insert_with(|| Table::new().into()) {
        insert(inner, rest, value);
    }
}

fn unknown_key(full: &Table, key: &str) -> Fault {
    let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
    let table = if section.is_empty() { Some(full) } else { lookup(full, section).and_then(Value::as_table) };
    let known = table.map(|t| t.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
    Fault::new(
        key,
        match known {
            Some(known) => format!("there is no key {last:?}; there are: {known}"),
            None => format!("there is no section {section:?}"),
        },
    )
}

/// Dotted keys of everything in the table that is not itself a table.
fn leaves(table: &Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                keys.extend(leaves(inner).into_iter().map(|below| format!("{key}.{below}")))
            }
            _ => keys.push(key.clone()),
        }
    }
    keys
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => lookup(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

fn lookup_mut<'a>(table: &'a mut Table, key: &str) -> Option<&'a mut Value> {
    match key.split_once('.') {
        Some((section, rest)) => lookup_mut(table.get_mut(section)?.as_table_mut()?, rest),
        None => table.get_mut(key),
    }
}

/// The line (from 1) on which a dotted key's value begins; for a key that is not there, its section's.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut offset = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
        offset = Some(name.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    Some(text[..offset?].matches('\n').count() + 1)
}

fn without_newlines(error: &impl fmt::Display) -> String {
    error
        .to_string()
        .trim()
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("in `"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests;
