//! `mixse doctor` in processes of their own, which begin with nothing detected: each ends in time and says the instruction set
//! that it was to use.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at a surprise as tests do")]

#[path = "common/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod common;

use std::{collections::BTreeSet, time::Duration};

use common::Sandbox;
use mixse_kernels::{Isa, check::CHECKS, isa};
use mixse_testing::process::{Finished, finish_within};

/// Many times what it takes on a slow machine, and much less than a hang.
const LIMIT: Duration = Duration::from_secs(240);

fn doctor(forced: Option<&str>, arguments: &[&str]) -> Finished {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command([&["doctor"], arguments].concat());
    if let Some(name) = forced {
        command.env(isa::VARIABLE, name);
    }
    finish_within(LIMIT, command)
}

fn report(forced: Option<&str>, arguments: &[&str]) -> serde_json::Value {
    let found = doctor(forced, arguments);
    assert_eq!(found.code, Some(0), "{forced:?}: {found:?}");
    serde_json::from_str(&found.stdout).unwrap()
}

/// What `doctor --check` says: the instruction set in use, and those that were checked.
fn check(forced: Option<&str>) -> (String, BTreeSet<String>) {
    let report = report(forced, &["--check", "--json"]);
    let rows = report["kernels"].as_array().unwrap();
    let names: BTreeSet<String> =
        rows.iter().map(|row| row["instruction_set"].as_str().unwrap().to_owned()).collect();
    assert_eq!(rows.len(), names.len() * CHECKS.len(), "every kernel with each of {names:?}");
    for row in rows {
        assert!(row["agrees"] == true && row["error"].as_f64() <= row["tolerance"].as_f64(), "{row}");
        assert!(row["gflops"].is_number() != row["gbytes"].is_number(), "one speed: {row}");
    }
    (report["instruction_set"].as_str().unwrap().to_owned(), names)
}

#[test]
fn every_instruction_set_is_detected_and_agrees() {
    // With nothing forced first: this process detects for itself only when that one has ended.
    let (active, checked) = check(None);
    let available: Vec<&str> = Isa::ALL.into_iter().filter(|isa| isa.available()).map(Isa::name).collect();
    assert_eq!(checked, available.iter().map(|&name| name.to_owned()).collect());
    assert_eq!(active, *available.last().unwrap(), "the best of {available:?}");
    let plain = report(None, &["--json"]);
    assert_eq!(plain["instruction_sets"], serde_json::json!({ "active": active, "available": available }));
    for name in available {
        assert_eq!(check(Some(name)), (name.to_owned(), BTreeSet::from([name.to_owned()])));
        let plain = report(Some(name), &["--json"]);
        assert_eq!(plain["instruction_sets"]["active"], name);
    }
}

#[test]
fn refused() {
    let check = |forced: Option<&str>, arguments: &[&str], says: &str| {
        let found = doctor(forced, arguments);
        assert!(found.code == Some(2) && found.stdout.is_empty(), "{found:?}");
        assert!(found.stderr.contains(says), "{says}: {found:?}");
    };
    check(None, &["--check", "--device", "cuda"], "no kernels of its own for the device cuda");
    check(None, &["--device", "cpu"], "--check");
    check(Some("sse9"), &["--check"], "MIXSE_ISA=sse9: unknown; use portable");
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.available()) {
        check(Some(isa.name()), &[], "this processor does not offer it; the best here is");
    }
}
