//! A user's own task: a small TOML file beside its data.
//!
//! ```toml
//! name = "capitals"
//! data = "capitals.jsonl"                     # rows; relative to this file
//! fewshot = "capitals_examples.jsonl"         # worked examples, optional
//! num_fewshot = 2
//! description = "Answer these questions.\n\n"
//! prompt = "Q: {{ question }}\nA:"            # a Jinja template over the fields of a row
//! answer = "{{ answer }}"                     # with choices: the index; else the text, or a list of texts
//! # either choices, scored by their probability (acc, acc_norm):
//! choices = ["A", "B"]                        # or a template whose value is a list: "{{ options }}"
//! # or text:
//! [generate]
//! until = ["\n"]
//! max_tokens = 64
//! metric = "exact_match"                      # or "math", or "code" (`answer` holds the tests)
//! ignore = [","]                              # patterns that are removed from both sides
//! ignore_case = true
//! ignore_punctuation = false
//! [[generate.filter]]                         # optional; without one the text without white space around it
//! name = "number"
//! regex = "(-?[0-9]+)"
//! last = true                                 # the last match instead of the first
//! ```

use std::path::Path;

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::Deserialize;
use serde_json::Value;

use super::{
    filter::{Filter, Step, Which},
    metric::{ChoiceMetrics, ExactMatch},
    task::{CodeMetric, Generate, Gold, Item, Judge, Kind, Sampler, Shot, Task},
};
use crate::{Error, Result, rows};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    data: String,
    fewshot: Option<String>,
    #[serde(default)]
    num_fewshot: usize,
    #[serde(default)]
    description: String,
    prompt: String,
    answer: String,
    choices: Option<Choices>,
    generate: Option<Generation>,
    #[serde(default = "blank")]
    target_delimiter: String,
    #[serde(default = "empty_line")]
    fewshot_delimiter: String,
}

fn blank() -> String {
    " ".into()
}

fn empty_line() -> String {
    "\n\n".into()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Choices {
    Fixed(Vec<String>),
    Template(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generation {
    until: Vec<String>,
    max_tokens: usize,
    metric: Metric,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    ignore_case: bool,
    #[serde(default)]
    ignore_punctuation: bool,
    #[serde(default)]
    filter: Vec<FilterFile>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Metric {
    ExactMatch,
    Math,
    Code,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterFile {
    name: String,
    regex: String,
    #[serde(default)]
    last: bool,
}

/// The most bytes of a task file: its rows stand elsewhere.
const MAX_TASK: u64 = 4 << 20;

/// Reads a task file and its rows.
///
/// # Errors
/// The file or its data is missing or malformed (file, and line or key), or a template refers to a missing field.
pub fn read(path: &Path) -> Result<Task> {
    let text = mixse_files::read_text(path, MAX_TASK).map_err(|e| Error::io(path, e))?;
    let file: File = toml::from_str(&text).map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let kind = match (&file.choices, &file.generate) {
        (Some(_), None) => Kind::Choice(ChoiceMetrics::AccuracyAndNormalised),
        (None, Some(g)) => Kind::Generate(generate(g)?),
        _ => {
            return Err(Error::Invalid(format!(
                "{}: a task has either `choices` or a section [generate]",
                path.display()
            )));
        }
    };
    let templates = Templates::new(&file, path)?;
    let shots = match &file.fewshot {
        Some(name) => templates.shots(&directory.join(name))?,
        None => Vec::new(),
    };
    let items = templates.items(&directory.join(&file.data))?;
    if items.is_empty() {
        return Err(Error::Invalid(format!("{}: no rows", directory.join(&file.data).display())));
    }
    Ok(Task {
        alias: file.name.clone(),
        name: file.name,
        version: 1.0,
        groups: Vec::new(),
        description: file.description,
        target_delimiter: file.target_delimiter,
        fewshot_delimiter: file.fewshot_delimiter,
        shots,
        sampler: Sampler::First,
        default_shots: file.num_fewshot,
        items,
        kind,
    })
}

fn generate(file: &Generation) -> Result<Generate> {
    let filters: Vec<Filter> = file
        .filter
        .iter()
        .map(|f| Filter::regex(&f.name, &f.regex, if f.last { Which::Last } else { Which::First }))
        .collect::<Result<_>>()?;
    let ignore: Vec<&str> = file.ignore.iter().map(String::as_str).collect();
    Ok(Generate {
        until: file.until.clone(),
        max_tokens: file.max_tokens,
        filters: match (filters.is_empty(), file.metric) {
            (false, _) => filters,
            (true, Metric::ExactMatch) => vec![Filter::plain("none", Step::Strip)],
            (true, Metric::Math | Metric::Code) => vec![Filter::plain("none", Step::None)],
        },
        judge: match file.metric {
            Metric::Math => Judge::Math,
            Metric::Code => Judge::Code(CodeMetric::PassAtK),
            Metric::ExactMatch => Judge::ExactMatch(ExactMatch {
                ignore: ExactMatch::ignoring(&ignore)?,
                ignore_case: file.ignore_case,
                ignore_punctuation: file.ignore_punctuation,
            }),
        },
    })
}

/// The templates of a file, which name the file in their errors.
struct Templates<'f> {
    environment: Environment<'f>,
    file: &'f File,
}

impl<'f> Templates<'f> {
    fn new(file: &'f File, path: &Path) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::Invalid(e.to_string()))?);
        let mut sources = vec![("prompt", &file.prompt), ("answer", &file.answer)];
        if let Some(Choices::Template(choices)) = &file.choices {
            sources.push(("choices", choices));
        }
        for (name, source) in sources {
            environment
                .add_template(name, source)
                .map_err(|e| Error::Invalid(format!("{}: {name}: {e}", path.display())))?;
        }
        Ok(Self { environment, file })
    }

    fn text(&self, name: &str, row: &Value) -> Result<String, String> {
        let template = self.environment.get_template(name).map_err(|e| e.to_string())?;
        template.render(Serde(row)).map_err(|e| format!("{name}: {e}"))
    }

    /// The value of a template that is one expression, or of its text read as JSON.
    fn list(&self, name: &str, source: &str, row: &Value) -> Result<Option<Vec<String>>, String> {
        let inner = source.trim().strip_prefix("{{").and_then(|s| s.strip_suffix("}}"));
        let Some(expression) = inner.filter(|e| !e.contains("{{")) else { return Ok(None) };
        let value = self.environment.compile_expression(expression).map_err(|e| format!("{name}: {e}"))?;
        let value = value.eval(Serde(row)).map_err(|e| format!("{name}: {e}"))?;
        if value.kind() != minijinja::value::ValueKind::Seq {
            return Ok(None);
        }
        let items = value.try_iter().map_err(|e| format!("{name}: {e}"))?;
        Ok(Some(items.map(|v| v.to_string()).collect()))
    }

    fn item(&self, row: Value) -> Result<Item, String> {
        let choices = match &self.file.choices {
            None => Vec::new(),
            Some(Choices::Fixed(choices)) => choices.clone(),
            Some(Choices::Template(source)) => {
                self.list("choices", source, &row)?.ok_or("choices: the template must give a list")?
            }
        };
        let gold = match (&self.file.choices, &self.file.generate) {
            (Some(_), _) => Gold::Index(index(&self.text("answer", &row)?, &choices)?),
            (None, Some(Generation { metric: Metric::Code, .. })) => Gold::Tests(self.text("answer", &row)?),
            (None, Some(Generation { metric: Metric::Math, .. })) => {
                Gold::Text(super::math::normalise(&self.text("answer", &row)?))
            }
            (None, _) => match self.list("answer", &self.file.answer, &row)? {
                Some(accepted) => Gold::AnyOf(accepted),
                None => Gold::Text(self.text("answer", &row)?),
            },
        };
        Ok(Item { question: self.text("prompt", &row)?, choices, gold, row })
    }

    fn items(&self, path: &Path) -> Result<Vec<Item>> {
        let rows: Vec<(usize, Value)> = rows::read_data(path)?;
        rows.into_iter().map(|(line, row)| self.item(row).map_err(|e| Error::row(path, line, e))).collect()
    }

    fn shots(&self, path: &Path) -> Result<Vec<Shot>> {
        let shot = |item: Item| Shot {
            answer: match &item.gold {
                Gold::Index(i) => item.choices.get(*i).cloned().unwrap_or_default(),
                Gold::AnyOf(accepted) => accepted.first().cloned().unwrap_or_default(),
                Gold::Text(text) | Gold::Tests(text) => text.clone(),
                Gold::Labels(_) => String::new(),
            },
            question: item.question,
        };
        Ok(self.items(path)?.into_iter().map(shot).collect())
    }
}

/// An index from 0, or the text of a choice.
fn index(answer: &str, choices: &[String]) -> Result<usize, String> {
    let answer = answer.trim();
    let found = choices.iter().position(|c| c == answer);
    found.or_else(|| answer.parse().ok().filter(|i| *i < choices.len())).ok_or_else(|| {
        format!("answer: {answer:?} is neither a choice nor the index of one of {}", choices.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(file: &str, rows: &str) -> Result<Task> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.toml");
        std::fs::write(&path, file).unwrap();
        std::fs::write(directory.path().join("rows.jsonl"), rows).unwrap();
        read(&path)
    }

    const HEAD: &str = "name = \"t\"\ndata = \"rows.jsonl\"\nprompt = \"Q: {{ q }}\\nA:\"\n";

    #[test]
    fn tasks_are_read() {
        let choice = format!("{HEAD}answer = \"{{{{ a }}}}\"\nchoices = \"{{{{ options }}}}\"\n");
        let found = task(&choice, "{\"q\":\"x\",\"a\":1,\"options\":[\"u\",\"v\"]}\n").unwrap();
        assert_eq!(found.items[0].question, "Q: x\nA:");
        assert_eq!(found.items[0].choices, ["u", "v"]);
        assert_eq!(found.items[0].gold, Gold::Index(1));
        let generated = format!(
            "{HEAD}answer = \"{{{{ a }}}}\"\n[generate]\nuntil = []\nmax_tokens = 5\nmetric = \"exact_match\"\n"
        );
        let found =
            task(&generated, "{\"q\":\"x\",\"a\":[\"u\",\"v\"]}\n{\"q\":\"y\",\"a\":\"w\"}\n").unwrap();
        assert_eq!(found.items[0].gold, Gold::AnyOf(vec!["u".into(), "v".into()]));
        assert_eq!(found.items[1].gold, Gold::Text("w".into()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_neither_tasks_nor_rows_nor_examples() {
        let told = |result: Result<Task>| result.unwrap_err().to_string();
        let choice = "answer = \"{{ a }}\"\nchoices = [\"u\", \"v\"]\n";
        let row = "{\"q\":\"x\",\"a\":\"u\"}\n";
        for (file, rows) in [
            (format!("{HEAD}{choice}fewshot = \"/dev/zero\"\n"), row),
            (format!("{}{choice}", HEAD.replace("rows.jsonl", "/dev/zero")), row),
        ] {
            let message = told(task(&file, rows));
            assert!(message.contains("/dev/zero: is a device"), "{message}");
        }
        assert!(told(read(Path::new("/dev/zero"))).contains("is a device"));
        assert_eq!(
            task(&format!("\u{feff}{HEAD}{choice}"), &format!("\u{feff}{row}")).unwrap().items.len(),
            1
        );
    }

    #[test]
    fn mistakes_are_named() {
        let check = |file: &str, rows: &str, expected: &str| {
            let error = task(file, rows).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let choice = format!("{HEAD}answer = \"{{{{ a }}}}\"\nchoices = [\"u\", \"v\"]\n");
        check(&choice, "{\"q\":\"x\",\"a\":2}\n", "rows.jsonl:1: answer: \"2\" is neither");
        check(&choice, "{\"a\":1}\n", "rows.jsonl:1: prompt: ");
        check(&choice, "\n", "no rows");
        check(&choice, "{", "rows.jsonl:1: ");
        check(&format!("{HEAD}answer = \"a\"\n"), "", "either `choices` or a section");
        check(&format!("{HEAD}answer = \"a\"\ncolour = 1\n"), "", "unknown field `colour`");
    }
}
