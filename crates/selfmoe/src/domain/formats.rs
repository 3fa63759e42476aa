//! Row formats: our own and those in which benchmarks are published.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Fault, Result},
    jsonl::{self, Line},
    record::{Answer, Example},
};

/// How a file's rows are to be read. The benchmark formats also take rows that already have `instruction`, `input`
/// and `output` with the published row under `raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    /// [`Example`] rows.
    #[default]
    Mixse,
    /// MMLU: `question`, `choices`, `answer` (an index), `subject`.
    Mmlu,
    /// BIG-Bench Hard: `input`, `target`, `task`.
    Bbh,
    /// GSM8K: `question`, `answer` ending in `#### n`.
    Gsm8k,
    /// MBPP: `text`, `code`, `test_list`, `task_id`.
    Mbpp,
    /// HumanEval: `prompt`, `canonical_solution`, `test`, `entry_point`, `task_id`.
    Humaneval,
}

/// A published row or one field of it.
type Object = Map<String, Value>;

impl RowFormat {
    /// Parses a file's text.
    ///
    /// # Errors
    /// Every line that does not have the format.
    pub fn rows(self, path: &Path, text: &str) -> Result<Vec<Line<Example>>> {
        if self == Self::Mixse {
            return jsonl::parse(path, text);
        }
        let mut rows = Vec::new();
        let mut faults = Vec::new();
        for Line { number, value } in jsonl::parse::<Object>(path, text)? {
            match self.example(&value, number) {
                Ok(value) => rows.push(Line { number, value }),
                Err(what) => faults.push(Fault { path: path.into(), line: Some(number), what }),
            }
        }
        if faults.is_empty() { Ok(rows) } else { Err(Error::Faults(faults)) }
    }

    fn example(self, row: &Object, number: usize) -> std::result::Result<Example, String> {
        let id = ["id", "source", "task_id"]
            .iter()
            .find_map(|key| match row.get(*key) {
                Some(Value::String(s)) => Some(s.clone()),
                Some(Value::Number(n)) => Some(n.to_string()),
                _ => None,
            })
            .unwrap_or_else(|| format!("line-{number}"));
        if !row.contains_key("instruction") {
            return self.published(row, id);
        }
        let answer = match row.get("raw") {
            Some(Value::Object(raw)) => Some(self.answer(raw)?),
            _ => None,
        };
        let output = text(row, "output")?.to_owned();
        let input = row.get("input").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Example { id, instruction: text(row, "instruction")?.to_owned(), input, output, answer })
    }

    /// A row as published, put into our words.
    fn published(self, row: &Object, id: String) -> std::result::Result<Example, String> {
        let (instruction, input, output) = match self {
            // Handled by the caller.
            Self::Mixse => return Err("not a benchmark row".into()),
            Self::Mmlu => mmlu(row)?,
            Self::Bbh => {
                let task = text(row, "task")?.replace('_', " ");
                let output = format!("So the answer is {}.", text(row, "target")?);
                (format!("Solve this {task} task step by step."), text(row, "input")?.to_owned(), output)
            }
            Self::Gsm8k => {
                let answer = text(row, "answer")?;
                let (steps, result) = answer.rsplit_once("####").ok_or("`answer` has no `#### n`")?;
                let output =
                    format!("{}\nThe answer is {}.", without_calculator(steps.trim_end()), result.trim());
                (
                    "Solve this math word problem step by step.".into(),
                    text(row, "question")?.to_owned(),
                    output,
                )
            }
            Self::Mbpp => {
                let tests = strings(row, "test_list")?;
                let test = tests.first().ok_or("`test_list` is empty")?;
                let input = format!("{}\nYour code should pass this test:\n{test}", text(row, "text")?);
                ("Write a Python function for this task.".into(), input, clean_code(text(row, "code")?))
            }
            Self::Humaneval => {
                let prompt = text(row, "prompt")?;
                let solution = format!("{prompt}{}", text(row, "canonical_solution")?);
                ("Complete this Python function.".into(), prompt.to_owned(), clean_code(&solution))
            }
        };
        let answer = Some(self.answer(row)?);
        Ok(Example { id, instruction, input, output, answer })
    }

    /// The checkable answer of a row as published.
    fn answer(self, row: &Object) -> std::result::Result<Answer, String> {
        match self {
            Self::Mixse => Err("not a benchmark row".into()),
            Self::Mmlu => Ok(Answer::Choice { letter: mmlu_letter(row)? }),
            Self::Bbh => Ok(Answer::Text { accept: vec![text(row, "target")?.to_owned()] }),
            Self::Gsm8k => {
                let answer = text(row, "answer")?;
                let value = answer.rsplit("####").next().unwrap_or_default().trim().replace(',', "");
                if value.parse::<f64>().is_err() {
                    return Err(format!("`answer` ends in `#### {value}`, which is not a number"));
                }
                Ok(Answer::Number { value, expression: None })
            }
            Self::Mbpp => {
                let tests = strings(row, "test_list")?;
                // The published rows name the function only in their tests and code.
                let entry_point = match row.get("entry_point").and_then(Value::as_str) {
                    Some(name) => name.to_owned(),
                    None => crate::answer::code::functions(text(row, "code")?)
                        .into_iter()
                        .find(|name| tests.iter().any(|t| t.contains(&format!("{name}("))))
                        .ok_or("no function of `code` is called by `test_list`")?,
                };
                Ok(Answer::Code { entry_point, tests })
            }
            Self::Humaneval => {
                let entry_point = text(row, "entry_point")?.to_owned();
                let test = format!("{}\ncheck({entry_point})\n", text(row, "test")?);
                Ok(Answer::Code { entry_point, tests: vec![test] })
            }
        }
    }
}

fn mmlu_letter(row: &Object) -> std::result::Result<char, String> {
    let index = row.get("answer").and_then(Value::as_u64).ok_or("`answer` is not an index")?;
    let choices = strings(row, "choices")?.len() as u64;
    if index >= choices || choices > 26 {
        return Err(format!("`answer` is {index}, but there are {choices} choices (at most 26)"));
    }
    Ok(char::from(b'A' + index as u8))
}

fn mmlu(row: &Object) -> std::result::Result<(String, String, String), String> {
    let letter = mmlu_letter(row)?;
    let choices = strings(row, "choices")?;
    let options: Vec<String> = ('A'..='Z').zip(&choices).map(|(l, c)| format!("{l}. {c}")).collect();
    let topic = row.get("subject").and_then(Value::as_str).unwrap_or("general knowledge").replace('_', " ");
    let output = options.iter().find(|o| o.starts_with(letter)).cloned().unwrap_or_default();
    let input = format!("{}\n{}", text(row, "question")?, options.join("\n"));
    Ok((format!("Choose the right option for this question about {topic}."), input, output))
}

fn text<'a>(row: &'a Object, key: &str) -> std::result::Result<&'a str, String> {
    row.get(key).and_then(Value::as_str).ok_or_else(|| format!("`{key}` is missing or not a string"))
}

fn strings(row: &Object, key: &str) -> std::result::Result<Vec<String>, String> {
    let list =
        row.get(key).and_then(Value::as_array).ok_or_else(|| format!("`{key}` is missing or not a list"))?;
    list.iter()
        .map(|v| {
            v.as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` holds something else than strings"))
        })
        .collect()
}

/// Drops GSM8K's `<<3+4=7>>` calculator marks.
fn without_calculator(steps: &str) -> String {
    let mut out = String::new();
    let mut rest = steps;
    while let Some((before, after)) = rest.split_once("<<") {
        out.push_str(before);
        rest = after.split_once(">>").map_or("", |(_, after)| after);
    }
    out + rest
}

/// MBPP's files have CR LF line ends and trailing blanks.
fn clean_code(code: &str) -> String {
    code.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned()
}
