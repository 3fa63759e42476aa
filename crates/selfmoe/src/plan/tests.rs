use std::cell::Cell;

use serde_json::json;

use super::*;

/// `in.txt` → a → b, and c beside them; `runs` counts how often each body ran.
fn plan<'a>(directory: &Path, value: i64, runs: &'a Cell<[u32; 3]>) -> Plan<'a> {
    let count = |index: usize| {
        let mut all = runs.get();
        all[index] += 1;
        runs.set(all);
    };
    let a = Task::new(
        "part/a",
        vec![Input::File("in.txt".into()), Input::value("v", json!(value))],
        vec!["a.txt".into()],
        move |work| {
            count(0);
            let text = fs::read_to_string(work.run().join("in.txt"))?;
            work.record("letters", text.len() as f64);
            // Only whether the text is long reaches the output.
            fs::write(work.output("a.txt")?, if text.len() > 5 { "long" } else { "short" })?;
            Ok(())
        },
    );
    let b = Task::new("part/b", vec![Input::Task("part/a".into())], vec!["b".into()], move |work| {
        count(1);
        fs::write(work.output("b/copy.txt")?, fs::read(work.run().join("a.txt"))?)?;
        Ok(())
    });
    let c = Task::new("c", vec![], vec!["d/c.txt".into()], move |work| {
        count(2);
        Ok(fs::write(work.output("d/c.txt")?, "c")?)
    });
    Plan::new(directory, vec![a, b, c]).unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    runs: Cell<[u32; 3]>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("in.txt"), "abc").unwrap();
        Self { dir, runs: Cell::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the plan and returns how often each body ran this time.
    fn run(&self, value: i64) -> [u32; 3] {
        self.runs.set([0; 3]);
        plan(self.dir.path(), value, &self.runs).run(&mut |_| {}).unwrap();
        self.runs.get()
    }

    fn status(&self, value: i64) -> Vec<Status> {
        plan(self.dir.path(), value, &self.runs)
            .status()
            .unwrap()
            .into_iter()
            .map(|(_, status)| status)
            .collect()
    }
}

#[test]
fn what_is_done_is_skipped_and_what_changed_is_done_again() {
    let f = Fixture::new();
    let waiting = Status::Waiting(vec!["part/a".into()]);
    assert_eq!(f.status(1), [Status::Ready(Reason::New), waiting, Status::Ready(Reason::New)]);
    assert_eq!(f.run(1), [1, 1, 1]);
    assert_eq!(fs::read_to_string(f.path("b/copy.txt")).unwrap(), "short");
    assert_eq!(f.status(1), [Status::Done, Status::Done, Status::Done]);
    assert_eq!(f.run(1), [0, 0, 0]);
    assert_eq!(
        f.status(2)[0],
        Status::Ready(Reason::Inputs(vec![Change {
            input: "value v".into(),
            then: Some(json!(1)),
            now: Some(json!(2))
        }]))
    );
    assert_eq!(f.run(2), [1, 0, 0], "the same output asks for nothing more");
    fs::write(f.path("in.txt"), "abcdefg").unwrap();
    assert_eq!(f.run(2), [1, 1, 0]);
    fs::remove_file(f.path("b/copy.txt")).unwrap();
    assert_eq!(f.status(2)[1], Status::Ready(Reason::Outputs(vec!["b".into()])));
    assert_eq!(f.run(2), [0, 1, 0]);
    fs::remove_file(f.path("d/c.txt")).unwrap();
    fs::write(f.path("a.txt"), "tampered").unwrap();
    assert_eq!(f.run(2), [1, 0, 1]);
    assert_eq!(fs::read_dir(f.path("tasks/work")).unwrap().count(), 0);
}

#[test]
fn damaged_state_files_are_made_again() {
    let f = Fixture::new();
    f.run(1);
    for text in ["", "{", "[1]", "{\"task\":\"part/a\"}", "\u{0}\u{0}"] {
        fs::write(f.path("tasks/state/part+a.json"), text).unwrap();
        assert!(matches!(f.status(1)[0], Status::Ready(Reason::State(_))));
        assert_eq!(f.run(1), [1, 0, 0]);
    }
}

#[test]
fn one_task_runs_alone_when_it_can() {
    let f = Fixture::new();
    let plan = plan(f.dir.path(), 1, &f.runs);
    let message = |id| plan.run_task(id, &mut |_| {}).unwrap_err().to_string();
    assert_eq!(message("part/b"), "task part/b must wait for part/a");
    assert_eq!(message("x"), "there is no task \"x\"; there are: part/a, part/b, c");
    plan.run_task("part/a", &mut |_| {}).unwrap();
    plan.run_task("part/b", &mut |_| {}).unwrap();
    plan.run_task("part/b", &mut |_| {}).unwrap();
    assert_eq!(f.runs.get(), [1, 1, 0]);
    assert_eq!(plan.state("part/a").unwrap().unwrap().figures["letters"], 3.0);
    assert_eq!(plan.state("c").unwrap(), None);
}

#[test]
fn events_tell_what_happens() {
    let f = Fixture::new();
    let plan = plan(f.dir.path(), 1, &f.runs);
    let mut told = Vec::new();
    let mut tell = |event: Event<'_>| {
        told.push(match event {
            Event::Skipped(id) => format!("skip {id}"),
            Event::Started(id, _) => format!("start {id}"),
            Event::Finished(id, _) => format!("finish {id}"),
            Event::Reused(id) => format!("reuse {id}"),
            Event::Waiting(id, _) => format!("wait {id}"),
        });
    };
    plan.run_task("part/a", &mut tell).unwrap();
    plan.run(&mut tell).unwrap();
    assert_eq!(
        told.join(", "),
        "start part/a, finish part/a, skip part/a, start part/b, finish part/b, start c, finish c"
    );
}

#[test]
fn a_failed_task_publishes_nothing_and_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Cell::new(true);
    let body = |work: &Work<'_>| {
        fs::write(work.output("out.txt")?, "whole")?;
        let attempts = fs::read(work.scratch().join("attempts")).unwrap_or_default().len() + 1;
        fs::write(work.scratch().join("attempts"), vec![b'x'; attempts])?;
        work.record("attempts", attempts as f64);
        // A device that is always full.
        if broken.get() { Ok(fs::write("/dev/full", "x")?) } else { Ok(()) }
    };
    let plan = Plan::new(dir.path(), vec![Task::new("t", vec![], vec!["out.txt".into()], body)]).unwrap();
    let message = plan.run(&mut |_| {}).unwrap_err().to_string();
    assert!(message.starts_with("task t failed: ") && message.contains("os error"), "{message}");
    assert!(!dir.path().join("out.txt").exists());
    assert_eq!(plan.status().unwrap()[0].1, Status::Ready(Reason::New));
    broken.set(false);
    plan.run(&mut |_| {}).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("out.txt")).unwrap(), "whole");
    assert_eq!(
        plan.state("t").unwrap().unwrap().figures["attempts"],
        2.0,
        "scratch files outlive an attempt"
    );
}

#[test]
fn scratch_files_made_from_other_inputs_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let run = |value: i64, fail: bool| {
        let body = move |work: &Work<'_>| {
            let mark = work.scratch().join("mark");
            let seen = mark.exists();
            fs::write(&mark, "")?;
            fs::write(work.output("out.txt")?, if seen { "continued" } else { "fresh" })?;
            if fail { Err("stopped".into()) } else { Ok(()) }
        };
        let task = Task::new("t", vec![Input::value("v", json!(value))], vec!["out.txt".into()], body);
        Plan::new(dir.path(), vec![task]).unwrap().run(&mut |_| {})
    };
    run(1, true).unwrap_err();
    run(1, false).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("out.txt")).unwrap(), "continued");
    run(2, true).unwrap_err();
    run(3, false).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("out.txt")).unwrap(), "fresh");
}

#[test]
fn impossible_plans_are_refused() {
    let check = |tasks: &[(&str, &[&str], &str)], expected: &str| {
        let tasks = tasks
            .iter()
            .map(|(id, needs, output)| {
                let inputs = needs.iter().map(|id| Input::Task((*id).to_owned())).collect();
                Task::new(*id, inputs, vec![PathBuf::from(*output)], |_| Ok(()))
            })
            .collect();
        let message = Plan::new("x", tasks).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    check(&[("a", &[], "o"), ("a", &[], "p")], "\"a\": it is there twice");
    check(&[("b", &["a"], "o"), ("a", &[], "p")], "\"b\": it needs \"a\"");
    check(&[("a", &["a"], "o")], "needs \"a\"");
    check(&[("a", &[], "o"), ("b", &[], "o/p")], "o/p is there twice");
    for id in ["", "a//b", "../a", "a b", "a+b", "/a"] {
        check(&[(id, &[], "o")], "its id is not made of");
    }
    for output in ["", "../o", "/o", "a/../o"] {
        check(&[("a", &[], output)], "not below the run directory");
    }
}

#[test]
fn a_missing_input_or_output_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let message = |inputs, outputs| {
        let plan = Plan::new(dir.path(), vec![Task::new("t", inputs, outputs, |_| Ok(()))]).unwrap();
        plan.run(&mut |_| {}).unwrap_err().to_string()
    };
    let text = message(vec![Input::File("no.txt".into())], vec![]);
    assert!(text.contains("task t needs") && text.contains("no.txt"), "{text}");
    let text = message(vec![], vec!["out.txt".into()]);
    assert_eq!(text, "task t failed: it finished without making out.txt");
}

#[test]
fn the_order_of_keys_changes_no_hash() {
    let one = serde_json::from_str(r#"{"a": [1, {"x": 1, "y": 2}], "b": "\"" }"#).unwrap();
    let two = serde_json::from_str(r#"{"b": "\"", "a": [1, {"y": 2, "x": 1}]}"#).unwrap();
    let other = serde_json::from_str(r#"{"b": "\"", "a": [{"y": 2, "x": 1}, 1]}"#).unwrap();
    assert_eq!(state::hash_value(&one), state::hash_value(&two));
    assert_ne!(state::hash_value(&one), state::hash_value(&other));
}

#[test]
fn runs_that_share_a_store_make_equal_results_once() {
    let dir = tempfile::tempdir().unwrap();
    let made = RefCell::new(Vec::new());
    let run = |name: &str, value: i32| {
        let task = |id: &'static str, inputs, output: &'static str| {
            let made = &made;
            Task::new(id, inputs, vec![output.into()], move |work| {
                made.borrow_mut().push(format!("{name} {id}"));
                work.record("steps", 3.0);
                Ok(fs::write(work.output(output)?, format!("{id} {value}"))?)
            })
        };
        let tasks = vec![
            task("data", vec![Input::value("size", 1.into())], "data.txt"),
            task(
                "expert",
                vec![Input::Task("data".into()), Input::value("rank", value.into())],
                "expert.txt",
            ),
            task("report", vec![Input::Task("data".into())], "report.txt").of_this_run(),
        ];
        let store = Store::new(dir.path().join("store"));
        let plan = Plan::new(dir.path().join(name), tasks).unwrap().with_store(store);
        let mut told = Vec::new();
        plan.run(&mut |event| {
            if let Event::Reused(id) = event {
                told.push(id.to_owned());
            }
        })
        .unwrap();
        told.join(" ")
    };
    assert_eq!(run("a", 1), "");
    assert_eq!(run("b", 2), "data", "another rank is another expert; the report belongs to its run");
    assert_eq!(run("c", 1), "data expert");
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    assert_eq!((read("b/data.txt"), read("c/expert.txt")), ("data 1".into(), "expert 1".into()));
    let state = read("c/tasks/state/expert.json");
    assert!(state.contains("\"reused\": true") && state.contains("\"steps\": 3.0"), "{state}");
    assert_eq!(
        made.take(),
        ["a data", "a expert", "a report", "b expert", "b report", "c report"].map(str::to_owned)
    );
    // A damaged entry is made again.
    for entry in fs::read_dir(dir.path().join("store")).unwrap() {
        let path = entry.unwrap().path().join("files/expert.txt");
        if path.exists() {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "damaged").unwrap();
        }
    }
    assert_eq!(run("d", 1), "data");
    assert_eq!((made.take().len(), read("d/expert.txt").as_str()), (2, "expert 1"));
}

/// A task of this version whose numbers come from this machine.
fn versioned(directory: &Path, version: Option<u32>, machine: &str, value: i64) -> Plan<'static> {
    let write = |work: &Work<'_>| Ok(fs::write(work.output("a.txt")?, "a")?);
    let inputs = vec![Input::fixed("machine", json!(machine)), Input::value("v", json!(value))];
    let task = Task::new("a", inputs, vec!["a.txt".into()], write);
    Plan::new(
        directory,
        vec![match version {
            Some(version) => task.with_version(version),
            None => task,
        }],
    )
    .unwrap()
}

#[test]
fn other_versions_are_done_again_and_other_machines_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = |version, machine, value| {
        let mut ran = Vec::new();
        let result = versioned(dir.path(), version, machine, value).run(&mut |event| {
            if let Event::Started(_, reason) = event {
                ran.push(reason);
            }
        });
        result.map(|()| ran)
    };
    assert_eq!(run(None, "one", 1).unwrap(), [Reason::New]);
    let unversioned = run(Some(1), "one", 1).unwrap_err().to_string();
    for part in ["earlier version", "report", "tasks/state"] {
        assert!(unversioned.contains(part), "{unversioned}");
    }
    // Whatever else has changed.
    assert!(matches!(run(Some(1), "one", 2), Err(Error::Unversioned { .. })));
    fs::remove_dir_all(dir.path().join("tasks/state")).unwrap();
    assert_eq!(run(Some(1), "one", 1).unwrap(), [Reason::New]);
    assert_eq!(run(Some(1), "one", 1).unwrap(), []);
    let again = run(Some(2), "one", 1).unwrap();
    let [Reason::Inputs(changes)] = &again[..] else { panic!("{again:?}") };
    assert_eq!(changes[0].to_string(), "version: 1 → 2");
    let elsewhere = run(Some(2), "other", 1).unwrap_err().to_string();
    for part in ["machine: \"one\" → \"other\"", "tasks/state/a.json", "another directory"] {
        assert!(elsewhere.contains(part), "{elsewhere}");
    }
    assert!(matches!(
        versioned(dir.path(), Some(2), "other", 1).status().unwrap()[0].1,
        Status::Ready(Reason::Elsewhere(_))
    ));
    assert_eq!(run(Some(2), "one", 1).unwrap(), []);
    // A task that is to be made again anyway is made here.
    assert!(matches!(&run(Some(2), "other", 2).unwrap()[..], [Reason::Inputs(_)]));
}

#[test]
fn a_store_mixes_no_machines_and_no_versions() {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    let mut reused = |version, machine| {
        number += 1;
        let mut reused = false;
        let plan = versioned(&dir.path().join(number.to_string()), Some(version), machine, 1);
        let plan = plan.with_store(Store::new(dir.path().join("store")));
        plan.run(&mut |event| reused |= matches!(event, Event::Reused(_))).unwrap();
        reused
    };
    assert!(!reused(1, "one"));
    assert!(reused(1, "one"));
    assert!(!reused(2, "one"));
    assert!(!reused(1, "other"));
    assert!(reused(2, "one"));
    assert!(reused(1, "other"));
}
