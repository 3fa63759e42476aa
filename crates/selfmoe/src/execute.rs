//! Code that is confirmed by running it: by tests that the model wrote in another sample, or, where those are of no use, by
//! other sampled solutions that return the same for the tests' calls.
//!
//! A test is *usable* if it calls the function, fails for a function that returns nothing (else it tests nothing), and is passed
//! by at least one solution (else it is more likely wrong than all of them).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    answer,
    confirm::sampled,
    domain::Domain,
    error::{Error, Result},
    filter::{Reason, ResponseFilter},
    follow_up::Written,
    record::SyntheticRow,
    respond::Responded,
    select::Assembly,
};

/// Code that somebody else wrote, and what is asked of it. Where programs run, the two are kept apart: what the tests say is not for
/// the code to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The code, which is run to its end first.
    pub code: String,
    /// Statements that use what the code defines; it passes if their last line is reached. Empty: it is only run.
    pub tests: String,
}

impl Program {
    /// Code that is only run.
    pub fn without_tests(code: &str) -> Self {
        Self { code: code.to_owned(), tests: String::new() }
    }
}

/// What confirmed that a row's code does what is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Confirmation {
    /// Usable tests that the model wrote in another sample.
    Tests {
        /// Tests that the code passes.
        passed: usize,
        /// All usable ones.
        usable: usize,
    },
    /// Other sampled solutions return the same for the calls of the tests.
    Agreement {
        /// Samples that do.
        agreeing: usize,
        /// All samples.
        samples: usize,
        /// Calls that were compared.
        calls: usize,
    },
}

impl Confirmation {
    /// The share of tests or samples that agree with the code, 0 to 1.
    pub fn share(&self) -> f64 {
        let (part, all) = match self {
            Self::Tests { passed, usable } => (passed, usable),
            Self::Agreement { agreeing, samples, .. } => (agreeing, samples),
        };
        *part as f64 / (*all).max(1) as f64
    }
}

/// What rows of code are held against.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Tests that the model wrote for each task.
    pub tests: &'a [Written],
    /// Further responses to each task ([`crate::respond::sample_shard`]).
    pub sampled: &'a [Responded],
    /// Samples a task.
    pub samples: usize,
    /// Smallest share of samples that must agree where no test is usable.
    pub min_agreement: f64,
}

/// More tests of one task are left out.
const MAX_TESTS: usize = 5;

/// One line tests of `function` in what a model wrote: `assert` statements that call it. Where a task names no function, the
/// tests may call it by another name; then those of the first name that a test calls are taken for `function`.
pub fn asserts(text: &str, function: &str) -> Vec<String> {
    let found = asserts_of(text, function);
    match text.lines().find_map(called) {
        Some(other) if found.is_empty() => asserts_of(&renamed(text, other, function), function),
        _ => found,
    }
}

/// The function that a test calls first, if it is none of Python's own.
fn called(line: &str) -> Option<&str> {
    const OWN: [&str; 16] = [
        "abs",
        "all",
        "any",
        "bool",
        "float",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "round",
        "set",
        "sorted",
        "str",
        "sum",
    ];
    let (name, _) = line.trim().strip_prefix("assert ")?.split_once('(')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (is_name && !OWN.contains(&name)).then_some(name)
}

/// The text with every call of one function made a call of another.
fn renamed(text: &str, from: &str, to: &str) -> String {
    let mut renamed = String::with_capacity(text.len());
    let mut copied = 0;
    for (at, _) in text.match_indices(&format!("{from}(")) {
        let before = text[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '.')) {
            renamed += &text[copied..at];
            renamed += to;
            copied = at + from.len();
        }
    }
    renamed + &text[copied..]
}

fn asserts_of(text: &str, function: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim) {
        let fine = line.starts_with("assert ") && answer::python::fault(line).is_none();
        if fine && call(line, function).is_some() && !found.iter().any(|other| other == line) {
            found.push(line.to_owned());
        }
    }
    found.truncate(MAX_TESTS);
    found
}

/// The first call of `function` in a line of code, parentheses included.
pub fn call<'t>(line: &'t str, function: &str) -> Option<&'t str> {
    let mark = format!("{function}(");
    let inside_a_word = |at: usize| {
        line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '.'))
    };
    let start = line.match_indices(&mark).map(|(at, _)| at).find(|&at| !inside_a_word(at))?;
    // The shortest end at which brackets and strings are closed.
    line[start..]
        .match_indices(')')
        .map(|(end, _)| &line[start..start + end + 1])
        .find(|found| answer::python::fault(found).is_none())
}

/// The function that a task asks for, among those that its response defines.
fn entry_point(row: &SyntheticRow) -> Option<String> {
    let defined = answer::code::functions(&row.output);
    let asked = answer::code::asked_for(&row.instruction, &row.input, &defined);
    asked.or(defined.last().map(String::as_str)).map(str::to_owned)
}

/// A row on its way: what it is tested with, and the other solutions.
struct Candidate {
    row: SyntheticRow,
    function: String,
    tests: Vec<String>,
    calls: Vec<String>,
    /// Samples that the filters accept.
    others: Vec<String>,
}

/// Keeps rows whose code runs, and which tests or other solutions confirm. `run` says of each program why it did not run to
/// its end, or `None`.
///
/// # Errors
/// Those of `run`; samples or tests of a row are missing.
pub fn by_tests<E: From<Error>>(
    domain: &Domain,
    assembly: Assembly,
    evidence: Evidence<'_>,
    run: impl Fn(&[Program]) -> std::result::Result<Vec<Option<String>>, E>,
) -> std::result::Result<Assembly, E> {
    let Assembly { rows, rejected, funnel } = assembly;
    let mut kept = Assembly { rows: Vec::with_capacity(rows.len()), rejected, funnel };
    let filter = ResponseFilter::new(domain);
    let tests: HashMap<&str, &Written> = evidence.tests.iter().map(|w| (w.id.as_str(), w)).collect();
    let sampled_by_id: HashMap<&str, &Responded> =
        evidence.sampled.iter().map(|r| (r.id.as_str(), r)).collect();
    for row in rows {
        let candidate = candidate(row, &filter, &tests, &sampled_by_id, evidence.samples)?;
        let found = judge(&candidate, evidence, &run)?;
        let mut row = candidate.row;
        match found {
            Ok(confirmation) => {
                row.checks.executed = Some(true);
                row.checks.agreement = Some(confirmation.share());
                row.checks.confirmed = Some(confirmation);
                kept.rows.push(row);
            }
            Err((reason, detail)) => kept.reject_row(row, reason, detail),
        }
    }
    kept.funnel.accepted = kept.rows.len() as u64;
    Ok(kept)
}

fn candidate(
    row: SyntheticRow,
    filter: &ResponseFilter,
    tests: &HashMap<&str, &Written>,
    responses: &HashMap<&str, &Responded>,
    samples: usize,
) -> Result<Candidate> {
    let written = tests
        .get(row.id.as_str())
        .ok_or_else(|| Error::setting("tests", format!("{} is missing; generate its shard first", row.id)))?;
    let function = entry_point(&row).unwrap_or_default();
    let tests = asserts(&written.text, &function);
    let mut calls: Vec<String> = Vec::new();
    for call in tests.iter().filter_map(|test| call(test, &function)) {
        if !calls.iter().any(|other| other == call) {
            calls.push(call.to_owned());
        }
    }
    let mut others = Vec::new();
    for sample in 0..samples {
        let found = sampled(responses, &row.id, sample)?;
        let accepted =
            filter.accept(&row.instruction, &row.input, &found.demonstrations, &found.text, found.end);
        others.extend(accepted.ok().map(|accepted| accepted.output));
    }
    Ok(Candidate { row, function, tests, calls, others })
}

/// What confirms a candidate, or why nothing does.
fn judge<E>(
    candidate: &Candidate,
    evidence: Evidence<'_>,
    run: &impl Fn(&[Program]) -> std::result::Result<Vec<Option<String>>, E>,
) -> std::result::Result<std::result::Result<Confirmation, (Reason, String)>, E> {
    let own = &candidate.row.output;
    let with = |code: &str, test: &String| Program { code: code.to_owned(), tests: format!("{test}\n") };
    let mut programs = vec![Program::without_tests(own)];
    let stub = |test: &String| {
        with(&format!("def {}(*arguments, **named):\n    return None", candidate.function), test)
    };
    programs.extend(candidate.tests.iter().map(stub));
    programs.extend(candidate.tests.iter().map(|test| with(own, test)));
    let failures = run(&programs)?;
    if let Some(Some(why)) = failures.first() {
        return Ok(Err((Reason::FailedExecution, why.clone())));
    }
    let (stubs, owns) = failures[1..].split_at(candidate.tests.len());
    let telling = (0..candidate.tests.len()).filter(|&i| stubs[i].is_some());
    let (passed, failed): (Vec<usize>, Vec<usize>) = telling.partition(|&i| owns[i].is_none());
    // A test that the code fails refutes it only if another solution passes it.
    let others = candidate.others.len();
    let tried = failed.iter().flat_map(|&i| candidate.others.iter().map(move |other| (i, other)));
    let programs: Vec<Program> = tried.map(|(i, other)| with(other, &candidate.tests[i])).collect();
    let failures = run(&programs)?;
    let refuting = failures.chunks(others.max(1)).filter(|test| test.iter().any(Option::is_none)).count();
    match (passed.len(), refuting) {
        (0, 0) => {}
        (0, _) => {
            return Ok(Err((Reason::FailedTests, format!("passes none of {refuting}, other solutions do"))));
        }
        (passed, _) => return Ok(Ok(Confirmation::Tests { passed, usable: passed + refuting })),
    }
    if candidate.calls.is_empty() {
        return Ok(Err((Reason::Unconfirmed, "no test calls the function".to_owned())));
    }
    let programs: Vec<Program> =
        candidate.others.iter().map(|other| comparison(own, other, &candidate.calls)).collect();
    let agreeing = run(&programs)?.iter().filter(|failure| failure.is_none()).count();
    let samples = evidence.samples;
    if agreeing as f64 >= evidence.min_agreement * samples as f64 && agreeing > 0 {
        let calls = candidate.calls.len();
        return Ok(Ok(Confirmation::Agreement { agreeing, samples, calls }));
    }
    Ok(Err((Reason::Unconfirmed, format!("no usable test, and {agreeing} of {samples} solutions agree"))))
}

/// A program whose tests pass if two solutions return the same for every call, and something for at least one.
fn comparison(own: &str, other: &str, calls: &[String]) -> Program {
    // JSON's strings are strings of Python too.
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let calls: Vec<String> = calls.iter().map(|call| text(call)).collect();
    let code = format!(
        "def outcome(solution, call):
    space = {{}}
    try:
        exec([{}, {}][solution], space)
        value = eval(call, space)
        return (type(value).__name__, value)
    except Exception as error:
        return ('error', type(error).__name__)
",
        text(own),
        text(other),
    );
    let tests = format!(
        "told = 0
for call in [{}]:
    first, second = outcome(0, call), outcome(1, call)
    assert first == second, call
    told += first[0] not in ('error', 'NoneType')
assert told > 0, 'nothing is returned'
",
        calls.join(", "),
    );
    Program { code, tests }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        confirm::tests::{row, sample_rows},
        domain::built_in,
        shard::End,
    };

    #[test]
    fn tests_are_lines_that_call_the_function() {
        let check = |text: &str, expected: &[&str]| assert_eq!(asserts(text, "f"), expected, "{text}");
        check("assert f(1) == 2\nassert f(2) == 3", &["assert f(1) == 2", "assert f(2) == 3"]);
        check("```python\nassert f(1) == 2\n```", &["assert f(1) == 2"]);
        check("assert f(1) == 2\nassert f(1) == 2", &["assert f(1) == 2"]);
        check("assert len(1) == 2\nassert True\nf(1)\nassert x.f(1)", &[]);
        check(
            "assert g(1) == 2\nassert len(g(g(2))) == hg(3)",
            &["assert f(1) == 2", "assert len(f(f(2))) == hg(3)"],
        );
        check("assert f(1) == 2\nassert g(1) == 2", &["assert f(1) == 2"]);
        check("assert f(1 == 2\nassert f('x) == 1", &[]);
        check("assert len(f([1])) == 1", &["assert len(f([1])) == 1"]);
    }

    #[test]
    fn calls_end_where_their_brackets_close() {
        let check = |line: &str, expected: Option<&str>| assert_eq!(call(line, "f"), expected, "{line}");
        check("assert f(1) == 2", Some("f(1)"));
        check("assert f((1, 2), [3]) == (4)", Some("f((1, 2), [3])"));
        check("assert f(\")\") == 1", Some("f(\")\")"));
        check("assert sorted(f(g(1))) == []", Some("f(g(1))"));
        check("assert f (1)", None);
        check("assert f(1", None);
    }

    fn judged(
        output: &str,
        tests: &str,
        samples: &[&str],
        passes: impl Fn(&Program) -> bool,
    ) -> std::result::Result<SyntheticRow, (Reason, String)> {
        let domain = built_in("coding").unwrap().unwrap();
        let mut row = row("a", output, None);
        row.instruction = "Write a Python function double(n) that returns twice n.".into();
        let sampled = sample_rows(std::slice::from_ref(&row), samples);
        let written = [Written { id: "a".into(), text: tests.into(), end: End::Stop }];
        let evidence =
            Evidence { tests: &written, sampled: &sampled, samples: samples.len(), min_agreement: 0.5 };
        let assembly = Assembly { rows: vec![row], ..Assembly::default() };
        let run = |programs: &[Program]| -> Result<Vec<Option<String>>> {
            Ok(programs.iter().map(|p| (!passes(p)).then(|| "AssertionError".to_owned())).collect())
        };
        let mut found = by_tests(&domain, assembly, evidence, run).unwrap();
        match found.rows.pop() {
            Some(row) => Ok(row),
            None => Err((found.rejected[0].reason, found.rejected[0].detail.clone())),
        }
    }

    const GOOD: &str = "def double(n):\n    return 2 * n";
    const SAME: &str = "def double(n):\n    return n + n";
    const WRONG: &str = "def double(n):\n    return n * n";
    const TESTS: &str = "assert double(3) == 6\nassert double(4) == 9\nassert double(1) is None";

    /// Judges the programs of these tests as Python would.
    fn python(program: &Program) -> bool {
        let agree = |a: &str, b: &str| {
            let text = |code: &str| serde_json::Value::from(code).to_string();
            program.code.contains(&format!("[{}, {}]", text(a), text(b)))
        };
        if program.code.contains("def outcome") {
            return agree(GOOD, SAME) || agree(GOOD, GOOD);
        }
        let stub = program.code.contains("*arguments");
        match program.tests.strip_prefix("assert ") {
            None => program.tests.is_empty(),
            Some("double(3) == 6\n") => !stub && program.code != WRONG,
            Some("double(1) is None\n") => stub,
            Some(_) => false,
        }
    }

    #[test]
    fn tests_confirm_refute_and_do_not_count_when_no_solution_passes_them() {
        let confirmed = judged(GOOD, TESTS, &[SAME, WRONG], python).unwrap().checks;
        assert_eq!(confirmed.confirmed, Some(Confirmation::Tests { passed: 1, usable: 1 }));
        assert_eq!((confirmed.executed, confirmed.agreement), (Some(true), Some(1.0)));
        assert_eq!(judged(WRONG, TESTS, &[SAME, GOOD], python).unwrap_err().0, Reason::FailedTests);
        // The only test is wrong: other solutions decide.
        let agreed = judged(GOOD, "assert double(4) == 9", &[SAME, WRONG], python).unwrap().checks;
        assert_eq!(agreed.confirmed, Some(Confirmation::Agreement { agreeing: 1, samples: 2, calls: 1 }));
        let check = |output: &str, tests: &str, samples: &[&str], reason: Reason| {
            assert_eq!(judged(output, tests, samples, python).unwrap_err().0, reason, "{output} {tests}");
        };
        check(WRONG, "assert double(4) == 9", &[SAME, GOOD], Reason::Unconfirmed);
        check(GOOD, "nothing", &[SAME, SAME], Reason::Unconfirmed);
        check(GOOD, "assert double(4) == 9", &[WRONG, WRONG, SAME], Reason::Unconfirmed);
        assert_eq!(judged(GOOD, TESTS, &[SAME], |_| false).unwrap_err().0, Reason::FailedExecution);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[\\PC\n]{0,60}|(assert |f\\(|\\)|\"|'|é| == |\n){0,20}") {
            for test in asserts(&text, "f") {
                prop_assert!(call(&test, "f").is_some());
            }
        }
    }
}
