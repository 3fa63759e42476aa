//! What cannot work is refused before anything starts: with file, line or key, the right exit code, and nothing written.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use mixse_testing::{gguf::GgufFile, speaker, tiny as models};

use crate::{common::Sandbox, tiny};

/// Spoils something in a sandbox.
type Spoil = fn(&Sandbox);

/// Runs after `spoil`; the run must be refused with `code` and all `parts` in the message, and leave no directory.
fn check(what: &str, code: i32, parts: &[&str], spoil: Spoil) {
    let sandbox = tiny::sandbox();
    spoil(&sandbox);
    let output = tiny::run(&sandbox, "run");
    assert_eq!(output.code, code, "{what}: {}", output.stderr);
    for part in parts {
        assert!(output.stderr.contains(part), "{what}: {part:?} is not in:\n{}", output.stderr);
    }
    assert!(!sandbox.path("run").exists(), "{what}: the run directory was made");
}

fn change(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn configure(sandbox: &Sandbox, from: &str, to: &str) {
    change(&sandbox.path("mixse.toml"), from, to);
}

/// Makes the base a GGUF file.
fn with_gguf(sandbox: &Sandbox, spoil: impl FnOnce(&mut GgufFile)) {
    let mut file = models::gguf("llama");
    spoil(&mut file);
    fs::write(sandbox.path("model.gguf"), file.bytes()).unwrap();
    configure(sandbox, "base = \"model\"", "base = \"model.gguf\"");
}

#[test]
fn wrong_models() {
    check("no such model", 2, &["nowhere", "models that can be pulled"], |sandbox| {
        configure(sandbox, "base = \"model\"", "base = \"nowhere\"");
    });
    check("half of the weights", 1, &["model.safetensors"], |sandbox| {
        let path = sandbox.path("model/model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    check("no weights", 1, &["model"], |sandbox| {
        fs::remove_file(sandbox.path("model/model.safetensors")).unwrap();
    });
    check("unknown architecture", 1, &["config.json", "mamba"], |sandbox| {
        change(&sandbox.path("model/config.json"), "\"llama\"", "\"mamba\"");
    });
    check("no tokenizer", 1, &["tokenizer.json"], |sandbox| {
        fs::remove_file(sandbox.path("model/tokenizer.json")).unwrap();
    });
    check("unknown tensor type", 1, &["model.gguf", "blk.0.attn_q.weight", "IQ4_NL"], |sandbox| {
        with_gguf(sandbox, |file| file.tensor("blk.0.attn_q.weight").kind = 20);
    });
    check("half a GGUF file", 1, &["model.gguf"], |sandbox| {
        with_gguf(sandbox, |_| ());
        let path = sandbox.path("model.gguf");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
}

/// Puts a tensor more into the base's file.
fn with_extra_tensor(sandbox: &Sandbox) {
    let path = sandbox.path("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    header["model.layers.0.extra.weight"] = serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [bytes.len() - 8 - len, bytes.len() - 8 - len]});
    let header = header.to_string();
    fs::write(
        &path,
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + len..]].concat(),
    )
    .unwrap();
}

#[test]
fn tensors_that_nothing_reads() {
    check("a tensor more", 1, &["model.layers.0.extra.weight", "--ignore-unused"], with_extra_tensor);
    let sandbox = tiny::sandbox();
    with_extra_tensor(&sandbox);
    let inspect = |more: &[&str]| {
        sandbox.mixse([&["inspect", "logits", "--model", "model", "--ids", "1,2"], more].concat())
    };
    assert_eq!(inspect(&[]).code, 1);
    let fine = inspect(&["--ignore-unused"]);
    assert_eq!(fine.code, 0, "{}", fine.stderr);
    assert!(
        fine.stderr.contains("mixse: note: ")
            && fine.stderr.contains("1 tensors that nothing reads are left out")
    );
    let task = |more: &[&str]| {
        sandbox.mixse(
            [&["run", "-c", "mixse.toml", "--out", "run", "--task", "brainstorm/words/0"], more].concat(),
        )
    };
    let fine = task(&["--ignore-unused"]);
    assert_eq!(fine.code, 0, "{}", fine.stderr);
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_with_its_line() {
    let sandbox = tiny::sandbox();
    let rows =
        "{\"prompt_ids\": [1], \"target_ids\": [2]}\n\n{\"prompt_ids\": [1], \"target_ids\": [2, 99999]}\n";
    fs::write(sandbox.path("rows.jsonl"), rows).unwrap();
    let output = sandbox.mixse([
        "train",
        "expert",
        "--base",
        "model",
        "--ids-data",
        "rows.jsonl",
        "--steps",
        "1",
        "--out",
        "x",
    ]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(
        output.stderr.contains("rows.jsonl: line 3: target_ids[1] is 99999, outside"),
        "{}",
        output.stderr
    );
    assert!(!sandbox.path("x").exists());
}

#[test]
fn wrong_domains() {
    check("malformed seed", 2, &["domains/words/seeds.jsonl:2"], |sandbox| {
        change(&sandbox.path("domains/words/seeds.jsonl"), "{\"id\": \"s1\"", "{\"id\": s1");
    });
    check("four seeds", 2, &["domains/sums/seeds.jsonl", "4 usable seeds, at least 5"], |sandbox| {
        let path = sandbox.path("domains/sums/seeds.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.lines().take(4).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    });
    check("unknown key", 2, &["domains/words/domain.toml:", "`max_words`"], |sandbox| {
        change(&sandbox.path("domains/words/domain.toml"), "[filters]", "[filters]\nmax_words = 3");
    });
    check("no such domain", 2, &["poetry", "knowledge, reasoning, math, coding"], |sandbox| {
        configure(sandbox, "domains/words", "poetry");
    });
    check(
        "no check items left",
        2,
        &["words has ", "evaluation.skip = 500 leaves none", "sums has "],
        |sandbox| {
            configure(sandbox, "[evaluation]", "[evaluation]\nskip = 500");
        },
    );
}

#[test]
fn wrong_configurations() {
    check("unknown key", 2, &["mixse.toml, line 8, generation.promts", "prompts"], |sandbox| {
        configure(sandbox, "prompts = 10", "promts = 10");
    });
    check("wrong type", 2, &["mixse.toml, line 8, generation.prompts"], |sandbox| {
        configure(sandbox, "prompts = 10", "prompts = \"ten\"");
    });
    check("out of range", 2, &["mixse.toml", "router", "top_k"], |sandbox| {
        configure(sandbox, "[router.training]", "[router]\ntop_k = 3\n\n[router.training]");
    });
    check(
        "a rank too large for a domain",
        2,
        &["expert.domains.sums", "rank 4000 does not fit"],
        |sandbox| {
            configure(
                sandbox,
                "[router.training]",
                "[expert.domains.sums]\nrank = 4000\n\n[router.training]",
            );
        },
    );
    check("settings for no domain", 2, &["expert.domains.poetry", "words, sums"], |sandbox| {
        configure(sandbox, "[router.training]", "[expert.domains.poetry]\nrank = 4\n\n[router.training]");
    });
    check("no TOML", 2, &["mixse.toml", "line"], |sandbox| {
        configure(sandbox, "[generation]", "[generation");
    });
    check("no file", 1, &["mixse.toml"], |sandbox| {
        fs::remove_file(sandbox.path("mixse.toml")).unwrap();
    });
}

#[test]
fn devices_without_a_backend() {
    let sandbox = tiny::sandbox();
    let check = |arguments: &[&str], parts: &[&str]| {
        let output = sandbox.mixse(arguments);
        assert_eq!(output.code, 2, "{arguments:?}: {}", output.stderr);
        for part in parts {
            assert!(output.stderr.contains(part), "{arguments:?}: {part:?} is not in:\n{}", output.stderr);
        }
        assert_eq!(output.stdout, "", "{arguments:?}");
    };
    for device in ["cuda", "metal"] {
        let parts: [&str; 3] = [device, "no backend", "--device cpu"];
        check(&["run", "-c", "mixse.toml", "--out", "run", "--device", device], &parts);
        let logits = ["inspect", "logits", "--model", "model", "--ids", "1,2", "--device", device];
        check(&logits, &parts);
        // Before a model is looked for, let alone pulled.
        check(&["chat", "--model", "nowhere", "--device", device], &parts);
        check(&["bench", "--model", "model", "--device", device], &["bench", device]);
    }
    assert!(!sandbox.path("run").exists(), "the run directory was made");
    check(&["inspect", "logits", "--model", "model", "--ids", "1", "--device", "gpu"], &["cpu, cuda, metal"]);
}

#[test]
fn precisions_that_the_portable_operations_lack() {
    check("portable in 8 bits", 2, &["int8", "portable", "bf16"], |sandbox| {
        configure(sandbox, "precision = \"f32\"", "precision = \"int8\"\nportable = true");
    });
    check("a run in 8 bits", 2, &["int8", "trains", "bf16, f32 or int4"], |sandbox| {
        configure(sandbox, "precision = \"f32\"", "precision = \"int8\"");
    });
    let sandbox = tiny::sandbox();
    let output = sandbox.mixse([
        "inspect",
        "logits",
        "--model",
        "model",
        "--ids",
        "1",
        "--portable",
        "--precision",
        "int4",
    ]);
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(output.stderr.contains("int4"), "{}", output.stderr);
}

#[test]
fn directories_of_others_are_left_alone() {
    let sandbox = tiny::sandbox();
    let output = sandbox.mixse(["run", "-c", "mixse.toml", "--out", "run", "--task", "brainstorm/words/0"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    configure(&sandbox, "epochs = 2", "epochs = 5");
    fs::create_dir(sandbox.path("mine")).unwrap();
    fs::write(sandbox.path("mine/letter.txt"), "Dear").unwrap();
    for (out, parts) in [
        ("run", ["another configuration", "expert.training.epochs: 2 there, 5 wanted"]),
        ("mine", ["not empty", "choose another --out"]),
    ] {
        let before = tiny::files(&sandbox.path(out));
        let output = tiny::run(&sandbox, out);
        assert_eq!(output.code, 2, "{out}: {}", output.stderr);
        for part in parts {
            assert!(output.stderr.contains(part), "{part:?} is not in:\n{}", output.stderr);
        }
        assert!(tiny::files(&sandbox.path(out)) == before, "{out} was changed");
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let sandbox = tiny::sandbox();
    for id in
        ["brainstorm/words/0", "brainstorm/words/1", "select/words", "respond/words/0", "respond/words/1"]
            .into_iter()
            .chain(["assemble/words", "expert/words"])
    {
        let output = sandbox.mixse(["run", "-c", "mixse.toml", "--out", "run", "--task", id]);
        assert_eq!(output.code, 0, "{}", output.stderr);
    }
    speaker::write(&sandbox.path("other"), 2);
    let logits = |model: &str| {
        sandbox.mixse([
            "inspect",
            "logits",
            "--model",
            model,
            "--ids",
            "1,2",
            "--json",
            "--expert",
            "run/experts/words",
        ])
    };
    assert_eq!(logits("model").code, 0, "{}", logits("model").stderr);
    let refused = logits("other");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("run/experts/words"), "{}", refused.stderr);
    assert!(refused.stderr.contains("base"), "{}", refused.stderr);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let sandbox = tiny::sandbox();
    fs::create_dir(sandbox.path("locked")).unwrap();
    fs::set_permissions(sandbox.path("locked"), PermissionsExt::from_mode(0o555)).unwrap();
    fs::set_permissions(sandbox.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = sandbox.command(["run", "-c", "mixse.toml", "--out", "locked/run"]);
    if rustix::process::geteuid().is_root() {
        // Permissions do not bind root.
        command.uid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(e) => return eprintln!("not tested: the program cannot be run by another user: {e}"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("locked/run") && stderr.contains("ermission denied"), "{stderr}");
    assert!(!stderr.contains("brainstorm"), "no work may begin: {stderr}");
    assert_eq!(tiny::files(&sandbox.path("locked")), []);
}

/// A disk of `SIZE` bytes, a run on it that fails, room made, the run again, and what it left copied out.
const SMALL_DISK: &str = "
mkdir disk && mount -t tmpfs -o size=SIZE tmpfs disk || exit 77
\"$MIXSE\" run -c mixse.toml --out disk/run 2>full.txt
echo $? >code.txt
find disk/run -name '.mixse-tmp-*' >left.txt
mount -o remount,size=64m disk
\"$MIXSE\" run -c mixse.toml --out disk/run 2>again.txt || exit 1
cp -r disk/run after
";

#[test]
fn a_full_disk_stops_a_run_that_goes_on_when_there_is_room() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "whole");
    let size: usize = tiny::files(&sandbox.path("whole")).iter().map(|(_, bytes)| bytes.len()).sum();
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c"])
        .arg(SMALL_DISK.replace("SIZE", &(size / 3).to_string()))
        .env("MIXSE", env!("CARGO_BIN_EXE_mixse"))
        .env("HOME", sandbox.path(""))
        .current_dir(sandbox.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if sandbox.path("again.txt").exists() => {
            panic!("{status}: {}", fs::read_to_string(sandbox.path("again.txt")).unwrap());
        }
        other => return eprintln!("not tested: no small disk can be mounted here ({other:?})"),
    }
    let read = |name: &str| fs::read_to_string(sandbox.path(name)).unwrap();
    assert_eq!(read("code.txt").trim(), "1", "{}", read("full.txt"));
    assert!(read("full.txt").contains("No space left on device"), "{}", read("full.txt"));
    assert!(read("full.txt").contains("disk/run/"), "the file is named: {}", read("full.txt"));
    assert_eq!(read("left.txt"), "");
    tiny::assert_same(&sandbox.path("after"), &sandbox.path("whole"));
}

/// An adapter on a small disk, the disk filled, and a training that is to replace the adapter.
const FULL_FOR_AN_ADAPTER: &str = "
mkdir disk && mount -t tmpfs -o size=8m tmpfs disk || exit 77
train() { \"$MIXSE\" train expert --model model --ids-data ids.jsonl --steps 1 --out disk/e \"$@\"; }
train --rank 4 2>first.txt || exit 1
cp -r disk/e before
dd if=/dev/zero of=disk/fill bs=1k 2>/dev/null
train --rank 16 --alpha 99 --force 2>full.txt
echo $? >code.txt
cp -r disk/e after
ls -A disk >left.txt
exit 0
";

#[test]
fn a_full_disk_leaves_an_adapter_as_it_was() {
    let sandbox = tiny::sandbox();
    let row = "{\"prompt_ids\": [5, 6], \"target_ids\": [7, 8, 9]}\n";
    fs::write(sandbox.path("ids.jsonl"), row.repeat(4)).unwrap();
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", FULL_FOR_AN_ADAPTER])
        .env("MIXSE", env!("CARGO_BIN_EXE_mixse"))
        .env("HOME", sandbox.path(""))
        .current_dir(sandbox.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if sandbox.path("first.txt").exists() => {
            panic!("{status}: {}", fs::read_to_string(sandbox.path("first.txt")).unwrap());
        }
        other => return eprintln!("not tested: no small disk can be mounted here ({other:?})"),
    }
    let read = |name: &str| fs::read_to_string(sandbox.path(name)).unwrap();
    assert_eq!(read("code.txt").trim(), "1", "{}", read("full.txt"));
    assert!(read("full.txt").contains("No space left on device"), "{}", read("full.txt"));
    assert!(tiny::files(&sandbox.path("after")) == tiny::files(&sandbox.path("before")));
    assert_eq!(read("left.txt"), "e\nfill\n");
}

#[cfg(target_os = "linux")]
#[test]
fn devices_and_pipes_are_not_read() {
    let sandbox = tiny::sandbox();
    let pipe = sandbox.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let check = |arguments: &[&str], expected: &str| {
        let output = sandbox.mixse(arguments);
        assert!(output.code != 0, "{arguments:?}");
        assert!(output.stderr.contains(expected), "{arguments:?}: {}", output.stderr);
    };
    for (path, what) in [("/dev/zero", "a device"), ("pipe", "a pipe"), ("/dev/tty", "a device")] {
        check(&["run", "-c", path, "--out", "x"], what);
        check(&["study", path, "--out", "x"], what);
        check(&["eval", "--model", "model", "--tasks", "mine.toml", "--samples", path], what);
        check(&["inspect", "logits", "--model", path, "--ids", "1"], what);
        check(&["train", "expert", "--model", "model", "--ids-data", path, "--out", "x"], what);
        let domain = sandbox.path("domains/words/domain.toml");
        let text = fs::read_to_string(&domain).unwrap();
        fs::write(
            &domain,
            text.replace("\nanswer =", &format!("\nseeds = '{}'\nanswer =", sandbox.path(path).display())),
        )
        .unwrap();
        check(&["run", "-c", "mixse.toml", "--out", "x"], what);
        fs::write(&domain, text).unwrap();
        let weights = sandbox.path("model/config.json");
        let kept = fs::read(&weights).unwrap();
        fs::remove_file(&weights).unwrap();
        std::os::unix::fs::symlink(sandbox.path(path), &weights).unwrap();
        check(&["inspect", "logits", "--model", "model", "--ids", "1"], what);
        fs::remove_file(&weights).unwrap();
        fs::write(&weights, kept).unwrap();
    }
    // What a file's name or content says is no command to a terminal.
    let output = sandbox.mixse(["inspect", "logits", "--model", "no\u{1b}[2Jmodel", "--ids", "1"]);
    assert!(output.code != 0 && !output.stderr.contains('\u{1b}'), "{:?}", output.stderr);
}
