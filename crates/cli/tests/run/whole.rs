//! What a run leaves, and running parts of it.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use crate::tiny;

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn rows(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_leaves_what_is_promised_and_a_second_call_changes_nothing() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "run");
    let run = sandbox.path("run");

    let state = json(&run.join("run.json"));
    assert_eq!(state["finished"], true);
    assert!(fs::read_to_string(run.join("mixse.toml")).unwrap().contains("base = \"model\""));
    for domain in ["words", "sums"] {
        let accepted = rows(&run.join(format!("data/{domain}.jsonl")));
        assert!(!accepted.is_empty(), "the model's words must pass the filters of {domain}");
        for row in &accepted {
            for key in ["id", "domain", "instruction", "input", "output", "origin", "checks"] {
                assert!(!row[key].is_null(), "{key} is missing in {row}");
            }
        }
        let rejected = rows(&run.join(format!("data/{domain}.rejected.jsonl")));
        assert!(rejected.iter().all(|row| row["reason"].is_string()), "{rejected:?}");
        let adapter = json(&run.join(format!("experts/{domain}/adapter_config.json")));
        assert_eq!((&adapter["peft_type"], &adapter["r"]), (&"LORA".into(), &8.into()));
        assert!(run.join(format!("experts/{domain}/adapter_model.safetensors")).exists());
    }
    assert!(run.join("router/router.safetensors").exists());
    assert_eq!(json(&run.join("router/router.json"))["experts"].as_array().map(Vec::len), Some(2));
    check_report(&run.join("report.html"));

    let before = tiny::results(&run);
    let output = sandbox.mixse(["run", "--out", "run"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(!output.stderr.contains(" …"), "nothing starts again: {}", output.stderr);
    assert!(tiny::results(&run) == before, "a second call leaves every byte");
}

#[test]
fn one_domain_can_have_an_expert_of_another_make() {
    let sandbox = tiny::sandbox();
    let own = "\n[expert.domains.sums]\nrank = 4\nalpha = 12\ntargets = [\"q_proj\", \"down_proj\"]\ndropout = 0.0\n";
    fs::write(sandbox.path("mixse.toml"), format!("{}{own}", tiny::CONFIG)).unwrap();
    tiny::complete(&sandbox, "run");
    let run = sandbox.path("run");
    let adapter = |domain: &str| json(&run.join(format!("experts/{domain}/adapter_config.json")));
    let (words, sums) = (adapter("words"), adapter("sums"));
    assert_eq!((&words["r"], &words["lora_dropout"]), (&8.into(), &0.1.into()));
    assert_eq!(
        (&sums["r"], &sums["lora_alpha"], &sums["lora_dropout"]),
        (&4.into(), &12.into(), &0.0.into())
    );
    assert_eq!(sums["target_modules"], serde_json::json!(["down_proj", "q_proj"]));
    let losses = json(&run.join("losses/router.json"));
    let (kept, looks) = (&losses["kept_step"], losses["validation"].as_array().unwrap());
    assert!(looks.iter().any(|look| look["step"] == *kept), "{losses}");
    assert!(fs::read_to_string(run.join("report.html")).unwrap().contains("on held-out rows after step"));
}

/// Well-formed as far as a page can be judged without a browser: every element is closed, and nothing is loaded.
fn check_report(path: &Path) {
    let page = fs::read_to_string(path).unwrap();
    assert!(page.starts_with("<!doctype html>"), "{:?}", page.get(..40));
    for element in ["html", "head", "body", "table", "svg", "script", "style", "section", "details", "div"] {
        let opened =
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        let closed = page.matches(&format!("</{element}>")).count();
        assert_eq!(opened, closed, "<{element}>");
    }
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.contains(outside), "{outside} in the report");
    }
    for part in ["expert words", "expert sums", "random routing", "mixture"] {
        assert!(page.contains(part), "{part:?} is not in the report");
    }
}

/// The ids that `--list` gives, each after those it needs.
pub(crate) fn listed(sandbox: &crate::common::Sandbox, out: &str) -> Vec<String> {
    let output = sandbox.mixse(["run", "-c", "mixse.toml", "--out", out, "--list", "--json"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let list: Value = serde_json::from_str(&output.stdout).unwrap();
    let tasks = list["tasks"].as_array().unwrap();
    tasks.iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn listing_needs_no_model_and_writes_nothing() {
    let sandbox = tiny::sandbox();
    fs::rename(sandbox.path("model"), sandbox.path("elsewhere")).unwrap();
    let ids = listed(&sandbox, "run");
    assert_eq!(ids.first().map(String::as_str), Some("brainstorm/words/0"));
    assert_eq!(ids.last().map(String::as_str), Some("report"));
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    assert!(!sandbox.path("run").exists());

    fs::rename(sandbox.path("elsewhere"), sandbox.path("model")).unwrap();
    let output = sandbox.mixse(["run", "-c", "mixse.toml", "--out", "run", "--task", "brainstorm/sums/1"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    fs::rename(sandbox.path("model"), sandbox.path("elsewhere")).unwrap();
    let before = tiny::files(&sandbox.path("run"));
    let output = sandbox.mixse(["run", "--out", "run", "--list"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for (id, state) in [("brainstorm/sums/1", "done"), ("brainstorm/sums/0", "ready"), ("router", "waiting")]
    {
        let line = output.stdout.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some(state), "{line}");
    }
    let report = output.stdout.lines().last().unwrap();
    assert!(report.contains(" more") && report.len() < 100, "the report waits for everything: {report}");
    assert!(tiny::files(&sandbox.path("run")) == before);
}

#[test]
fn a_domain_without_check_items_is_no_fault_in_a_run() {
    let sandbox = tiny::sandbox();
    fs::remove_file(sandbox.path("domains/words/check.jsonl")).unwrap();
    let config = tiny::CONFIG.replace("[evaluation]", "[evaluation]\nskip = 1");
    fs::write(sandbox.path("mixse.toml"), config).unwrap();
    assert_eq!(listed(&sandbox, "run").last().map(String::as_str), Some("report"));
}

#[test]
fn portable_operations_give_the_same_run_up_to_rounding() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "fused");
    let config = format!("portable = true\n{}", tiny::CONFIG);
    fs::write(sandbox.path("mixse.toml"), config).unwrap();
    tiny::complete(&sandbox, "portable");
    let (fused, portable) = (sandbox.path("fused"), sandbox.path("portable"));
    let text = fs::read_to_string(portable.join("mixse.toml")).unwrap();
    assert!(text.contains("portable = true"), "{text}");
    for name in ["words", "sums", "router"] {
        let losses = |run: &Path| -> Vec<f64> {
            let file = json(&run.join(format!("losses/{name}.json")));
            let losses = if file.is_array() { &file } else { &file["losses"] };
            serde_json::from_value(losses.clone()).unwrap()
        };
        let (ours, theirs) = (losses(&portable), losses(&fused));
        assert_eq!(ours.len(), theirs.len(), "{name}: as many steps");
        for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert!((a - b).abs() < 1e-3 * b, "{name}: loss {a} and {b} at step {step}");
        }
    }
    // In f32 no choice of the greedy and sampled texts is close enough for rounding to decide it here.
    let texts = |run: &Path| {
        tiny::files(&run.join("data"))
            .into_iter()
            .filter(|(name, _)| name.ends_with(".jsonl"))
            .collect::<Vec<_>>()
    };
    assert!(texts(&fused) == texts(&portable), "the same data");
}
