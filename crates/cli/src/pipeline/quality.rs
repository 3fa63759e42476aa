//! Figures about each domain's rows: how varied they are, and whether they hold evaluation text.

use std::{fs, path::Path};

use anyhow::Context;
use mixse_model::tokenizer::Bos;
use mixse_selfmoe::{
    domain::Domain,
    jsonl,
    plan::{Input, Task, Work},
    quality::{self, DomainQuality, FileOverlap, Spread},
    record::{Example, SyntheticRow},
};
use serde_json::Value;

use super::{Pipeline, TaskResult, Watch, files, value_input, write_pretty};

/// Texts whose hidden states are compared, at most: evenly chosen ones.
const MAX_EMBEDDED: usize = 500;
/// Tokens of a text that are looked at.
const MAX_TOKENS: usize = 256;
/// The most bytes of a benchmark's file.
const MAX_BENCHMARK: u64 = 4 << 30;

impl Pipeline {
    pub(super) fn quality_task<'a>(&'a self, domain: &'a Domain) -> Task<'a> {
        let name = domain.name();
        let check: Vec<_> = self.domains.iter().map(|other| (other.name(), &other.check)).collect();
        Task::new(
            format!("quality/{name}"),
            vec![
                self.model_input(),
                Input::Task(format!("assemble/{name}")),
                value_input("check sets", &check),
                value_input("seeds", &domain.seeds),
            ],
            vec![files::quality(name)],
            move |work| self.describe(domain, work),
        )
    }

    fn describe(&self, domain: &Domain, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let rows: Vec<SyntheticRow> = jsonl::read(&work.run().join(files::rows(name)))?;
        let tasks: Vec<String> = rows.iter().map(|row| task(&row.instruction, &row.input)).collect();
        let seeds: Vec<String> =
            domain.seeds.iter().map(|seed| task(&seed.instruction, &seed.input)).collect();
        let (tasks, seeds) = (some_of(&tasks), some_of(&seeds));
        let mut watch = Watch::new(work, &format!("quality {name}"), "texts", tasks.len() + seeds.len());
        let mut done = 0;
        let mut spread = |texts: &[&String]| -> anyhow::Result<Spread> {
            let mut embeddings = Vec::with_capacity(texts.len());
            for text in texts {
                let (embedding, tokens) = self.embedding(text)?;
                embeddings.push(embedding);
                done += 1;
                if watch.at(done, tokens as u64).is_break() {
                    break;
                }
            }
            Ok(Spread::of(&embeddings))
        };
        let (spread, seed_spread) = (spread(&tasks)?, spread(&seeds)?);
        watch.finish()?;
        let overlaps = self.domains.iter().map(|other| check_overlap(&rows, other)).collect();
        let found = DomainQuality {
            domain: name.to_owned(),
            quality: quality::quality(&rows),
            spread,
            seed_spread,
            overlaps,
        };
        Ok(write_pretty(&work.output(files::quality(name))?, &found)?)
    }

    /// The mean of a text's final hidden states in the base, `[d]`, and the tokens it took.
    fn embedding(&self, text: &str) -> anyhow::Result<(Vec<f32>, usize)> {
        let mut ids = self.models.tokenizer()?.encode(text, Bos::Model)?;
        ids.truncate(MAX_TOKENS);
        Ok((self.models.engine()?.mean_hidden(&ids)?, ids.len()))
    }
}

fn task(instruction: &str, input: &str) -> String {
    format!("{instruction}\n{input}").trim_end().to_owned()
}

/// At most [`MAX_EMBEDDED`] of the texts, evenly chosen.
fn some_of(texts: &[String]) -> Vec<&String> {
    let step = texts.len().div_ceil(MAX_EMBEDDED).max(1);
    texts.iter().step_by(step).collect()
}

fn check_overlap(rows: &[SyntheticRow], domain: &Domain) -> FileOverlap {
    let text = |item: &Example| format!("{}\n{}\n{}", item.instruction, item.input, item.output);
    let items: Vec<(String, String)> =
        domain.check.iter().map(|item| (item.id.clone(), text(item))).collect();
    overlap(rows, format!("{} check set", domain.name()), &items)
}

fn overlap(rows: &[SyntheticRow], file: String, items: &[(String, String)]) -> FileOverlap {
    let pairs = items.iter().map(|(id, text)| (id.as_str(), text.as_str()));
    FileOverlap { file, items: items.len(), overlaps: quality::contamination(rows, pairs) }
}

/// Shared text of `rows` with every `*.jsonl` file of a directory of benchmarks: all texts of a line are an item, named by its
/// line.
///
/// # Errors
/// The directory or a file cannot be read; a line is not JSON.
pub(super) fn benchmark_overlaps(
    rows: &[SyntheticRow],
    directory: &Path,
) -> anyhow::Result<Vec<FileOverlap>> {
    let listed = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = mixse_files::read_text(path, MAX_BENCHMARK)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let mut items = Vec::new();
            for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
                let row: Value = serde_json::from_str(line)
                    .with_context(|| format!("{}, line {number}: not JSON", path.display()))?;
                let mut found = String::new();
                texts(&row, &mut found);
                items.push((format!("line {number}"), found));
            }
            Ok(overlap(rows, file, &items))
        })
        .collect()
}

/// Every text in a JSON value, one a line.
fn texts(value: &Value, found: &mut String) {
    match value {
        Value::String(text) => {
            found.push_str(text);
            found.push('\n');
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(map) => map.values().for_each(|item| texts(item, found)),
        _ => {}
    }
}
