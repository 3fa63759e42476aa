//! Methods beside the mixture: each is itself and none of the others, and only what is new is computed.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{common::Sandbox, tiny};

const METHODS: [&str; 16] = [
    "oracle",
    "instance-merging",
    "linear",
    "ties",
    "dare(density=0.3)",
    "dare(density=0.3, seed=1)",
    "ties(form=factors)",
    "joint",
    "seed-only",
    "mixture(scale=unit, top_k=all)",
    "mixture(fit=ridge)",
    "mixture(fit=ridge_then_lm_loss, scale=unit)",
    "mixture(domain_loss=2)",
    "mixture(granularity=sequence, scale=unit)",
    "mixture(fit=ridge, granularity=sequence, input=base_last)",
    "arrow",
];

/// All responses of a method, by domain and item.
fn responses(run: &Path, method: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(run.join("eval").join(method)).unwrap() {
        let path = entry.unwrap().path();
        let domain = path.file_name().unwrap().to_string_lossy().split('.').next().unwrap().to_owned();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let id = format!("{domain} {}", row["id"].as_str().unwrap());
            found.insert(id, row["response"].as_str().unwrap().to_owned());
        }
    }
    found
}

/// The tensors that a method has made for itself.
fn tensors(run: &Path, method: &str) -> Vec<Vec<u8>> {
    let made = run.join("baselines").join(method);
    let files = if made.exists() { tiny::files(&made) } else { Vec::new() };
    files.into_iter().filter(|(name, _)| name.ends_with(".safetensors")).map(|(_, bytes)| bytes).collect()
}

/// The tasks that a call started.
pub(crate) fn started(stderr: &str) -> Vec<&str> {
    stderr.lines().filter_map(|line| line.split_once(" …").map(|(id, _)| id)).collect()
}

#[test]
fn each_method_is_itself_and_earlier_work_stays() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "run");
    let mut arguments = vec!["run", "--out", "run"];
    arguments.extend(METHODS.iter().flat_map(|method| ["--method", method]));
    let output = sandbox.mixse(&arguments);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let again: Vec<&str> = started(&output.stderr)
        .into_iter()
        .filter(|id| {
            !["baseline/", "statistics/", "eval/"].iter().any(|part| id.starts_with(part)) && *id != "report"
        })
        .collect();
    assert!(again.is_empty(), "these were made before: {again:?}");

    let run = sandbox.path("run");
    let ids = [
        "base",
        "expert-words",
        "expert-sums",
        "random",
        "mixture",
        "instance-merging",
        "linear",
        "ties",
        "dare-density-0.3",
        "dare-density-0.3-seed-1",
        "ties-form-factors",
        "joint",
        "seed-only",
        "mixture-scale-unit-top_k-all",
        "mixture-fit-ridge",
        "mixture-fit-ridge_then_lm_loss-scale-unit",
        "mixture-domain_loss-2",
        "mixture-granularity-sequence-scale-unit",
        "mixture-fit-ridge-granularity-sequence-input-base_last",
        "arrow",
    ];
    let all: Vec<_> = ids.iter().map(|id| (id, responses(&run, id), tensors(&run, id))).collect();
    for (i, (id, answers, tensors)) in all.iter().enumerate() {
        assert_eq!(answers.len(), 8, "{id}");
        assert!(i == 0 || *answers != all[0].1, "{id} answers as the base");
        // Greedy answers of two merges may be equal; their adapters may not.
        let same = all[..i].iter().find(|(_, other, theirs)| other == answers && theirs == tensors);
        assert!(same.is_none(), "{id} is {}", same.unwrap().0);
    }
    let oracle = responses(&run, "oracle");
    for (item, response) in &oracle {
        let expert = format!("expert-{}", item.split(' ').next().unwrap());
        assert_eq!(response, &responses(&run, &expert)[item], "the oracle takes the domain's own expert");
    }
    for file in [
        "instance-merging/adapter_model.safetensors",
        "linear/adapter_model.safetensors",
        "ties/merge.json",
        "joint/experts/words/adapter_model.safetensors",
        "joint/router/router.safetensors",
        "seed-only/experts/sums/adapter_model.safetensors",
        "mixture-scale-unit-top_k-all/router/router.json",
        "../statistics/block-512/words.safetensors",
        "../statistics/base_last-sequence-512/sums.safetensors",
    ] {
        assert!(run.join("baselines").join(file).exists(), "{file}");
    }
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    for method in ["oracle domain", "instance-merging", "dare(density=0.3, seed=1)"] {
        assert!(report.contains(method), "{method} is not in the report");
    }
}

#[test]
fn wrong_methods_are_refused() {
    let sandbox = tiny::sandbox();
    let check = |method: &str, part: &str| {
        let output = sandbox.mixse(["run", "-c", "mixse.toml", "--out", "run", "--method", method]);
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(part), "{}", output.stderr);
        assert!(!sandbox.path("run").exists());
    };
    check("tie", "there is no method");
    check("dare(density=2)", "density");
    check("mixture(top_k=9)", "top_k");
    check("mixture(tpo_k=1)", "there is no key");
    check("arrow(shared=true)", "router.shared false");
    check("mixture(score=absolute)", "arrow");
    check("mixture(fit=rigde)", "ridge_then_lm_loss");
    check("mixture(fit=ridge, domain_loss=1)", "no effect");
    check("mixture(ridge.confidence=0.4)", "ridge.confidence");
}

const STUDY: &str = r#"
title = "Tiny study"
bases = ["model"]
seeds = [0, 1]
methods = ["base", "experts", "mixture"]

[config]
domains = ["domains/words", "domains/sums"]
precision = "f32"

[config.generation]
prompts = 10
tasks = 5
temperature = 1.0
shards = 1

[config.expert.training]
learning_rate = 1e-2
epochs = 1
batch_size = 2

[config.router.training]
epochs = 1
batch_size = 2

[config.evaluation]
items = 3
shards = 1
samples = 1

[[settings]]
name = "token by token"

[[settings]]
name = "one map a block"
[settings.config.router]
shared = false

[[settings]]
name = "seeds too"
[settings.config.generation]
with_seeds = true
"#;

fn study(sandbox: &Sandbox, arguments: &[&str]) -> crate::common::Output {
    sandbox.mixse([&["study", "study.toml", "--out", "study"], arguments].concat())
}

#[test]
fn a_study_shares_results_continues_and_grows() {
    let sandbox = tiny::sandbox();
    fs::write(sandbox.path("study.toml"), STUDY).unwrap();
    let output = study(&sandbox, &[]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let tasks = started(&output.stderr);
    let count = |id: &str| tasks.iter().filter(|task| **task == id).count();
    assert_eq!((count("expert/words"), count("eval/base/0"), count("brainstorm/sums/0")), (4, 1, 2));
    assert_eq!((count("router"), count("report")), (6, 6), "a router for every seed and setting");

    let directory = sandbox.path("study");
    let csv = fs::read_to_string(directory.join("study.csv")).unwrap();
    assert!(csv.contains("token by token,mixture,all,2,6,"), "{csv}");
    let items = fs::read_to_string(directory.join("items.csv")).unwrap();
    assert_eq!(items.lines().count(), 1 + 3 * 2 * 4 * 6, "groups, seeds, rows, items");
    for line in items.lines().skip(1).take(50) {
        let fields: Vec<&str> = line.split(',').collect();
        let file = fs::read_to_string(directory.join(fields[6])).unwrap();
        let row = file.lines().find(|row| row.contains(&format!("\"id\":\"{}\"", fields[4]))).unwrap();
        assert_eq!(row.contains("\"correct\":true"), fields[5] == "1", "{line}");
    }
    let written: Value = serde_json::from_slice(&fs::read(directory.join("study.json")).unwrap()).unwrap();
    let rows = |setting: &str| {
        let of = |run: &&Value| run["group"] == setting && run["seed"] == 0;
        written["findings"]["data"].as_array().unwrap().iter().find(of).unwrap()["rows"][0][1]
            .as_u64()
            .unwrap()
    };
    // Steps of one epoch over rows in twos, as the training itself wrote them.
    let steps = |setting: &str| {
        let line = items.lines().find(|line| line.starts_with(&format!("{setting},mixture,0,"))).unwrap();
        let run = line.split(',').nth(6).unwrap().split("/eval/").next().unwrap();
        let losses = fs::read(directory.join(run).join("losses/words.json")).unwrap();
        serde_json::from_slice::<Vec<f32>>(&losses).unwrap().len() as u64
    };
    assert_eq!(rows("seeds too"), rows("token by token") + 6, "the six seeds are trained on as well");
    for setting in ["token by token", "seeds too"] {
        assert_eq!(steps(setting), rows(setting).div_ceil(2), "{setting}");
    }

    let page = fs::read_to_string(directory.join("study.html")).unwrap();
    assert!(page.contains("one map a block") && page.contains("<svg") && !page.contains("Not finished"));
    assert!(directory.join("figures/settings.svg").exists() && directory.join("study.tex").exists());

    let old_figure = directory.join("figures/routing-gone.svg");
    fs::write(&old_figure, "of a setting that is no more").unwrap();
    let output = study(&sandbox, &[]);
    assert_eq!((output.code, started(&output.stderr)), (0, vec![]), "{}", output.stderr);
    assert!(!old_figure.exists() && directory.join("figures/settings.svg").exists());
    let output = study(&sandbox, &["--method", "linear"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for task in started(&output.stderr) {
        assert!(["baseline/linear", "eval/linear/0", "report"].contains(&task), "{task} was not new");
    }
    assert!(fs::read_to_string(directory.join("study.csv")).unwrap().contains(",linear,all,2,6,"));
}

#[test]
fn every_order_is_a_table_for_each_number_of_experts() {
    let sandbox = tiny::sandbox();
    let one_seed =
        STUDY.replace("[0, 1]", "[0]").replace(r#""base", "experts", "mixture""#, r#""mixture(fit=ridge)""#);
    let (growing, _) = one_seed.split_once("[[settings]]").unwrap();
    fs::write(sandbox.path("study.toml"), growing.replace("seeds =", "growth = \"in_order\"\nseeds ="))
        .unwrap();
    let output = study(&sandbox, &["--every-order"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let tasks = started(&output.stderr);
    let count = |id: &str| tasks.iter().filter(|task| **task == id).count();
    assert_eq!((count("expert/words"), count("expert/sums"), count("baseline/mixture-fit-ridge")), (1, 1, 3));
    // Runs and items: of one expert there are two choices, both answering all six items.
    let csv = fs::read_to_string(sandbox.path("study/study.csv")).unwrap();
    for part in ["1 expert,mixture(fit=ridge),all,2,6,", "2 experts,mixture(fit=ridge),all,1,6,"] {
        assert!(csv.contains(part), "{part} is not in:\n{csv}");
    }
    let output = study(&sandbox, &["--every-order", "--show"]);
    assert!(output.code == 0 && output.stdout.contains("growth = \"every_order\""), "{}", output.stdout);
    let output = sandbox.mixse(["study", "main", "--every-order", "--show"]);
    assert!(output.code == 2 && output.stderr.contains("--every-order"), "{}", output.stderr);
}

#[test]
fn a_wrong_study_is_refused_with_all_faults() {
    let sandbox = tiny::sandbox();
    let text = STUDY.replace("\"base\", ", "\"bass\", ").replace("domains/sums", "domains/none");
    fs::write(
        sandbox.path("study.toml"),
        text.replace("[config.expert.training]", "[config.expert]\nrank = 4000\n[config.expert.training]"),
    )
    .unwrap();
    let output = study(&sandbox, &[]);
    assert_eq!(output.code, 2, "{}", output.stderr);
    for part in ["no method \"bass\"", "domains/none", "rank"] {
        assert!(output.stderr.contains(part), "{part} is not in:\n{}", output.stderr);
    }
    assert!(!sandbox.path("study").exists());
    let output = sandbox.mixse(["study", "nothing"]);
    assert!(output.code == 2 && output.stderr.contains("main, router"), "{}", output.stderr);
}
