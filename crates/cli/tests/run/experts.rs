//! Experts join and leave a finished run, and the others stay as they are.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{common::Sandbox, methods::started, tiny};

/// A finished run of two domains with a router in closed form, and a third domain beside it.
fn finished_run() -> Sandbox {
    let sandbox = tiny::sandbox();
    let config = tiny::CONFIG.replace("[router.training]", "[router]\nfit = \"ridge\"\n\n[router.training]");
    fs::write(sandbox.path("mixse.toml"), &config).unwrap();
    let answer = r#"{"kind": "text", "accept": ["red apple"]}"#;
    tiny::write_domain(&sandbox.path("domains/more"), "text", answer);
    tiny::complete(&sandbox, "run");
    sandbox
}

/// The tasks that a call started; it must work.
fn change(sandbox: &Sandbox, arguments: &[&str]) -> Vec<String> {
    let output = sandbox.mixse([&["expert"], arguments].concat());
    assert_eq!(output.code, 0, "{}", output.stderr);
    started(&output.stderr).into_iter().map(str::to_owned).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_domain_joins_and_leaves_without_the_rows_of_the_others() {
    let sandbox = finished_run();
    let run = sandbox.path("run");
    let of_two = fs::read(run.join("router/router.safetensors")).unwrap();
    let experts = tiny::files(&run.join("experts"));
    fs::remove_dir_all(run.join("data")).unwrap();

    let tasks = change(&sandbox, &["add", "run", "domains/more"]);
    assert!(tasks.iter().any(|task| task == "expert/more") && tasks.iter().any(|task| task == "router"));
    let again: Vec<_> = tasks.iter().filter(|task| task.contains("words") || task.contains("sums")).collect();
    assert!(again.is_empty(), "these were made before: {again:?}");
    for (name, bytes) in &experts {
        assert_eq!(&fs::read(run.join("experts").join(name)).unwrap(), bytes, "{name}");
    }
    let names = json(&run.join("router/router.json"))["experts"].clone();
    assert_eq!(names, serde_json::json!(["words", "sums", "more"]));
    let routing = sandbox.mixse(["inspect", "routing", "--model", "run", "--ids", "1,2,3"]);
    assert_eq!(routing.code, 0, "{}", routing.stderr);

    // The same as if it had been there from the start.
    let config = fs::read_to_string(sandbox.path("mixse.toml")).unwrap();
    let three = config.replace("\"domains/sums\"]", "\"domains/sums\", \"domains/more\"]");
    fs::write(sandbox.path("mixse.toml"), three).unwrap();
    tiny::complete(&sandbox, "three");
    for file in ["router/router.safetensors", "experts/more/adapter_model.safetensors"] {
        let other = sandbox.path("three").join(file);
        assert_eq!(fs::read(run.join(file)).unwrap(), fs::read(other).unwrap(), "{file}");
    }

    assert_eq!(change(&sandbox, &["remove", "run", "more"]), ["router"]);
    assert_eq!(fs::read(run.join("router/router.safetensors")).unwrap(), of_two);
    assert_eq!(change(&sandbox, &["add", "run", "domains/more"]), ["router"], "its expert was still there");
}

/// An adapter of rank 3 in `elsewhere`, trained by itself.
fn train_elsewhere(sandbox: &Sandbox) {
    let rows = "{\"prompt_ids\": [5, 6, 7], \"target_ids\": [8, 9]}\n";
    fs::write(sandbox.path("rows.jsonl"), rows).unwrap();
    let output = sandbox.mixse([
        "train",
        "expert",
        "--base",
        "model",
        "--ids-data",
        "rows.jsonl",
        "--rank",
        "3",
        "--epochs",
        "1",
        "--out",
        "elsewhere",
    ]);
    assert_eq!(output.code, 0, "{}", output.stderr);
}

/// Says of the adapter in `elsewhere` that it belongs to another base.
fn of_another_base(sandbox: &Sandbox) {
    let path = sandbox.path("elsewhere/mixse.json");
    let mut origin = json(&path);
    origin["base_hash"] = "0".repeat(64).into();
    fs::write(path, origin.to_string()).unwrap();
}

#[test]
fn an_adapter_made_elsewhere_joins() {
    let sandbox = finished_run();
    train_elsewhere(&sandbox);
    change(&sandbox, &["add", "run", "domains/more", "--adapter", "elsewhere"]);
    let joined = sandbox.path("run/experts/more");
    assert_eq!(json(&joined.join("adapter_config.json"))["r"], 3);
    let tensors = |directory: &Path| fs::read(directory.join("adapter_model.safetensors")).unwrap();
    assert_eq!(tensors(&joined), tensors(&sandbox.path("elsewhere")));
    assert_eq!(json(&sandbox.path("run/losses/more.json")), serde_json::json!([]), "nothing was trained");
    let output = sandbox.mixse(["run", "--out", "run"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(fs::read_to_string(sandbox.path("run/report.html")).unwrap().contains("expert more"));
}

#[test]
fn what_cannot_join_or_leave_is_refused() {
    let sandbox = finished_run();
    let before = fs::read(sandbox.path("run/mixse.toml")).unwrap();
    let check = |arguments: &[&str], part: &str| {
        let output = sandbox.mixse([&["expert"], arguments].concat());
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(part), "{}", output.stderr);
        assert_eq!(fs::read(sandbox.path("run/mixse.toml")).unwrap(), before);
    };
    check(&["add", "run", "domains/words"], "has an expert for words already");
    check(&["add", "run", "domains/more", "--adapter", "nothing"], "is no directory");
    check(&["add", "model", "domains/more"], "is no run");
    check(&["remove", "run", "more"], "no expert for \"more\"");
    train_elsewhere(&sandbox);
    of_another_base(&sandbox);
    check(&["add", "run", "domains/more", "--adapter", "elsewhere"], "belongs to a base with hash 0000");
    fs::write(sandbox.path("elsewhere/adapter_model.safetensors"), "").unwrap();
    fs::remove_file(sandbox.path("elsewhere/mixse.json")).unwrap();
    check(&["add", "run", "domains/more", "--adapter", "elsewhere"], "adapter_model.safetensors");
    assert!(!sandbox.path("run/experts/more").exists() && !sandbox.path("run/data/more.jsonl").exists());
}

#[test]
fn an_adapter_of_another_base_is_refused_before_anything_runs() {
    let sandbox = tiny::sandbox();
    train_elsewhere(&sandbox);
    of_another_base(&sandbox);
    let study = "title = \"t\"\nbases = [\"model\"]\nseeds = [0]\nmethods = [\"bass\"]\n[config]\n\
                 domains = [\"domains/words\", \"domains/sums\"]\nadapters = [\"sums=elsewhere\"]\n\
                 [config.expert]\nrank = 4000\n[config.expert.domains.words]\nrank = 5000\n";
    fs::write(sandbox.path("study.toml"), study).unwrap();
    let output = sandbox.mixse(["study", "study.toml", "--out", "study"]);
    assert_eq!(output.code, 2, "{}", output.stderr);
    for part in ["no method \"bass\"", "adapters: sums: ", "hash 0000", "rank 4000", "rank 5000"] {
        assert!(output.stderr.contains(part), "{part} is not in:\n{}", output.stderr);
    }
    assert!(!sandbox.path("study").exists());

    let config = tiny::CONFIG.replacen("domains =", "adapters = [\"sums=elsewhere\"]\ndomains =", 1);
    fs::write(sandbox.path("mixse.toml"), config).unwrap();
    let output = tiny::run(&sandbox, "run");
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(
        output.stderr.contains("adapters: sums: ") && output.stderr.contains("hash 0000"),
        "{}",
        output.stderr
    );
    assert!(!sandbox.path("run").exists());
}
