//! The benchmarks that are built in: how their native files become prompts.
//!
//! A definition holds the facts of a task's format (labels, delimiters, stop strings, patterns); every example and question is
//! read from the files of a directory, which may hold the full official sets in the same formats:
//!
//! | task | rows | worked examples (`fewshot/`) |
//! |---|---|---|
//! | `mmlu` | `mmlu.jsonl` | `mmlu_dev_5shot.jsonl` |
//! | `bbh` | `bbh.jsonl` | `bbh_cot_3shot.jsonl` |
//! | `gsm8k_cot` | `gsm8k.jsonl` | `gsm8k_cot_8shot_prompt.txt` |
//! | `humaneval` | `humaneval.jsonl` | none |
//! | `mbpp` | `mbpp.jsonl` | `mbpp_3shot.jsonl` |
//! | `hellaswag` | `hellaswag.jsonl` | `hellaswag_10shot.jsonl` |
//! | `piqa` | `piqa.jsonl` | `piqa_5shot.jsonl` |
//! | `truthfulqa_mc1`, `truthfulqa_mc2` | `truthfulqa.jsonl` | `truthfulqa_qa_primer.txt` |
//! | `triviaqa` | `triviaqa.jsonl` | `triviaqa_5shot.jsonl` |
//! | `nq_open` | `nq_open.jsonl` | `nq_open_5shot.jsonl` |
//! | `minerva_math` | `math.jsonl` (`problem`, `solution`), from the user | `math_4shot.jsonl` |

mod choice;
mod generation;

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::task::{Shot, Task};
use crate::{Error, Result, rows};

/// Names of the built-in benchmarks.
pub const NAMES: [&str; 11] = [
    "mmlu",
    "bbh",
    "gsm8k_cot",
    "humaneval",
    "mbpp",
    "hellaswag",
    "piqa",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "triviaqa",
    "nq_open",
];

/// The benchmark of mathematics whose rows the user brings.
pub const MATH: &str = "minerva_math";

/// A directory of benchmark files.
#[derive(Debug, Clone)]
pub struct BenchData {
    directory: PathBuf,
}

impl BenchData {
    /// `directory` itself or its folder `eval` holds the files.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn open(directory: &Path) -> Result<Self> {
        let inner = directory.join("eval");
        let directory = if inner.is_dir() { inner } else { directory.to_owned() };
        if !directory.is_dir() {
            return Err(Error::Invalid(format!(
                "{}: no such directory; --bench-data names one with mmlu.jsonl, gsm8k.jsonl, …",
                directory.display()
            )));
        }
        Ok(Self { directory })
    }

    /// The tasks that a name stands for: a benchmark, a group (`mmlu_stem`) or one task (`mmlu_anatomy`).
    ///
    /// # Errors
    /// The name is unknown, or a file is missing or malformed.
    pub fn tasks(&self, name: &str) -> Result<Vec<Task>> {
        match name {
            "gsm8k_cot" => Ok(vec![generation::gsm8k_cot(self)?]),
            "humaneval" => Ok(vec![generation::humaneval(self)?]),
            "mbpp" => Ok(vec![generation::mbpp(self)?]),
            "triviaqa" => Ok(vec![generation::triviaqa(self)?]),
            "nq_open" => Ok(vec![generation::nq_open(self)?]),
            MATH => Ok(vec![generation::minerva_math(self)?]),
            "hellaswag" => Ok(vec![choice::hellaswag(self)?]),
            "piqa" => Ok(vec![choice::piqa(self)?]),
            "truthfulqa_mc1" => Ok(vec![choice::truthfulqa_mc1(self)?]),
            "truthfulqa_mc2" => Ok(vec![choice::truthfulqa_mc2(self)?]),
            _ if name.starts_with("mmlu") => part(name, choice::mmlu(self)?),
            "bbh" => generation::bbh(self),
            _ if name.starts_with("bbh_cot_fewshot") => part(name, generation::bbh(self)?),
            _ => Err(unknown(name)),
        }
    }

    /// Reads a file of rows; `read` says what is wrong with one.
    fn rows<T>(&self, file: &str, read: impl Fn(&Row) -> Result<T, String>) -> Result<Vec<T>> {
        let path = self.directory.join(file);
        let rows: Vec<(usize, Value)> = rows::read_data(&path)?;
        if rows.is_empty() {
            return Err(Error::Invalid(format!("{}: no rows", path.display())));
        }
        rows.into_iter()
            .map(|(line, value)| read(&Row(value)).map_err(|what| Error::row(&path, line, what)))
            .collect()
    }

    /// Worked examples; none where the file is missing, since most tasks can do without.
    fn shots(&self, file: &str, read: impl Fn(&Row) -> Result<Shot, String>) -> Result<Vec<Shot>> {
        let file = format!("fewshot/{file}");
        if self.directory.join(&file).exists() { self.rows(&file, read) } else { Ok(Vec::new()) }
    }

    fn text(&self, file: &str) -> Result<String> {
        let path = self.directory.join("fewshot").join(file);
        mixse_files::read_text(&path, MAX_SHOTS).map_err(|e| Error::io(path, e))
    }
}

/// The most bytes of a file of worked examples.
const MAX_SHOTS: u64 = 16 << 20;

fn unknown(name: &str) -> Error {
    Error::Invalid(format!(
        "unknown task {name:?}; there are {}, {MATH}, groups and single subjects such as mmlu_stem, mmlu_anatomy, \
         bbh_cot_fewshot_navigate, and files of your own (a path ending in .toml)",
        NAMES.join(", ")
    ))
}

/// One group or task of a benchmark.
fn part(name: &str, tasks: Vec<Task>) -> Result<Vec<Task>> {
    let of = |t: &Task| t.name == name || t.groups.contains(&name);
    let tasks: Vec<Task> = tasks.into_iter().filter(of).collect();
    if tasks.is_empty() { Err(unknown(name)) } else { Ok(tasks) }
}

/// A row with readers that say what is missing.
struct Row(Value);

impl Row {
    fn field(&self, name: &str) -> Result<&Value, String> {
        self.0.get(name).ok_or_else(|| format!("the field {name:?} is missing"))
    }

    fn text(&self, name: &str) -> Result<String, String> {
        let value = self.field(name)?;
        value
            .as_str()
            .map(Into::into)
            .ok_or_else(|| format!("the field {name:?} must be a text, not {value}"))
    }

    fn index(&self, name: &str) -> Result<usize, String> {
        let value = self.field(name)?;
        // Some official files write the label as a text.
        let number = value.as_u64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
        number
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| format!("the field {name:?} must be an index, not {value}"))
    }

    /// The index `name`, below `count`.
    fn choice(&self, name: &str, count: usize) -> Result<usize, String> {
        let index = self.index(name)?;
        if index < count {
            Ok(index)
        } else {
            Err(format!("the field {name:?} is {index}, but there are {count} choices"))
        }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let value = self.field(name)?;
        let texts: Option<Vec<String>> =
            value.as_array().and_then(|a| a.iter().map(|v| v.as_str().map(Into::into)).collect());
        match texts {
            Some(texts) if !texts.is_empty() => Ok(texts),
            _ => Err(format!("the field {name:?} must be a list of texts, not {value}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_checked() {
        let row = Row(json!({"t": "x", "i": 2, "s": "1", "l": ["a"], "e": []}));
        assert_eq!(row.text("t").unwrap(), "x");
        assert_eq!(row.index("i").unwrap(), 2);
        assert_eq!(row.index("s").unwrap(), 1);
        assert_eq!(row.texts("l").unwrap(), ["a"]);
        for (error, part) in [
            (row.text("i").unwrap_err(), "must be a text, not 2"),
            (row.text("no").unwrap_err(), "\"no\" is missing"),
            (row.index("t").unwrap_err(), "must be an index"),
            (row.choice("i", 2).unwrap_err(), "there are 2 choices"),
            (row.texts("e").unwrap_err(), "must be a list of texts"),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn files_and_names_are_checked() {
        assert!(
            BenchData::open(Path::new("/no/such")).unwrap_err().to_string().contains("no such directory")
        );
        let directory = tempfile::tempdir().unwrap();
        let data = BenchData::open(directory.path()).unwrap();
        assert!(data.tasks("mnlu").unwrap_err().to_string().contains("unknown task \"mnlu\""));
        assert!(data.tasks("piqa").unwrap_err().to_string().contains("piqa.jsonl: "));
        std::fs::write(directory.path().join("piqa.jsonl"), "{\"goal\":\"g\",\"sol1\":\"a\"}\n").unwrap();
        let error = data.tasks("piqa").unwrap_err().to_string();
        assert!(error.contains("piqa.jsonl:1: the field \"sol2\" is missing"), "{error}");
    }
}
