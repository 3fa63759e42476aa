//! From responses to measures.

use super::{
    cache::Answer,
    filter::Filter,
    math,
    metric::pass_at_k,
    run::{Argument, Attempts, Sample},
    task::{CodeMetric, Generate, Gold, Judge, Kind, Task},
};
use crate::{
    Error, Result,
    sandbox::{Program, Sandbox},
};

/// Whether the task needs a sandbox.
pub(super) fn runs_code(task: &Task) -> bool {
    matches!(&task.kind, Kind::Generate(Generate { judge: Judge::Code(_), .. }))
}

/// The samples of a task, filter by filter.
pub(super) fn judge(
    task: &Task,
    rows: &[usize],
    arguments: Vec<Vec<(String, Argument)>>,
    responses: Vec<Vec<Answer>>,
    attempts: &Attempts,
    sandbox: Option<&Sandbox>,
) -> Result<Vec<Sample>> {
    let asked: Vec<Asked> = rows
        .iter()
        .zip(arguments)
        .zip(responses)
        .map(|((&doc_id, arguments), responses)| Asked { doc_id, arguments, responses })
        .collect();
    match &task.kind {
        Kind::Choice(metrics) => Ok(asked
            .into_iter()
            .map(|asked| {
                let item = &task.items[asked.doc_id];
                let scores: Vec<f64> = asked.responses.iter().map(log_likelihood).collect();
                let values = metrics.score(&scores, &item.choices, &item.gold);
                let names = metrics.names().iter().map(ToString::to_string);
                asked.sample("none", Vec::new(), names.zip(values).collect())
            })
            .collect()),
        Kind::Generate(generate) => {
            let mut samples = Vec::new();
            for filter in &generate.filters {
                samples.extend(filtered(task, &asked, filter, &generate.judge, attempts, sandbox)?);
            }
            Ok(samples)
        }
    }
}

#[derive(Clone)]
struct Asked {
    doc_id: usize,
    arguments: Vec<(String, Argument)>,
    responses: Vec<Answer>,
}

impl Asked {
    fn sample(self, filter: &str, answers: Vec<String>, metrics: Vec<(String, f64)>) -> Sample {
        let Self { doc_id, arguments, responses } = self;
        Sample { doc_id, filter: filter.into(), arguments, responses, answers, metrics }
    }

    /// The filter's answer to each attempt. The prompt that code continues is the item's own, without worked examples or turns.
    fn answers(&self, task: &Task, filter: &Filter) -> Vec<String> {
        let question = &task.items[self.doc_id].question;
        self.responses.iter().map(|r| filter.apply(text(r), question)).collect()
    }
}

fn log_likelihood(answer: &Answer) -> f64 {
    match answer {
        Answer::Score { log_likelihood, .. } => *log_likelihood,
        Answer::Text { .. } => f64::NEG_INFINITY,
    }
}

fn text(answer: &Answer) -> &str {
    match answer {
        Answer::Text { text } => text,
        Answer::Score { .. } => "",
    }
}

fn filtered(
    task: &Task,
    asked: &[Asked],
    filter: &Filter,
    judge: &Judge,
    attempts: &Attempts,
    sandbox: Option<&Sandbox>,
) -> Result<Vec<Sample>> {
    if let Judge::Code(metric) = judge {
        let sandbox = sandbox.ok_or_else(|| Error::Sandbox("generated code cannot be run here".into()))?;
        return executed(task, asked, filter, *metric, attempts, sandbox);
    }
    let sample = |asked: &Asked| {
        let answers = asked.answers(task, filter);
        let answer = answers.first().map(String::as_str).unwrap_or_default();
        let gold = &task.items[asked.doc_id].gold;
        let value = match (judge, gold) {
            (Judge::ExactMatch(metric), Gold::Text(gold)) => metric.score(answer, std::slice::from_ref(gold)),
            (Judge::ExactMatch(metric), Gold::AnyOf(accepted)) => metric.score(answer, accepted),
            (Judge::Math, Gold::Text(gold)) => {
                let found = math::final_answer(answer).map(|f| math::normalise(&f)).unwrap_or_default();
                f64::from(u8::from(math::equal(&found, gold)))
            }
            _ => 0.0,
        };
        asked.clone().sample(&filter.name, answers, vec![("exact_match".into(), value)])
    };
    Ok(asked.iter().map(sample).collect())
}

/// Runs every attempt with the item's tests behind it.
fn executed(
    task: &Task,
    asked: &[Asked],
    filter: &Filter,
    metric: CodeMetric,
    attempts: &Attempts,
    sandbox: &Sandbox,
) -> Result<Vec<Sample>> {
    let answers: Vec<Vec<String>> = asked.iter().map(|a| a.answers(task, filter)).collect();
    let tests = |a: &Asked| match &task.items[a.doc_id].gold {
        Gold::Tests(tests) => tests.clone(),
        _ => String::new(),
    };
    let programs: Vec<Program> = asked
        .iter()
        .zip(&answers)
        .flat_map(|(a, answers)| {
            answers.iter().map(move |code| Program { code: code.clone(), tests: tests(a) })
        })
        .collect();
    let mut passed = vec![false; programs.len()];
    sandbox.run_all(&programs, |i, outcome| passed[i] = outcome.passed())?;
    let mut passed = passed.into_iter();
    let samples = asked.iter().zip(answers).map(|(asked, answers)| {
        let n = answers.len();
        let correct = passed.by_ref().take(n).filter(|p| *p).count();
        let name = |k: usize| match metric {
            CodeMetric::PassAt1 if k == 1 => "pass_at_1".to_string(),
            _ => format!("pass@{k}"),
        };
        let metrics = attempts.pass_at.iter().map(|&k| (name(k), pass_at_k(n, correct, k))).collect();
        asked.clone().sample(&filter.name, answers, metrics)
    });
    Ok(samples.collect())
}
