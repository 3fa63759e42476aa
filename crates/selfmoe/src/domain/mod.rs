//! A domain: what an expert is to be good at, as a folder of plain files that a user can copy and change.
//!
//! `domain.toml` (see [`Manifest`]) says what tasks look like, `seeds.jsonl` holds example tasks with responses and
//! `check.jsonl` held-out tasks with checkable answers, both as rows of [`Example`].

mod builtin;
mod formats;
mod manifest;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

pub use builtin::{built_in, built_in_names, write_built_in};
pub use formats::RowFormat;
pub use manifest::{AnswerKind, Filters, Limits, Manifest};

use crate::{
    error::{Error, Fault, Result},
    jsonl::{self, Line},
    record::{Answer, Example},
};

/// Brainstorming shows 3 seeds and responding 5, so fewer than this make no domain.
pub const MIN_SEEDS: usize = 5;
/// The most bytes in a field of a row: longer text fits no prompt.
pub const MAX_FIELD_BYTES: usize = 32 << 10;
/// The most bytes in a file of rows.
const MAX_ROWS_BYTES: u64 = 256 << 20;
/// The most bytes in `domain.toml`.
const MAX_MANIFEST_BYTES: u64 = 256 << 10;

/// A validated domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// The content of `domain.toml`.
    pub manifest: Manifest,
    /// Example tasks with responses; at least [`MIN_SEEDS`].
    pub seeds: Vec<Example>,
    /// Held-out tasks, each with an answer that can be checked; may be empty.
    pub check: Vec<Example>,
}

impl Domain {
    /// The domain's name: the folder's and the expert's.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The same domain whose responses need not give their answer in any form. Code must still define the function.
    #[must_use]
    pub fn with_any_answer(mut self) -> Self {
        let filters = &mut self.manifest.filters;
        filters.number_in_response = Some(false);
        filters.option_in_response = Some(false);
        filters.stated_answer = Some(false);
        self
    }

    /// Reads and validates a folder.
    ///
    /// # Errors
    /// A file is missing or malformed; every fault of the rows is listed with file and line.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("domain.toml");
        let manifest = Manifest::parse(&path, &jsonl::read_text(&path, MAX_MANIFEST_BYTES)?)?;
        let seeds_path = folder.join(&manifest.seeds);
        let check_path = folder.join(&manifest.check);
        let seeds = jsonl::read_text(&seeds_path, MAX_ROWS_BYTES)?;
        let check = match jsonl::read_text(&check_path, MAX_ROWS_BYTES) {
            // A domain without held-out tasks can be trained, only not evaluated.
            Err(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && manifest.check_is_default() =>
            {
                String::new()
            }
            other => other?,
        };
        Self::from_texts(manifest, (&seeds_path, &seeds), (&check_path, &check))
    }

    /// Builds a domain from the files' texts; the paths are named in faults only.
    fn from_texts(manifest: Manifest, seeds: (&Path, &str), check: (&Path, &str)) -> Result<Self> {
        let mut faults = Vec::new();
        // `None`: lines of it cannot be read, and nothing can be said about the file as a whole.
        let mut rows = |(path, text): (&Path, &str), format: RowFormat| match format.rows(path, text) {
            Ok(rows) => {
                faults.extend(faults_of(path, &rows));
                Some(rows)
            }
            Err(Error::Faults(more)) => {
                faults.extend(more);
                None
            }
            Err(other) => {
                faults.push(Fault { path: path.into(), line: None, what: other.to_string() });
                None
            }
        };
        let seed_rows = rows(seeds, manifest.seed_format);
        let check_rows = rows(check, manifest.check_format);
        let (seed_rows, check_rows) = match (seed_rows, check_rows) {
            (Some(seed_rows), check_rows) => {
                faults.extend(seed_faults(seeds.0, &seed_rows));
                let check_rows = check_rows.unwrap_or_default();
                faults.extend(check_faults(check.0, &check_rows, &seed_rows));
                (seed_rows, check_rows)
            }
            (None, check_rows) => {
                let check_rows = check_rows.unwrap_or_default();
                faults.extend(check_faults(check.0, &check_rows, &[]));
                (Vec::new(), check_rows)
            }
        };
        if !faults.is_empty() {
            return Err(Error::Faults(faults));
        }
        let values = |rows: Vec<Line<Example>>| rows.into_iter().map(|line| line.value).collect();
        Ok(Self { manifest, seeds: values(seed_rows), check: values(check_rows) })
    }
}

/// Faults that make a row unusable wherever it stands.
fn faults_of(path: &Path, rows: &[Line<Example>]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for Line { number, value: row } in rows {
        let mut fault = |what: String| faults.push(Fault { path: path.into(), line: Some(*number), what });
        for (name, text, required) in [
            ("id", &row.id, true),
            ("instruction", &row.instruction, true),
            ("input", &row.input, false),
            ("output", &row.output, true),
        ] {
            if required && text.trim().is_empty() {
                fault(format!("`{name}` is empty"));
            }
            if text.len() > MAX_FIELD_BYTES {
                fault(format!("`{name}` has {} bytes, more than {MAX_FIELD_BYTES}", text.len()));
            }
            if text.contains('\0') {
                fault(format!("`{name}` holds a NUL character"));
            }
        }
        if let Some(first) = ids.insert(&row.id, *number) {
            fault(format!("id `{}` is already used in line {first}", row.id));
        }
        if let Some(Answer::Choice { letter }) = &row.answer
            && !crate::answer::choice::options(&row.input).iter().any(|(option, _)| option == letter)
        {
            fault(format!("the answer is {letter}, but the input has no line `{letter}. …`"));
        }
    }
    faults
}

fn seed_faults(path: &Path, seeds: &[Line<Example>]) -> Vec<Fault> {
    let mut faults = Vec::new();
    if seeds.len() < MIN_SEEDS {
        let what = format!("{} usable seeds, at least {MIN_SEEDS} are needed", seeds.len());
        faults.push(Fault { path: path.into(), line: None, what });
    }
    let mut tasks: HashMap<String, usize> = HashMap::new();
    for Line { number, value } in seeds {
        if let Some(first) = tasks.insert(task_key(value), *number) {
            let what = format!("the same instruction and input as in line {first}");
            faults.push(Fault { path: path.into(), line: Some(*number), what });
        }
    }
    faults
}

fn check_faults(path: &Path, check: &[Line<Example>], seeds: &[Line<Example>]) -> Vec<Fault> {
    let seeds: HashSet<String> = seeds.iter().map(|line| task_key(&line.value)).collect();
    let mut faults = Vec::new();
    for Line { number, value } in check {
        let mut fault =
            |what: &str| faults.push(Fault { path: path.into(), line: Some(*number), what: what.into() });
        if value.answer.is_none() {
            fault("no `answer`: a check item needs one that can be checked");
        }
        if seeds.contains(&task_key(value)) {
            fault("also a seed: a check item must be held out");
        }
    }
    faults
}

/// Instruction and input without regard to case and white space.
fn task_key(row: &Example) -> String {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    format!("{}\n{}", squeeze(&row.instruction), squeeze(&row.input))
}

/// Finds a domain: a built-in name, or a folder's path.
///
/// # Errors
/// Neither exists, or the folder is malformed.
pub fn find(name_or_path: &str) -> Result<Domain> {
    let path = PathBuf::from(name_or_path);
    if path.join("domain.toml").is_file() {
        return Domain::open(&path);
    }
    built_in(name_or_path).unwrap_or_else(|| {
        Err(Error::invalid(
            path,
            format!(
                "no built-in domain has this name ({}) and there is no folder with a domain.toml",
                built_in_names().collect::<Vec<_>>().join(", ")
            ),
        ))
    })
}

#[cfg(test)]
mod tests;
