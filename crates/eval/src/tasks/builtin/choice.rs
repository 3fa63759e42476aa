//! Benchmarks that are scored by the probabilities of given choices.

use serde_json::Value;

use super::{BenchData, Row};
use crate::{
    Result,
    tasks::{
        filter::compile,
        metric::ChoiceMetrics,
        task::{Gold, Item, Kind, Sampler, Shot, Task},
        text::{capitalize, strip},
    },
};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Subjects of a group; the humanities are what is left.
const STEM: [&str; 19] = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
];
const OTHER: [&str; 13] = [
    "business_ethics",
    "clinical_knowledge",
    "college_medicine",
    "global_facts",
    "human_aging",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "nutrition",
    "professional_accounting",
    "professional_medicine",
    "virology",
];
const SOCIAL_SCIENCES: [&str; 12] = [
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
];

fn mmlu_group(subject: &str) -> &'static str {
    match subject {
        s if STEM.contains(&s) => "mmlu_stem",
        s if OTHER.contains(&s) => "mmlu_other",
        s if SOCIAL_SCIENCES.contains(&s) => "mmlu_social_sciences",
        _ => "mmlu_humanities",
    }
}

/// A task per subject, in alphabetical order.
pub(super) fn mmlu(data: &BenchData) -> Result<Vec<Task>> {
    let question = |row: &Row| {
        let choices = row.texts("choices")?;
        if choices.len() != LETTERS.len() {
            return Err(format!("4 choices are needed, there are {}", choices.len()));
        }
        let options: String = LETTERS.iter().zip(&choices).map(|(l, c)| format!("\n{l}. {c}")).collect();
        Ok(format!("{}{options}\nAnswer:", strip(&row.text("question")?)))
    };
    let item = |row: &Row| {
        let item = Item {
            question: question(row)?,
            choices: LETTERS.map(String::from).to_vec(),
            gold: Gold::Index(row.choice("answer", LETTERS.len())?),
            row: row.0.clone(),
        };
        Ok((row.text("subject")?, item))
    };
    let shot = |row: &Row| {
        let answer = LETTERS[row.choice("answer", LETTERS.len())?].into();
        Ok((row.text("subject")?, Shot { question: question(row)?, answer }))
    };
    let shots = data.rows("fewshot/mmlu_dev_5shot.jsonl", shot)?;
    let mut tasks: Vec<Task> = Vec::new();
    for (subject, item) in data.rows("mmlu.jsonl", item)? {
        let name = format!("mmlu_{subject}");
        match tasks.iter_mut().find(|t| t.name == name) {
            Some(task) => task.items.push(item),
            None => tasks.push(Task {
                name,
                version: 1.0,
                groups: vec!["mmlu", mmlu_group(&subject)],
                description: format!(
                    "The following are multiple choice questions (with answers) about {}.\n\n",
                    subject.replace('_', " ")
                ),
                shots: shots.iter().filter(|(s, _)| *s == subject).map(|(_, shot)| shot.clone()).collect(),
                items: vec![item],
                alias: subject,
                ..task(ChoiceMetrics::Accuracy)
            }),
        }
    }
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tasks)
}

/// What most of these tasks have in common.
fn task(metrics: ChoiceMetrics) -> Task {
    Task {
        name: String::new(),
        alias: String::new(),
        version: 1.0,
        groups: Vec::new(),
        description: String::new(),
        target_delimiter: " ".into(),
        fewshot_delimiter: "\n\n".into(),
        shots: Vec::new(),
        sampler: Sampler::First,
        default_shots: 0,
        items: Vec::new(),
        kind: Kind::Choice(metrics),
    }
}

fn named(name: &str, version: f64, metrics: ChoiceMetrics) -> Task {
    Task { name: name.into(), alias: name.into(), version, ..task(metrics) }
}

fn shot(item: &Item) -> Shot {
    let answer = match item.gold {
        Gold::Index(i) => item.choices.get(i).cloned(),
        _ => None,
    };
    Shot { question: item.question.clone(), answer: answer.unwrap_or_default() }
}

/// Rows are prepared ones (`query`, `choices`, `answer`) or the official ones (`activity_label`, `ctx_a`, `ctx_b`,
/// `endings`, `label`).
pub(super) fn hellaswag(data: &BenchData) -> Result<Task> {
    let brackets = compile(r"\[.*?\]")?;
    let clean = |text: &str| {
        let text = strip(text).replace(" [title]", ". ");
        brackets.replace_all(&text, "").replace("  ", " ")
    };
    let item = |row: &Row| {
        let (question, choices, label) = if row.0.get("query").is_some() {
            (row.text("query")?, row.texts("choices")?, "answer")
        } else {
            let context = format!("{} {}", row.text("ctx_a")?, capitalize(&row.text("ctx_b")?));
            let query = clean(&format!("{}: {context}", row.text("activity_label")?));
            (query, row.texts("endings")?.iter().map(|e| clean(e)).collect(), "label")
        };
        let gold = Gold::Index(row.choice(label, choices.len())?);
        Ok(Item { row: row.0.clone(), question, choices, gold })
    };
    Ok(Task {
        shots: data.shots("hellaswag_10shot.jsonl", |row| Ok(shot(&item(row)?)))?,
        items: data.rows("hellaswag.jsonl", item)?,
        sampler: Sampler::Random,
        ..named("hellaswag", 1.0, ChoiceMetrics::AccuracyAndNormalised)
    })
}

pub(super) fn piqa(data: &BenchData) -> Result<Task> {
    let item = |row: &Row| {
        Ok(Item {
            question: format!("Question: {}\nAnswer:", row.text("goal")?),
            choices: vec![row.text("sol1")?, row.text("sol2")?],
            gold: Gold::Index(row.choice("label", 2)?),
            row: row.0.clone(),
        })
    };
    Ok(Task {
        shots: data.shots("piqa_5shot.jsonl", |row| Ok(shot(&item(row)?)))?,
        items: data.rows("piqa.jsonl", item)?,
        sampler: Sampler::Random,
        ..named("piqa", 1.0, ChoiceMetrics::AccuracyAndNormalised)
    })
}

pub(super) fn truthfulqa_mc1(data: &BenchData) -> Result<Task> {
    let first = |labels: Vec<bool>| match labels.first() {
        Some(true) => Ok(Gold::Index(0)),
        _ => Err("the true answer of \"mc1_targets\" must come first".into()),
    };
    Ok(Task {
        items: truthfulqa(data, "mc1_targets", first)?,
        ..named("truthfulqa_mc1", 2.0, ChoiceMetrics::Accuracy)
    })
}

pub(super) fn truthfulqa_mc2(data: &BenchData) -> Result<Task> {
    Ok(Task {
        items: truthfulqa(data, "mc2_targets", |labels| Ok(Gold::Labels(labels)))?,
        ..named("truthfulqa_mc2", 3.0, ChoiceMetrics::TrueMass)
    })
}

/// The primer is part of every question.
fn truthfulqa(
    data: &BenchData,
    field: &str,
    gold: impl Fn(Vec<bool>) -> Result<Gold, String>,
) -> Result<Vec<Item>> {
    let primer = data.text("truthfulqa_qa_primer.txt")?;
    let primer = primer.trim_end_matches('\n');
    data.rows("truthfulqa.jsonl", |row| {
        let (choices, labels) = answers(field, row.field(field)?)?;
        Ok(Item {
            question: format!("{primer}\n\nQ: {}\nA:", row.text("question")?),
            choices,
            gold: gold(labels)?,
            row: row.0.clone(),
        })
    })
}

/// An object from answer to 1 or 0, or the official pair of lists `choices` and `labels`.
fn answers(field: &str, value: &Value) -> Result<(Vec<String>, Vec<bool>), String> {
    let bad = || format!("{field:?} must map answers to 1 or 0");
    let object = value.as_object().ok_or_else(bad)?;
    let label = |v: &Value| match v.as_u64() {
        Some(1) => Ok(true),
        Some(0) => Ok(false),
        _ => Err(bad()),
    };
    if let (Some(choices), Some(labels)) = (object.get("choices"), object.get("labels")) {
        let labels = labels.as_array().ok_or_else(bad)?.iter().map(label).collect::<Result<Vec<_>, _>>()?;
        let choices: Vec<String> =
            Row(value.clone()).texts("choices").map_err(|e| format!("{e} ({choices})"))?;
        return if choices.len() == labels.len() { Ok((choices, labels)) } else { Err(bad()) };
    }
    let pair = |(k, v): (&String, &Value)| label(v).map(|label| (k.clone(), label));
    let pairs: Vec<(String, bool)> = object.iter().map(pair).collect::<Result<_, String>>()?;
    if pairs.is_empty() { Err(bad()) } else { Ok(pairs.into_iter().unzip()) }
}
