//! The built-in domains hold what they promise. The tests of coding items are about running Python: without `python3` they say
//! so and check nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault in a test's own support is a panic")]

use std::path::PathBuf;

use mixse_eval::{
    answers::{self, Verdict},
    sandbox::{Launcher, Limits, Outcome, Policy, Program, Sandbox},
};
use mixse_selfmoe::{
    answer::{choice, number, text},
    domain::{self, Domain},
    record::{Answer, Example},
    rouge, verify,
};

fn domains() -> impl Iterator<Item = Domain> {
    domain::built_in_names().map(|name| domain::find(name).unwrap())
}

/// Both sets of a domain with their names.
fn sets(domain: &Domain) -> [(String, &[Example]); 2] {
    [
        (format!("{} seeds", domain.name()), &domain.seeds),
        (format!("{} check set", domain.name()), &domain.check),
    ]
}

fn asked(item: &Example) -> String {
    format!("{}\n{}", item.instruction, item.input)
}

#[test]
fn there_are_a_hundred_seeds_and_check_items() {
    for domain in domains() {
        for (set, items) in sets(&domain) {
            assert_eq!(items.len(), 100, "{set}");
            assert!(items.iter().all(|item| item.answer.is_some()), "{set}: an item has no answer");
        }
    }
}

#[test]
fn reference_outputs_are_judged_right() {
    for item in domains().flat_map(|d| [d.seeds, d.check].concat()) {
        match answers::judge(&item, &item.output) {
            Verdict::Decided { correct, .. } => assert!(correct, "{}: {}", item.id, item.output),
            // Run below.
            Verdict::Run { .. } => {}
        }
    }
}

#[test]
fn numbers_are_recomputed() {
    for domain in domains() {
        for item in domain.seeds.iter().chain(&domain.check) {
            let Some(Answer::Number { value, expression }) = &item.answer else { continue };
            assert_eq!(verify::false_equation(&item.output), None, "{}", item.id);
            let Some(expression) = expression else {
                assert_ne!(domain.name(), "math", "{}: no expression that gives the answer", item.id);
                continue;
            };
            // A bare number stands where there is nothing to calculate, as in "which one is larger?".
            let computed = verify::evaluate(expression).or_else(|| number::value(expression));
            let (computed, stated) = (computed.expect(expression), number::value(value).expect(value));
            assert!((computed - stated).abs() < 1e-9, "{}: {expression} is {computed}, not {value}", item.id);
        }
    }
}

#[test]
fn multiple_choice_has_one_right_option_and_balanced_letters() {
    for domain in domains() {
        for (set, items) in sets(&domain) {
            let mut letters = [0; 4];
            for item in items {
                let Some(Answer::Choice { letter }) = item.answer else { continue };
                let options = choice::options(&item.input);
                let mut texts: Vec<String> =
                    options.iter().map(|(_, option)| text::normalise(option)).collect();
                texts.sort();
                texts.dedup();
                assert_eq!((options.len(), texts.len()), (4, 4), "{}: four different options", item.id);
                letters[usize::from(letter as u8 - b'A')] += 1;
            }
            let (least, most) = (letters.iter().min().unwrap(), letters.iter().max().unwrap());
            assert!(most - least <= 1, "{set}: letters A to D are right {letters:?} times");
        }
    }
}

#[test]
fn no_check_item_is_close_to_a_seed_or_another() {
    for domain in domains() {
        for (i, item) in domain.check.iter().enumerate() {
            for seed in &domain.seeds {
                let similarity = rouge::rouge_l(&asked(item), &asked(seed));
                assert!(similarity < 0.7, "{} and {}: ROUGE-L {similarity:.2}", item.id, seed.id);
            }
            for other in &domain.check[..i] {
                let similarity = rouge::rouge_l(&asked(item), &asked(other));
                assert!(similarity < 0.9, "{} and {}: ROUGE-L {similarity:.2}", item.id, other.id);
            }
        }
    }
}

/// The sandbox, or `None` with a message where there is no Python or the system does not offer one.
fn sandbox() -> Option<Sandbox> {
    let launcher =
        Launcher { program: PathBuf::from(env!("CARGO_BIN_EXE_mixse-sandbox-child")), args: Vec::new() };
    Sandbox::open(launcher, Limits::default(), Policy::RequireMinimum)
        .map_err(|e| eprintln!("coding items are not run: {e}"))
        .ok()
}

/// The program that decides about a response.
fn program(item: &Example, response: &str) -> Program {
    match answers::judge(item, response) {
        Verdict::Run { program, .. } => program,
        Verdict::Decided { .. } => panic!("{}: no code in {response}", item.id),
    }
}

/// Coding items of all sets with the functions that they ask for.
fn coding() -> Vec<(Example, String)> {
    let items = domains().flat_map(|d| [d.seeds, d.check].concat());
    items
        .filter_map(|item| match item.answer.clone() {
            Some(Answer::Code { entry_point, .. }) => Some((item, entry_point)),
            _ => None,
        })
        .collect()
}

#[test]
fn coding_references_pass_their_tests() {
    let Some(sandbox) = sandbox() else { return };
    let items = coding();
    assert_eq!(items.len(), 200);
    std::thread::scope(|scope| {
        for half in items.chunks(items.len() / 2) {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for (item, _) in half {
                    let outcome = sandbox.run(&program(item, &item.output)).unwrap();
                    assert_eq!(outcome, Outcome::Passed, "{}", item.id);
                }
            });
        }
    });
}

#[test]
fn coding_tests_do_not_accept_anything() {
    let Some(sandbox) = sandbox() else { return };
    let mut all = String::new();
    for (item, entry_point) in coding() {
        let stub = program(&item, &format!("def {entry_point}(*args):\n    return object()"));
        // A JSON text is a Python text as well.
        let stub = serde_json::to_string(&format!("{}\n\n{}", stub.code, stub.tests)).unwrap();
        let id = &item.id;
        all += &format!(
            "try:\n    exec({stub}, {{}})\nexcept Exception:\n    pass\nelse:\n    assert False, '{id}'\n"
        );
    }
    assert_eq!(sandbox.run(&Program::without_tests(&all)).unwrap(), Outcome::Passed);
}
