//! However a run is made, its results are the same bytes.

use std::{fs, path::Path};

use crate::{common::Sandbox, tiny, whole};

/// Whether a file below the unfinished work of a task whose name starts with `task` has `part` in its path.
fn working(run: &Path, task: &str, part: &str) -> bool {
    let Ok(tasks) = fs::read_dir(run.join("tasks/work")) else { return false };
    tasks.flatten().filter(|entry| entry.file_name().display().to_string().starts_with(task)).any(|entry| {
        let file = entry.path().join(part);
        fs::metadata(file).is_ok_and(|meta| meta.len() > 0)
    })
}

#[test]
fn a_run_is_the_same_however_it_is_made() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "whole");
    killed_anywhere(&sandbox);
    by_two_processes(&sandbox);
    task_by_task(&sandbox);
    in_little_memory(&sandbox);
    for run in ["killed", "shared", "parts", "small"] {
        tiny::assert_same(&sandbox.path(run), &sandbox.path("whole"));
    }
}

/// Kills a run with SIGKILL at several points, each call going on where the one before was killed.
fn killed_anywhere(sandbox: &Sandbox) {
    let points: [(&str, &str, &str); 7] = [
        ("the first tasks written", "brainstorm+words+0", "rows.jsonl.partial"),
        ("tasks of the last shard", "brainstorm+sums+1", "rows.jsonl.partial"),
        ("responses", "respond+sums", "rows.jsonl.partial"),
        ("steps of an expert", "expert+words", "training/state.safetensors"),
        ("steps of the router", "router", "training/state.safetensors"),
        ("evaluation of the base", "eval+base", "words.jsonl"),
        ("evaluation of the mixture", "eval+mixture", "sums.jsonl"),
    ];
    for (what, task, part) in points {
        // On a busy machine the moment can be missed; then the run is made from the start again.
        let hit = (0..20).any(|_| {
            let hit = tiny::kill_when(sandbox, "killed", |run| working(run, task, part));
            if !hit {
                fs::remove_dir_all(sandbox.path("killed")).unwrap();
            }
            hit
        });
        assert!(hit, "the run always ended before it was killed at: {what}");
    }
    tiny::complete(sandbox, "killed");
    let left: Vec<_> = tiny::files(&sandbox.path("killed"))
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.contains(".mixse-tmp-") || name.starts_with("tasks/work"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn by_two_processes(sandbox: &Sandbox) {
    let mut both = [tiny::start(sandbox, "shared"), tiny::start(sandbox, "shared")];
    for child in &mut both {
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

/// Every task in a process of its own, with another number of threads.
fn task_by_task(sandbox: &Sandbox) {
    // What is not ready says so and does nothing.
    let output = sandbox.mixse(["run", "-c", "mixse.toml", "--out", "parts", "--task", "router"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("expert/words"), "{}", output.stderr);
    for id in whole::listed(sandbox, "parts") {
        let output = sandbox.mixse(["run", "--out", "parts", "--threads", "1", "--task", &id]);
        assert_eq!(output.code, 0, "{id}: {}", output.stderr);
    }
    let output = sandbox.mixse(["run", "--out", "parts", "--task", "router/none"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("eval/mixture/0"), "the tasks are named: {}", output.stderr);
}

/// With a limit that no training can keep to, blocks are run again.
fn in_little_memory(sandbox: &Sandbox) {
    let config = format!("memory_limit = \"1 MB\"\n{}", tiny::CONFIG);
    fs::write(sandbox.path("small.toml"), config).unwrap();
    let output = sandbox.mixse(["run", "-c", "small.toml", "--out", "small"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stderr.contains("blocks are run again"), "{}", output.stderr);
    assert!(
        fs::read_to_string(sandbox.path("small/mixse.toml")).unwrap().contains("memory_limit = \"1 MB\"")
    );
}

#[test]
fn rounds_are_the_same_however_they_are_made() {
    let sandbox = tiny::sandbox();
    let config = |shards: usize| {
        tiny::CONFIG
            .replace(
                "shards = 2\n\n[expert]",
                "shards = SHARDS\niterations = 2\nround_trip = true\n\n[expert]",
            )
            .replace("SHARDS", &shards.to_string())
            .replace("threads = 2", "threads = 2\nmethods = [\"base\"]")
            .replace(", \"domains/sums\"", "")
    };
    let write = |shards| fs::write(sandbox.path("mixse.toml"), config(shards)).unwrap();
    write(2);
    tiny::complete(&sandbox, "whole");
    let whole = sandbox.path("whole");
    let rows = |run: &Path, file: &str| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(run.join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (first, last) = (rows(&whole, "rounds/1/data/words.jsonl"), rows(&whole, "data/words.jsonl"));
    assert!(last.iter().all(|row| row["checks"]["round_trip"].is_number()), "{last:?}");
    assert!(!first[0]["origin"]["model"].as_str().unwrap().contains('+'));
    assert!(last[0]["origin"]["model"].as_str().unwrap().contains('+'), "the expert of round 1 responds");
    let outputs =
        |rows: &[serde_json::Value]| rows.iter().map(|r| r["output"].to_string()).collect::<Vec<_>>();
    assert_ne!(outputs(&first), outputs(&last), "the second round is not the first one again");
    let adapter = "experts/words/adapter_model.safetensors";
    assert_ne!(
        fs::read(whole.join("rounds/1").join(adapter)).unwrap(),
        fs::read(whole.join(adapter)).unwrap()
    );

    for (task, part) in [
        ("round1+expert+words", "training/state.safetensors"),
        ("respond+words", "rows.jsonl.partial"),
        ("round_trip+words", "rows.jsonl.partial"),
    ] {
        // A moment that is missed on a busy machine leaves a finished run, which is compared all the same.
        tiny::kill_when(&sandbox, "killed", |run| working(run, task, part));
    }
    tiny::complete(&sandbox, "killed");
    write(1);
    tiny::complete(&sandbox, "one");
    for file in ["data/words.jsonl", "rounds/1/data/words.jsonl", &format!("rounds/1/{adapter}"), adapter] {
        let bytes = |run: &str| fs::read(sandbox.path(run).join(file)).unwrap();
        assert!(bytes("killed") == bytes("whole"), "{file} of a run that was killed");
        assert!(bytes("one") == bytes("whole"), "{file} of a run in other shards");
    }
}
