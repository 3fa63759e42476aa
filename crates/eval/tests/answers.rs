//! How answers are read: what stands in responses beside what is right, and whose reading decides (`answers/cases.jsonl`).
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use mixse_eval::answers::{Verdict, judge};
use mixse_selfmoe::record::{Answer, Example};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: Kind,
    /// The right answer.
    gold: String,
    /// The item's input: the options of a choice.
    #[serde(default)]
    input: String,
    response: String,
    /// Whether the response gives the right answer.
    right: bool,
    /// Who reads it so.
    source: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Number,
    Choice,
    Text,
}

#[test]
fn responses_are_read_as_their_sources_say() {
    let cases: Vec<Case> =
        include_str!("answers/cases.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(cases.len() >= 300);
    let mut wrong = Vec::new();
    for Case { kind, gold, input, response, right, source } in &cases {
        assert!(!source.is_empty());
        let answer = match kind {
            Kind::Number => Answer::Number { value: gold.clone(), expression: None },
            Kind::Choice => Answer::Choice { letter: gold.chars().next().unwrap() },
            Kind::Text => Answer::Text { accept: vec![gold.clone()] },
        };
        let item = Example {
            id: "case".into(),
            instruction: String::new(),
            input: input.clone(),
            output: String::new(),
            answer: Some(answer),
        };
        match judge(&item, response) {
            Verdict::Decided { correct, .. } if correct == *right => {}
            verdict => wrong.push(format!("{response:?} for {gold:?} ({source}): {verdict:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
