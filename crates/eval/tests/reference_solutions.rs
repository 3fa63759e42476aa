//! The sandbox against plain Python on the reference solutions of public benchmarks and on broken versions of them. These
//! tests are about running Python: they need `python3`, and the benchmarks' rows beside the project.
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mixse_eval::{
    sandbox::{Launcher, Limits, Policy, Program, Sandbox},
    tasks::{
        run::{Settings, load},
        task::{Gold, Item},
    },
};

/// The function that a solution defines first is replaced by one that answers nothing.
const ANSWERS_NOTHING: &str = "\n_names = [n for n, v in list(globals().items()) if callable(v) and getattr(v, '__code__', None)]\nfor _n in _names: globals()[_n] = lambda *a, **k: None\n";

fn data() -> Option<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    data.is_dir().then_some(data)
}

fn sandbox() -> Option<Sandbox> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_mixse-sandbox-child"));
    Sandbox::open(Launcher { program, args: Vec::new() }, Limits::default(), Policy::RequireMinimum).ok()
}

/// The items of a benchmark with their reference solutions, as a program without the tests.
fn solutions(task: &str, solution: impl Fn(&Item) -> String) -> Option<Vec<(String, String)>> {
    let settings = Settings { tasks: vec![task.into()], bench_data: Some(data()?), ..Settings::default() };
    let planned = load(&settings).unwrap().remove(0);
    let with_tests = |item: &Item| match &item.gold {
        Gold::Tests(tests) => (solution(item), tests.clone()),
        other => panic!("no tests: {other:?}"),
    };
    Some(planned.task.items.iter().map(with_tests).collect())
}

fn text(item: &Item, key: &str) -> String {
    item.row[key].as_str().unwrap().to_owned()
}

/// The programs' verdicts: whether each ran to its end.
fn in_sandbox(sandbox: &Sandbox, programs: &[Program]) -> Vec<bool> {
    let mut passed = vec![false; programs.len()];
    sandbox.run_all(programs, |i, outcome| passed[i] = outcome.passed()).unwrap();
    passed
}

fn in_plain_python(sandbox: &Sandbox, program: &Program) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("program.py");
    fs::write(&file, format!("{}\n{}", program.code, program.tests)).unwrap();
    let python = &sandbox.python().executable;
    let status = Command::new(python).arg(&file).stdin(Stdio::null()).stderr(Stdio::null()).status();
    status.unwrap().success()
}

fn check(task: &str, solution: impl Fn(&Item) -> String) {
    let (Some(sandbox), Some(rows)) = (sandbox(), solutions(task, solution)) else { return };
    let program = |code: &str, tests: &str| Program { code: code.to_owned(), tests: tests.to_owned() };
    let whole: Vec<Program> = rows.iter().map(|(code, tests)| program(code, tests)).collect();
    // A few rows need definitions that only a field beside the tests holds, which the usual graders leave out as we do.
    let verdicts = in_sandbox(&sandbox, &whole);
    let failed: Vec<&Program> =
        whole.iter().zip(verdicts).filter(|(_, passed)| !passed).map(|(p, _)| p).collect();
    for program in &failed {
        assert!(!in_plain_python(&sandbox, program), "{task}: only the sandbox refuses {program:?}");
    }
    assert!(failed.len() * 100 <= whole.len(), "{task}: {} of {} references fail", failed.len(), whole.len());

    // Broken ones: no answer, and only the first half of the code. Every eighth row is enough to see both verdicts often.
    let broken: Vec<Program> = rows
        .iter()
        .step_by(8)
        .flat_map(|(code, tests)| {
            let half: String = code.chars().take(code.chars().count() / 2).collect();
            [program(&format!("{code}\n{ANSWERS_NOTHING}"), tests), program(&half, tests)]
        })
        .collect();
    let verdicts = in_sandbox(&sandbox, &broken);
    for (program, passed) in broken.iter().zip(&verdicts) {
        assert_eq!(*passed, in_plain_python(&sandbox, program), "{task}: {program:?}");
    }
    let failing = verdicts.iter().filter(|passed| !**passed).count();
    assert!(failing > broken.len() / 2, "{task}: {failing} of {} broken programs fail", broken.len());
}

#[test]
fn humaneval() {
    check("humaneval", |item| item.question.clone() + &text(item, "canonical_solution"));
}

#[test]
fn mbpp() {
    check("mbpp", |item| text(item, "code"));
}
