use std::fs;

use super::*;

const MANIFEST: &str = "name = 'pets'\ntitle = 'Pets'\ndescription = 'About pets.'\nanswer = 'text'\n\
    requirements = 'Ask about pets.'\nrole = 'You know pets.'\n";

fn seeds(count: usize) -> String {
    (1..=count)
        .map(|i| {
            format!("{{\"id\": \"s{i}\", \"instruction\": \"Question {i}?\", \"output\": \"Answer {i}.\"}}\n")
        })
        .collect()
}

/// A folder with these files.
fn folder(manifest: &str, seeds: &str, check: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("domain.toml"), manifest).unwrap();
    fs::write(folder.path().join("seeds.jsonl"), seeds).unwrap();
    if let Some(check) = check {
        fs::write(folder.path().join("check.jsonl"), check).unwrap();
    }
    folder
}

#[track_caller]
fn refused(manifest: &str, seeds: &str, check: Option<&str>, expected: &[&str]) {
    let folder = folder(manifest, seeds, check);
    let message = Domain::open(folder.path()).unwrap_err().to_string();
    for part in expected {
        assert!(message.contains(part), "{part:?} is not in:\n{message}");
    }
}

#[test]
fn a_folder_is_read() {
    let check =
        r#"{"id":"c","instruction":"Dog?","output":"Yes.","answer":{"kind":"text","accept":["yes"]}}"#;
    let folder = folder(&format!("{MANIFEST}[limits]\nmax_response_tokens = 99\n"), &seeds(5), Some(check));
    let domain = Domain::open(folder.path()).unwrap();
    assert_eq!((domain.name(), domain.seeds.len(), domain.check.len()), ("pets", 5, 1));
    assert_eq!(domain.manifest.limits.max_response_tokens, 99);
    assert_eq!(domain.manifest.limits.max_similarity, 0.7);
    assert_eq!(find(folder.path().to_str().unwrap()).unwrap(), domain);
}

#[test]
fn a_domain_needs_no_check_set() {
    assert!(Domain::open(folder(MANIFEST, &seeds(5), None).path()).unwrap().check.is_empty());
}

#[test]
fn faults_of_the_manifest_name_line_and_key() {
    let s = seeds(5);
    refused(&format!("{MANIFEST}colour = 1\n"), &s, None, &["domain.toml:7: unknown field `colour`"]);
    refused(
        &format!("{MANIFEST}[limits]\nmax_words = 1\n"),
        &s,
        None,
        &["domain.toml:8: unknown field `max_words`"],
    );
    refused(
        &format!("{MANIFEST}[limits]\nmax_similarity = 2.0"),
        &s,
        None,
        &["domain.toml:8: `max_similarity` is 2"],
    );
    refused(&format!("{MANIFEST}[limits]\nmax_response_tokens = -1"), &s, None, &["domain.toml:8: "]);
    refused(&MANIFEST.replace("pets'", "../pets'"), &s, None, &["domain.toml:1: `name` must be"]);
    refused(&MANIFEST.replace("'You know pets.'", "''"), &s, None, &["domain.toml:6: `role` is empty"]);
    refused(&MANIFEST.replace("'text'", "'poem'"), &s, None, &["domain.toml:4: unknown variant `poem`"]);
    refused("name = 'a", &s, None, &["domain.toml:1: "]);
    refused("", &s, None, &["missing field `name`"]);
}

#[test]
fn a_bad_row_says_nothing_about_the_others() {
    for bad in ["{\"id\": 5}\n", "nonsense\n"] {
        let folder = folder(MANIFEST, &(seeds(99) + bad), None);
        let message = Domain::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("seeds.jsonl:100: ") && !message.contains("usable"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn byte_order_marks_are_no_part_of_a_file() {
    let check =
        r#"{"id":"c","instruction":"Dog?","output":"Yes.","answer":{"kind":"text","accept":["yes"]}}"#;
    let folder = folder(
        &format!("\u{feff}{MANIFEST}"),
        &format!("\u{feff}{}\u{feff}{}", seeds(5), seeds(6).lines().last().unwrap()),
        Some(&format!("\u{feff}{check}")),
    );
    let domain = Domain::open(folder.path()).unwrap();
    assert_eq!((domain.seeds.len(), domain.check.len()), (6, 1));
}

#[cfg(target_os = "linux")]
#[test]
fn devices_are_no_files_of_seeds() {
    let manifest = format!("{MANIFEST}seeds = '/dev/zero'\n");
    refused(&manifest, &seeds(5), None, &["/dev/zero: is a device, not a regular file"]);
}

#[test]
fn all_faults_of_the_rows_are_listed_at_once() {
    refused(MANIFEST, &seeds(4), None, &["seeds.jsonl: 4 usable seeds, at least 5"]);
    let bad = seeds(5)
        + "{\"id\":\"s2\",\"instruction\":\" question  1? \",\"output\":\" \"}\n"
        + "{\"id\":\"a\",\"instruction\":\"Pick\",\"input\":\"A. x\\nB. y\",\"output\":\"C\",\"answer\":{\"kind\":\"choice\",\"letter\":\"C\"}}\n";
    let check = "{\"id\":\"c\",\"instruction\":\"Question 3?\",\"output\":\"x\"}\n";
    refused(
        MANIFEST,
        &bad,
        Some(check),
        &[
            "seeds.jsonl:6: id `s2` is already used in line 2",
            "seeds.jsonl:6: `output` is empty",
            "seeds.jsonl:6: the same instruction and input as in line 1",
            "seeds.jsonl:7: the answer is C, but",
            "check.jsonl:1: no `answer`",
            "check.jsonl:1: also a seed",
        ],
    );
    refused(MANIFEST, &format!("{}{{\n", seeds(5)), Some("[]\n"), &["seeds.jsonl:6: ", "check.jsonl:1: "]);
    let long =
        format!("{{\"id\":\"l\",\"instruction\":\"{}\",\"output\":\"x\"}}", "x".repeat(MAX_FIELD_BYTES + 1));
    refused(
        MANIFEST,
        &format!("{}{long}\n", seeds(5)),
        None,
        &["seeds.jsonl:6: `instruction` has 32769 bytes"],
    );
}

#[test]
fn missing_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    assert!(Domain::open(empty.path()).unwrap_err().to_string().contains("domain.toml"));
    refused(&format!("{MANIFEST}check = 'held.jsonl'\n"), &seeds(5), None, &["held.jsonl"]);
    assert!(find("no such domain").unwrap_err().to_string().contains("no built-in domain"));
}

#[test]
fn published_formats_are_read() {
    let check =
        |format: RowFormat, row: &str, instruction: &str, input: &str, output: &str, answer: Answer| {
            let rows = format.rows(Path::new("x.jsonl"), row).unwrap();
            let e = &rows[0].value;
            assert_eq!((&*e.instruction, &*e.input, &*e.output), (instruction, input, output));
            assert_eq!(e.answer.as_ref(), Some(&answer));
        };
    check(
        RowFormat::Mmlu,
        r#"{"id":"m","subject":"pet_care","question":"Who barks?","choices":["cat","dog"],"answer":1}"#,
        "Choose the right option for this question about pet care.",
        "Who barks?\nA. cat\nB. dog",
        "B. dog",
        Answer::Choice { letter: 'B' },
    );
    check(
        RowFormat::Gsm8k,
        r#"{"id":"g","question":"Two and two?","answer":"It is 2+2=<<2+2=4>>4.\n#### 1,004"}"#,
        "Solve this math word problem step by step.",
        "Two and two?",
        "It is 2+2=4.\nThe answer is 1,004.",
        Answer::Number { value: "1004".into(), expression: None },
    );
    check(
        RowFormat::Bbh,
        r#"{"id":"b","task":"word_sorting","input":"b a","target":"a b"}"#,
        "Solve this word sorting task step by step.",
        "b a",
        "So the answer is a b.",
        Answer::Text { accept: vec!["a b".into()] },
    );
    check(
        RowFormat::Mbpp,
        r#"{"text":"Twice.","code":"def help(): 0\r\ndef twice(x):\r\n  return 2 * x ","task_id":3,"test_list":["assert twice(1) == 2"]}"#,
        "Write a Python function for this task.",
        "Twice.\nYour code should pass this test:\nassert twice(1) == 2",
        "def help(): 0\ndef twice(x):\n  return 2 * x",
        Answer::Code { entry_point: "twice".into(), tests: vec!["assert twice(1) == 2".into()] },
    );
    check(
        RowFormat::Humaneval,
        r#"{"task_id":"H/1","prompt":"def f():\n","entry_point":"f","canonical_solution":"    return 1\n","test":"def check(c):\n    assert c() == 1"}"#,
        "Complete this Python function.",
        "def f():\n",
        "def f():\n    return 1",
        Answer::Code {
            entry_point: "f".into(),
            tests: vec!["def check(c):\n    assert c() == 1\ncheck(f)\n".into()],
        },
    );
    check(
        RowFormat::Mmlu,
        r#"{"instruction":"Pick.","input":"A. cat\nB. dog","output":"A. cat","source":"s","raw":{"choices":["cat","dog"],"answer":0}}"#,
        "Pick.",
        "A. cat\nB. dog",
        "A. cat",
        Answer::Choice { letter: 'A' },
    );
}

#[test]
fn malformed_published_rows_are_refused() {
    let check = |format: RowFormat, row: &str, expected: &str| {
        let message = format.rows(Path::new("x.jsonl"), row).unwrap_err().to_string();
        assert!(message.contains("x.jsonl:1: ") && message.contains(expected), "{message}");
    };
    check(RowFormat::Mmlu, r#"{"question":"?","choices":["a"],"answer":1}"#, "there are 1 choices");
    check(RowFormat::Mmlu, r#"{"question":"?","choices":[1],"answer":0}"#, "`choices`");
    check(RowFormat::Gsm8k, r#"{"question":"?","answer":"4"}"#, "#### n");
    check(RowFormat::Gsm8k, r#"{"question":"?","answer":"x #### four"}"#, "not a number");
    check(RowFormat::Bbh, r#"{"input":"?"}"#, "`task`");
    check(RowFormat::Mbpp, r#"{"text":"?","code":"x = 1","test_list":["assert f()"]}"#, "no function");
    check(RowFormat::Humaneval, "[]", "map");
}

/// The public benchmark subsets, where they lie beside the repository.
#[test]
fn shared_benchmark_files_are_read() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    for (format, seeds, check) in [
        (RowFormat::Mmlu, "knowledge", "mmlu"),
        (RowFormat::Bbh, "reasoning", "bbh"),
        (RowFormat::Gsm8k, "math", "gsm8k"),
        (RowFormat::Mbpp, "coding", "mbpp"),
        (RowFormat::Humaneval, "", "humaneval"),
    ] {
        for file in [format!("seeds/{seeds}.jsonl"), format!("eval/{check}.jsonl")] {
            let path = data.join(file);
            if path.is_file() {
                let rows = format.rows(&path, &fs::read_to_string(&path).unwrap()).unwrap();
                assert!(rows.len() >= 64 && rows.iter().all(|r| r.value.answer.is_some()));
                assert_eq!(faults_of(&path, &rows), []);
            }
        }
    }
}

#[test]
fn the_example_domain_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/opposites");
    let domain = Domain::open(&folder).unwrap();
    assert_eq!((domain.name(), domain.seeds.len(), domain.check.len()), ("opposites", 100, 20));
    let quoted = |row: &Example| row.instruction.split('\'').nth(1).unwrap().to_owned();
    let taught: HashSet<String> = domain.seeds.iter().map(quoted).collect();
    let leaked: Vec<String> = domain.check.iter().map(quoted).filter(|word| taught.contains(word)).collect();
    assert!(leaked.is_empty(), "words of check items that are in seeds: {leaked:?}");
}

#[test]
fn built_in_domains_are_valid_and_can_be_copied() {
    let names: Vec<&str> = built_in_names().collect();
    assert_eq!(names, ["knowledge", "reasoning", "math", "coding"]);
    for name in names {
        let domain = find(name).unwrap();
        assert_eq!((domain.name(), domain.seeds.len(), domain.check.len()), (name, 100, 100));
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("mine");
        write_built_in(name, &copy).unwrap();
        assert_eq!(Domain::open(&copy).unwrap(), domain);
        let message = write_built_in(name, &copy).unwrap_err().to_string();
        assert!(message.contains("already exists"), "{message}");
    }
    assert!(built_in("poetry").is_none());
    assert!(write_built_in("poetry", Path::new("/nowhere")).unwrap_err().to_string().contains("poetry"));
}
