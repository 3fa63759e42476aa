//! Benchmarks that are scored by the text that the model writes.

use super::{BenchData, Row};
use crate::{
    Error, Result,
    tasks::{
        filter::{Filter, Step, Which},
        math,
        metric::ExactMatch,
        task::{CodeMetric, Generate, Gold, Item, Judge, Kind, Sampler, Shot, Task},
        text::strip,
    },
};

/// The harness's limit where a task names none.
const MAX_TOKENS: usize = 256;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn task(name: &str, version: f64, generate: Generate) -> Task {
    Task {
        name: name.into(),
        alias: name.into(),
        version,
        groups: Vec::new(),
        description: String::new(),
        target_delimiter: " ".into(),
        fewshot_delimiter: "\n\n".into(),
        shots: Vec::new(),
        sampler: Sampler::First,
        default_shots: 0,
        items: Vec::new(),
        kind: Kind::Generate(generate),
    }
}

fn item(row: &Row, question: String, gold: Gold) -> Item {
    Item { row: row.0.clone(), question, choices: Vec::new(), gold }
}

pub(super) fn gsm8k_cot(data: &BenchData) -> Result<Task> {
    let generate = Generate {
        until: texts(&["Q:", "</s>", "<|im_end|>"]),
        max_tokens: MAX_TOKENS,
        filters: vec![
            Filter::regex("strict-match", r"The answer is (\-?[0-9\.\,]+).", Which::First)?,
            Filter::regex("flexible-extract", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", Which::Last)?,
        ],
        judge: Judge::ExactMatch(ExactMatch {
            // The last one is Python's `\.$`, which also matches before a final line break.
            ignore: ExactMatch::ignoring(&[",", r"\$", r"(?s).*#### ", r"\.(?=\n?\z)"])?,
            ignore_case: true,
            ignore_punctuation: false,
        }),
    };
    Ok(Task {
        shots: gsm8k_shots(&data.text("gsm8k_cot_8shot_prompt.txt")?)?,
        default_shots: 8,
        items: data.rows("gsm8k.jsonl", |row| {
            let answer = row.text("answer")?;
            let gold = answer.rsplit("####").next().unwrap_or_default();
            let question = format!("Q: {}\nA:", row.text("question")?);
            Ok(item(row, question, Gold::Text(strip(gold).into())))
        })?,
        ..task("gsm8k_cot", 3.0, generate)
    })
}

/// The published prompt: blocks of `Question: …` and `Answer: …`.
fn gsm8k_shots(text: &str) -> Result<Vec<Shot>> {
    let shot = |block: &str| {
        let (question, answer) = block.strip_prefix("Question: ")?.split_once("\nAnswer: ")?;
        Some(Shot { question: format!("Q: {question}\nA:"), answer: answer.into() })
    };
    let shots: Option<Vec<Shot>> = text.trim_end().split("\n\n").map(shot).collect();
    shots.ok_or_else(|| {
        Error::Invalid("gsm8k_cot_8shot_prompt.txt: blocks of \"Question: …\\nAnswer: …\" are needed".into())
    })
}

/// What follows a question, on a line of its own.
const THINK: &str = "A: Let's think step by step.";

/// A task per kind of problem, in alphabetical order.
pub(super) fn bbh(data: &BenchData) -> Result<Vec<Task>> {
    let prompts = data.rows("fewshot/bbh_cot_3shot.jsonl", |row| {
        let (description, shots) = bbh_prompt(&row.text("prompt")?).ok_or(
            "the prompt must be a description and examples \"Q: …\\nA: Let's think step by step. …\"",
        )?;
        Ok((row.text("task")?, description, shots))
    })?;
    let rows = data.rows("bbh.jsonl", |row| {
        let question = format!("Q: {}\n{THINK}\n", row.text("input")?);
        Ok((row.text("task")?, item(row, question, Gold::Text(row.text("target")?))))
    })?;
    let mut tasks: Vec<Task> = Vec::new();
    for (kind, item) in rows {
        let name = format!("bbh_cot_fewshot_{kind}");
        if let Some(task) = tasks.iter_mut().find(|t| t.name == name) {
            task.items.push(item);
            continue;
        }
        let prompt = prompts.iter().find(|(k, _, _)| *k == kind);
        let (_, description, shots) =
            prompt.ok_or_else(|| Error::Invalid(format!("bbh_cot_3shot.jsonl: no examples for {kind:?}")))?;
        let generate = Generate {
            until: texts(&["</s>", "Q", "\n\n"]),
            max_tokens: 1024,
            filters: vec![Filter::regex("get-answer", "(?<=the answer is )(.*)(?=.)", Which::First)?],
            judge: Judge::ExactMatch(ExactMatch::default()),
        };
        tasks.push(Task {
            groups: vec!["bbh_cot_fewshot"],
            description: description.clone(),
            target_delimiter: String::new(),
            shots: shots.clone(),
            default_shots: 3,
            items: vec![item],
            ..task(&name, 4.0, generate)
        });
    }
    tasks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tasks)
}

/// Takes a published prompt apart: the description with its blank line, and the examples.
fn bbh_prompt(prompt: &str) -> Option<(String, Vec<Shot>)> {
    let mut parts = prompt.trim_end().split("\n\nQ: ");
    let description = format!("{}\n\n", parts.next()?);
    let shots = parts.map(|part| {
        let (question, answer) = part.split_once(THINK)?;
        // Most published prompts go on in the next line, one behind a blank.
        let answer = answer.strip_prefix(['\n', ' '])?;
        Some(Shot { question: format!("Q: {question}{THINK}\n"), answer: answer.into() })
    });
    Some((description, shots.collect::<Option<_>>()?))
}

pub(super) fn humaneval(data: &BenchData) -> Result<Task> {
    let generate = Generate {
        until: texts(&["\nclass", "\ndef", "\n#", "\nif", "\nprint"]),
        max_tokens: 1024,
        filters: vec![Filter::plain("create_test", Step::PrependPrompt)],
        judge: Judge::Code(CodeMetric::PassAtK),
    };
    Ok(Task {
        items: data.rows("humaneval.jsonl", |row| {
            let tests = format!("{}\ncheck({})", row.text("test")?, row.text("entry_point")?);
            Ok(item(row, row.text("prompt")?, Gold::Tests(tests)))
        })?,
        ..task("humaneval", 1.0, generate)
    })
}

pub(super) fn mbpp(data: &BenchData) -> Result<Task> {
    let tests = |row: &Row| {
        let tests = row.texts("test_list")?;
        match tests.get(..3) {
            Some(first) => Ok(first.join("\n")),
            None => Err(format!("\"test_list\" must hold 3 tests, not {}", tests.len())),
        }
    };
    let question = |row: &Row| {
        Ok::<_, String>(format!(
            "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n\
             {}\n[BEGIN]\n",
            row.text("text")?,
            tests(row)?
        ))
    };
    let generate = Generate {
        until: texts(&["[DONE]"]),
        max_tokens: MAX_TOKENS,
        filters: vec![Filter::plain("none", Step::None)],
        judge: Judge::Code(CodeMetric::PassAt1),
    };
    Ok(Task {
        target_delimiter: String::new(),
        shots: data.shots("mbpp_3shot.jsonl", |row| {
            Ok(Shot { question: question(row)?, answer: format!("{}\n[DONE]", row.text("code")?) })
        })?,
        default_shots: 3,
        items: data.rows("mbpp.jsonl", |row| Ok(item(row, question(row)?, Gold::Tests(tests(row)?))))?,
        ..task("mbpp", 1.0, generate)
    })
}

/// Generation, filter and comparison of the open questions.
fn open_question(ignore: &[&str]) -> Result<Generate> {
    Ok(Generate {
        until: texts(&["\n", ".", ","]),
        max_tokens: MAX_TOKENS,
        filters: vec![Filter::plain("remove_whitespace", Step::Strip)],
        judge: Judge::ExactMatch(ExactMatch {
            ignore: ExactMatch::ignoring(ignore)?,
            ignore_case: true,
            ignore_punctuation: true,
        }),
    })
}

/// The first accepted answer is the one that a worked example shows.
fn answered(item: Item) -> Shot {
    let answer = match item.gold {
        Gold::AnyOf(answers) => answers.into_iter().next(),
        _ => None,
    };
    Shot { question: item.question, answer: answer.unwrap_or_default() }
}

/// Rows have `golden_answers`, or the official `answer` with its `aliases`.
pub(super) fn triviaqa(data: &BenchData) -> Result<Task> {
    let item = |row: &Row| {
        let question = format!("Question: {}?\nAnswer:", row.text("question")?);
        let answers = match row.0.get("answer") {
            Some(answer) => Row(answer.clone()).texts("aliases")?,
            None => row.texts("golden_answers")?,
        };
        Ok(item(row, question, Gold::AnyOf(answers)))
    };
    Ok(Task {
        shots: data.shots("triviaqa_5shot.jsonl", |row| Ok(answered(item(row)?)))?,
        items: data.rows("triviaqa.jsonl", item)?,
        sampler: Sampler::Random,
        ..task("triviaqa", 3.0, open_question(&[])?)
    })
}

pub(super) fn nq_open(data: &BenchData) -> Result<Task> {
    let item = |row: &Row| {
        let question = format!("Q: {}?\nA:", row.text("question")?);
        Ok(item(row, question, Gold::AnyOf(row.texts("answer")?)))
    };
    Ok(Task {
        description: "Answer these questions:\n\n".into(),
        fewshot_delimiter: "\n".into(),
        shots: data.shots("nq_open_5shot.jsonl", |row| Ok(answered(item(row)?)))?,
        items: data.rows("nq_open.jsonl", item)?,
        sampler: Sampler::Random,
        ..task("nq_open", 4.0, open_question(&[r"\b(?:The |the |An |A |The |a |an )"])?)
    })
}

pub(super) fn minerva_math(data: &BenchData) -> Result<Task> {
    let question = |row: &Row| Ok::<_, String>(format!("Problem:\n{}\n\nSolution:", row.text("problem")?));
    let generate = Generate {
        until: texts(&["Problem:"]),
        max_tokens: MAX_TOKENS,
        filters: vec![Filter::plain("none", Step::None)],
        judge: Judge::Math,
    };
    let shots = data.shots("math_4shot.jsonl", |row| {
        Ok(Shot { question: question(row)?, answer: row.text("solution")? })
    })?;
    Ok(Task {
        default_shots: shots.len().min(4),
        shots,
        items: data.rows("math.jsonl", |row| {
            let boxed = math::last_boxed(&row.text("solution")?)
                .ok_or("the field \"solution\" must hold its answer in \\boxed{…}")?;
            Ok(item(row, question(row)?, Gold::Text(math::normalise(&boxed))))
        })?,
        ..task("minerva_math", 3.1, generate)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_prompts_are_taken_apart() {
        let prompt = "Do it.\n\nQ: one\nA: Let's think step by step.\nYes. So the answer is 1.\n\nQ: two\nA: Let's think step by step. No.";
        let (description, shots) = bbh_prompt(prompt).unwrap();
        assert_eq!(description, "Do it.\n\n");
        let shot = |q: &str, a: &str| Shot { question: q.into(), answer: a.into() };
        assert_eq!(
            shots,
            [
                shot("Q: one\nA: Let's think step by step.\n", "Yes. So the answer is 1."),
                shot("Q: two\nA: Let's think step by step.\n", "No.")
            ]
        );
        assert_eq!(bbh_prompt("x\n\nQ: no answer"), None);
        let shots = gsm8k_shots("Question: a\nAnswer: b\n\nQuestion: c\nAnswer: d\n").unwrap();
        assert_eq!(shots, [shot("Q: a\nA:", "b"), shot("Q: c\nA:", "d")]);
        assert!(gsm8k_shots("a").is_err());
    }
}
