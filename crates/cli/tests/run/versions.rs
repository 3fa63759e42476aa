//! Keys of results: the version of the code is raised when it makes other bytes, and what does not matter makes nothing again.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{methods::started, tiny};

/// Of each kind of task of a tiny run: the version in `crates/cli/src/pipeline/versions.rs` and a digest of what it makes. Where the digest
/// changes on purpose, the version is raised with it, so that runs and studies make their results again. Numbers are rounded and
/// tensors summed up before they are hashed: they differ in their last digits between machines.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const MADE: &[(&str, u64, &str)] = &[
    ("assemble", 4, "e1d99c9e9a781bce"),
    ("baseline", 1, "2a32086eeddf6484"),
    ("brainstorm", 2, "fbadb2e21017adac"),
    ("eval", 4, "c7d753702f7c9138"),
    ("expert", 2, "f7e03f166f8397c8"),
    ("quality", 2, "60039abb109a0086"),
    ("respond", 2, "bd46fc5e8a7f8b1c"),
    ("round_trip", 2, "1dd16532ba54f010"),
    ("router", 2, "d9451e03fe9d0599"),
    ("routing", 2, "81643395c046a761"),
    ("sample", 2, "2ff56956d1974a23"),
    ("select", 1, "59c54ededc2831c2"),
    ("statistics", 2, "a4e801b566370ab9"),
];

/// A JSON value with its numbers rounded.
fn rounded(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            *value = format!("{:.2e}", number.as_f64().unwrap()).into();
        }
        Value::Array(items) => items.iter_mut().for_each(rounded),
        Value::Object(map) => map.values_mut().for_each(rounded),
        _ => {}
    }
}

/// Name, shape and norm of each tensor of a safetensors file of f32.
fn tensors(bytes: &[u8]) -> String {
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let mut text = String::new();
    for (name, about) in header {
        let place = |i: usize| about["data_offsets"][i].as_u64().unwrap() as usize;
        let values = data[place(0)..place(1)].chunks_exact(4);
        let norm: f64 =
            values.map(|v| f64::from(f32::from_le_bytes(v.try_into().unwrap())).powi(2)).sum::<f64>().sqrt();
        text += &format!("{name} {} {norm:.2e}\n", about["shape"]);
    }
    text
}

fn described(path: &Path) -> String {
    if path.is_dir() {
        let files = tiny::files(path).into_iter();
        return files.map(|(name, _)| format!("{name}\n{}", described(&path.join(&name)))).collect();
    }
    let bytes = fs::read(path).unwrap();
    if path.extension().is_some_and(|ending| ending == "safetensors") {
        return tensors(&bytes);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut values: Vec<Value> = match serde_json::from_str(&text) {
        Ok(value) => vec![value],
        Err(_) => text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
    };
    values.iter_mut().for_each(rounded);
    values.iter().map(|value| format!("{value}\n")).collect()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn other_bytes_have_another_version() {
    let sandbox = tiny::sandbox();
    let config = tiny::CONFIG.replace(
        "tasks = 5",
        "tasks = 5\nround_trip = true\nverify = \"majority\"\nsamples = 2\niterations = 1",
    );
    fs::write(sandbox.path("mixse.toml"), config).unwrap();
    let arguments =
        ["run", "-c", "mixse.toml", "--out", "run", "--method", "ties", "--method", "mixture(fit=ridge)"];
    let output = sandbox.command(arguments).env("MIXSE_ISA", "portable").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut made: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for (name, bytes) in tiny::files(&sandbox.path("run/tasks/state")) {
        let state: Value = serde_json::from_slice(&bytes).unwrap();
        let kind = name.split(['+', '.']).next().unwrap().to_owned();
        // The report tells about this machine and this hour.
        if kind == "report" {
            continue;
        }
        let version = state["values"]["version"].as_u64().unwrap();
        let (there, text) = made.entry(kind).or_default();
        *there = version;
        for output in state["outputs"].as_object().unwrap().keys() {
            *text += &format!("{output}\n{}", described(&sandbox.path("run").join(output)));
        }
    }
    let found: Vec<(String, u64, String)> = made
        .into_iter()
        .map(|(kind, (version, text))| {
            (kind, version, mixse_files::hash_bytes(text.as_bytes())[..16].to_owned())
        })
        .collect();
    let known: Vec<(String, u64, String)> = MADE
        .iter()
        .map(|(kind, version, digest)| ((*kind).to_owned(), *version, (*digest).to_owned()))
        .collect();
    let table: String = found
        .iter()
        .map(|(kind, version, digest)| format!("    ({kind:?}, {version}, {digest:?}),\n"))
        .collect();
    assert!(
        found == known,
        "tasks make other bytes than before: raise the versions of their kinds in crates/cli/src/pipeline/versions.rs, unless the change \
         is in this test's model or configuration alone, and let the table be:\n{table}"
    );
}

#[test]
fn what_only_describes_or_filters_makes_the_base_write_nothing_again() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "run");
    let manifest = sandbox.path("domains/words/domain.toml");
    let check = |from: &str, to: &str, again: &[&str]| {
        let text = fs::read_to_string(&manifest).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&manifest, text.replace(from, to)).unwrap();
        let output = tiny::run(&sandbox, "run");
        assert_eq!(output.code, 0, "{}", output.stderr);
        let ran = started(&output.stderr);
        for (kind, expected) in
            [("brainstorm/words", "brainstorm"), ("respond/words", "respond"), ("select/words", "select")]
        {
            let did = ran.iter().any(|id| id.starts_with(kind));
            assert_eq!(did, again.contains(&expected), "{from} → {to}: {kind} in {ran:?}");
        }
        output.stderr
    };
    let stderr = check("title = \"Tiny\"", "title = \"Small\"", &[]);
    assert_eq!(started(&stderr), [] as [&str; 0]);
    check("description = \"Whatever", "description = \"All that", &[]);
    let stderr = check("max_repetition = 1.0", "max_repetition = 0.99", &["select"]);
    assert!(stderr.contains("filters.limits.max_repetition: 1.0 → 0.99"), "{stderr}");
    check("role = \"Answer.\"", "role = \"Answer it.\"", &["respond"]);
}

#[test]
fn a_run_says_what_changed_and_is_not_continued_with_other_numbers() {
    let sandbox = tiny::sandbox();
    let brainstorm = ["run", "-c", "mixse.toml", "--out", "run", "--task", "brainstorm/words/0"];
    let with = |isa: &str| {
        let output = sandbox.command(brainstorm).env("MIXSE_ISA", isa).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(with("portable").0, Some(0));
    let best = mixse_kernels::isa::best();
    if best.isa().name() != "portable" {
        let (code, stderr) = with(best.isa().name());
        assert_eq!(code, Some(1), "{stderr}");
        let change = format!("arithmetic.instructions: \"portable\" → \"{best}\"");
        assert!(stderr.contains(&change) && stderr.contains("another directory"), "{stderr}");
    }
    let (code, stderr) = with("portable");
    assert!(code == Some(0) && stderr.contains("done before"), "{stderr}");
    // The tokenizer's files decide the tokens, although a model's hash does not cover them.
    let tokenizer = sandbox.path("model/tokenizer_config.json");
    let text = fs::read_to_string(&tokenizer).unwrap_or_else(|_| "{}".into());
    fs::write(&tokenizer, format!("{text}\n")).unwrap();
    let (code, stderr) = with("portable");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("again, because this changed: model.texts: "), "{stderr}");
    // A run of a program that did not record versions.
    for (name, bytes) in tiny::files(&sandbox.path("run/tasks/state")) {
        let mut state: Value = serde_json::from_slice(&bytes).unwrap();
        state["inputs"].as_object_mut().unwrap().shift_remove("value version");
        fs::write(sandbox.path("run/tasks/state").join(name), state.to_string()).unwrap();
    }
    let (code, stderr) = with("portable");
    assert_eq!(code, Some(1), "{stderr}");
    for part in ["earlier version of mixse", "report, chat, serve", "tasks/state"] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn experts_of_the_seeds_alone_need_no_rows() {
    let sandbox = tiny::sandbox();
    let config = format!("methods = [\"base\", \"seed-only\"]\n{}", tiny::CONFIG);
    fs::write(sandbox.path("mixse.toml"), config).unwrap();
    let output = tiny::run(&sandbox, "run");
    assert_eq!(output.code, 0, "{}", output.stderr);
    let ran = started(&output.stderr);
    assert!(ran.iter().any(|id| id.starts_with("eval/seed-only")), "{ran:?}");
    for kind in ["brainstorm", "select", "respond", "assemble", "quality", "expert"] {
        assert!(!ran.iter().any(|id| id.starts_with(kind)), "{kind}: {ran:?}");
    }
    let report = sandbox.mixse(["report", "run", "--json"]);
    assert!(
        report.code == 0 && report.stdout.contains("\"finished\":true"),
        "{}{}",
        report.stdout,
        report.stderr
    );
}
