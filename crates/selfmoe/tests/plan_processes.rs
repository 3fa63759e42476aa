//! Several processes on one plan: raced, killed, and on disks that are full or read-only.
//!
//! A process is this test program again, asked for the one test [`worker`], with the directory in its environment.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at a surprise as tests do")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use mixse_files::files_below;
use mixse_selfmoe::plan::{Input, Plan, Status, Task, Timing, Work};

const DIRECTORY: &str = "MIXSE_PLAN_TEST_DIRECTORY";
const LINES: usize = 20;

/// Two chains of three tasks. Each appends its lines to a scratch file and says in `log`, beside the run directory, which lines it wrote.
fn plan(run: &Path) -> Plan<'static> {
    let mut tasks = Vec::new();
    for chain in ["x", "y"] {
        for step in 0..3 {
            let inputs = (0..step).map(|before| Input::Task(format!("{chain}/{before}"))).collect();
            let output = PathBuf::from(format!("{chain}/{step}.txt"));
            let id = format!("{chain}/{step}");
            tasks.push(Task::new(id.clone(), inputs, vec![output.clone()], move |work| {
                write_lines(work, &id, &output)
            }));
        }
    }
    let timing = Timing { poll: Duration::from_millis(5), ..Timing::default() };
    Plan::new(run, tasks).unwrap().with_timing(timing)
}

fn write_lines(
    work: &Work<'_>,
    id: &str,
    output: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let partial = work.scratch().join("partial.txt");
    let written = fs::read_to_string(&partial).unwrap_or_default();
    // The last line may be half written.
    let whole = &written[..written.rfind('\n').map_or(0, |end| end + 1)];
    fs::write(&partial, whole)?;
    let mut file = fs::OpenOptions::new().append(true).open(&partial)?;
    let mut log = fs::OpenOptions::new().append(true).create(true).open(work.run().with_extension("log"))?;
    for line in whole.lines().count()..LINES {
        work.check()?;
        sleep(Duration::from_millis(1));
        file.write_all(format!("{id} line {line} {}\n", "x".repeat(200)).as_bytes())?;
        log.write_all(format!("{id} {line}\n").as_bytes())?;
    }
    fs::copy(&partial, work.output(output)?)?;
    Ok(())
}

/// What other tests start as a process; does nothing on its own.
#[test]
fn worker() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    if let Err(e) = plan(Path::new(&directory)).run(&mut |_| {}) {
        eprintln!("{e}");
        std::process::exit(3);
    }
}

fn worker_command() -> Vec<String> {
    let program = std::env::current_exe().unwrap().display().to_string();
    [program.as_str(), "--exact", "worker", "--nocapture"].map(str::to_owned).to_vec()
}

fn start(run: &Path) -> Child {
    let command = worker_command();
    Command::new(&command[0])
        .args(&command[1..])
        .env(DIRECTORY, run)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Relative path and content of every result.
fn results(run: &Path) -> Vec<(PathBuf, String)> {
    let outputs = files_below(run).unwrap().into_iter().filter(|path| !path.starts_with("tasks"));
    outputs.map(|path| (path.clone(), fs::read_to_string(run.join(path)).unwrap())).collect()
}

fn undisturbed(directory: &Path) -> Vec<(PathBuf, String)> {
    let run = directory.join("undisturbed");
    plan(&run).run(&mut |_| {}).unwrap();
    results(&run)
}

fn all_done(run: &Path) -> bool {
    plan(run).status().unwrap().iter().all(|(_, status)| *status == Status::Done)
}

#[test]
fn processes_share_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    for child in [start(&run), start(&run), start(&run)] {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    assert!(all_done(&run));
    assert_eq!(results(&run), undisturbed(dir.path()));
    let log = fs::read_to_string(dir.path().join("run.log")).unwrap();
    assert_eq!(log.lines().count(), 6 * LINES, "every line was written once");
}

#[test]
fn killed_at_any_point_it_continues() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let begin = Instant::now();
    let mut kills = 0;
    while !run.exists() || !all_done(&run) {
        assert!(begin.elapsed() < Duration::from_secs(60), "no progress");
        let mut child = start(&run);
        // Long enough to get somewhere on a busy machine, and different every time.
        sleep(Duration::from_millis(20 + 13 * (kills % 7)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(start(&run).wait_with_output().unwrap().status.success());
    assert_eq!(results(&run), undisturbed(dir.path()));
    assert_eq!(fs::read_dir(run.join("tasks/work")).unwrap().count(), 0);
}

/// Runs a worker in a mount namespace of its own, on a small file system; `None` where that is not allowed.
fn on_mount(mount: &str, run: &Path) -> Option<(Option<i32>, String)> {
    fs::create_dir_all(run).unwrap();
    let allowed = Command::new("unshare").args(["-rm", "true"]).output().is_ok_and(|o| o.status.success());
    if !allowed {
        return None;
    }
    let script = format!("{mount} || exit 99; exec \"$@\"");
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script, "sh"])
        .args(worker_command())
        .env(DIRECTORY, run)
        .env("RUN", run)
        .output()
        .unwrap();
    let code = output.status.code();
    (code != Some(99)).then(|| (code, String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_full_disk_and_a_read_only_one_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for size in ["4k", "12k", "24k", "40k"] {
        let mount = format!("mount -t tmpfs -o size={size} none \"$RUN\"");
        let Some((code, said)) = on_mount(&mount, &dir.path().join("full/run")) else { return };
        assert_eq!(code, Some(3), "{size}: {said}");
        assert!(said.contains("No space left on device"), "{size}: {said}");
    }
    let mount = "mount -t tmpfs -o ro none \"$RUN\"";
    let Some((code, said)) = on_mount(mount, &dir.path().join("ro/run")) else { return };
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("/ro/run/tasks"), "{said}");
}
