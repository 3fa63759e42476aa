//! A tiny run: a model that writes words, two domains whose filters take any words, and the smallest sizes.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use mixse_testing::speaker;

use crate::common::{Output, Sandbox};

/// The configuration in `mixse.toml`.
pub(crate) const CONFIG: &str = r#"
base = "model"
domains = ["domains/words", "domains/sums"]
precision = "f32"
threads = 2

[generation]
prompts = 10
tasks = 5
temperature = 1.0
shards = 2

[expert]
dropout = 0.1

[expert.training]
learning_rate = 1e-2
epochs = 2
batch_size = 2
save_every = 1

[router.training]
learning_rate = 1e-2
epochs = 2
batch_size = 2
save_every = 1
validation = 1
validate_every = 1

[evaluation]
items = 4
shards = 2
samples = 1
"#;

const DOMAIN: &str = r#"
name = "NAME"
title = "Tiny"
description = "Whatever a model without knowledge writes."
answer = "KIND"
requirements = "Write words."
role = "Answer."

[limits]
max_instruction_tokens = 96
max_response_tokens = 48
min_instruction_words = 1
min_response_words = 1
max_similarity = 1.0
max_repetition = 1.0

[filters]
number_in_task = false
number_in_response = false
option_in_response = false
input_in_task = false
stated_answer = false
"#;

/// A sandbox with a model, domains and `mixse.toml`.
pub(crate) fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    speaker::write(&sandbox.path("model"), 1);
    write_domain(&sandbox.path("domains/words"), "text", r#"{"kind": "text", "accept": ["red apple"]}"#);
    write_domain(&sandbox.path("domains/sums"), "number", r#"{"kind": "number", "value": "25"}"#);
    fs::write(sandbox.path("mixse.toml"), CONFIG).unwrap();
    sandbox
}

pub(crate) fn write_domain(folder: &Path, kind: &str, answer: &str) {
    fs::create_dir_all(folder).unwrap();
    let name = folder.file_name().unwrap().to_str().unwrap();
    let manifest = DOMAIN.replace("NAME", name).replace("KIND", kind);
    fs::write(folder.join("domain.toml"), manifest).unwrap();
    let seeds: String = speaker::WORDS
        .chunks(4)
        .take(6)
        .enumerate()
        .map(|(i, words)| {
            let (task, response) = words.split_at(3);
            format!(
                "{{\"id\": \"s{i}\", \"instruction\": \"{name}{}\", \"output\": \"{}\"}}\n",
                task.concat(),
                response.concat().trim()
            )
        })
        .collect();
    fs::write(folder.join("seeds.jsonl"), seeds).unwrap();
    let check: String = speaker::WORDS
        .chunks(8)
        .take(4)
        .enumerate()
        .map(|(i, words)| {
            format!(
                "{{\"id\": \"c{i}\", \"instruction\": \"why{}\", \"output\": \"red apple\", \"answer\": {answer}}}\n",
                words.concat()
            )
        })
        .collect();
    fs::write(folder.join("check.jsonl"), check).unwrap();
}

/// Runs everything into `out`.
pub(crate) fn run(sandbox: &Sandbox, out: &str) -> Output {
    sandbox.mixse(["run", "-c", "mixse.toml", "--out", out])
}

/// Runs everything into `out`, which must work.
pub(crate) fn complete(sandbox: &Sandbox, out: &str) {
    let output = run(sandbox, out);
    assert_eq!(output.code, 0, "{}", output.stderr);
}

/// Starts `mixse run` into `out`.
pub(crate) fn start(sandbox: &Sandbox, out: &str) -> Child {
    let mut command = sandbox.command(["run", "-c", "mixse.toml", "--out", out]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts `mixse run` into `out` and kills it as soon as `reached` holds; false if it ended before.
pub(crate) fn kill_when(sandbox: &Sandbox, out: &str, reached: impl Fn(&Path) -> bool) -> bool {
    let directory = sandbox.path(out);
    let mut child = start(sandbox, out);
    let begin = Instant::now();
    let killed = loop {
        if reached(&directory) {
            child.kill().unwrap();
            break true;
        }
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "the run does not come to an end");
        std::thread::sleep(Duration::from_micros(100));
    };
    child.wait().unwrap();
    killed
}

/// The files below a directory with their bytes, sorted by path.
pub(crate) fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(directory: &Path, root: &Path, found: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(directory, directory, &mut found);
    found.sort();
    found
}

/// Everything in a run that must not depend on how often it was stopped, on threads or on other processes.
pub(crate) fn results(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for part in ["data", "experts", "router", "losses", "eval"] {
        let part = run.join(part);
        found.extend(
            files(&part)
                .into_iter()
                .map(|(name, bytes)| (format!("{}/{name}", part.file_name().unwrap().display()), bytes)),
        );
    }
    found
}

/// Fails with the names of the files that differ.
#[track_caller]
pub(crate) fn assert_same(run: &Path, reference: &Path) {
    let (ours, theirs) = (results(run), results(reference));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    let differing: Vec<&String> =
        ours.iter().zip(&theirs).filter(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0).collect();
    assert!(differing.is_empty(), "these differ from an undisturbed run: {differing:?}");
}
