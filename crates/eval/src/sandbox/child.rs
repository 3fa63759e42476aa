//! The launcher: what our own binary does when it is started again to run a program.
//!
//! Two stages of the same executable: the *watcher* makes the namespaces and waits; the *interpreter* stage gives up
//! every right and becomes Python. Both are single-threaded and short, and everything here is a safe call.

use std::{
    fs,
    os::unix::{
        fs::MetadataExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{Defences, Limits, MAX_FILES, Python};
use crate::{Error, Result};

/// What the launcher is told, as its last argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Spec {
    stage: Stage,
    pub(super) defences: Defences,
    pub(super) limits: Limits,
    /// The directory of the program; the watcher's own current directory until a private root exists.
    pub(super) work: PathBuf,
    /// The user that the interpreter becomes where that is a defence; the watcher chooses it.
    pub(super) user: u32,
    /// What the interpreter may read: files and directories of the system, and its own.
    pub(super) readable: Vec<PathBuf>,
    python: PathBuf,
    driver: String,
    mark: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    Watcher,
    Interpreter,
}

/// Where programs, libraries and their settings are on a Unix system. Missing ones are left out.
const SYSTEM: [&str; 12] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/alternatives",
    "/etc/localtime",
];

impl Spec {
    pub(super) fn new(
        limits: &Limits,
        python: &Python,
        defences: Defences,
        mark: &str,
        driver: &str,
    ) -> Self {
        let mut readable: Vec<PathBuf> =
            SYSTEM.iter().map(PathBuf::from).filter(|p| p.symlink_metadata().is_ok()).collect();
        for root in &python.roots {
            // A prefix of `/` would open everything; what it needs is in the list above.
            if root != Path::new("/") && !readable.iter().any(|r| root.starts_with(r)) {
                readable.push(root.clone());
            }
        }
        Self {
            stage: Stage::Watcher,
            defences,
            limits: limits.clone(),
            work: PathBuf::from("."),
            user: 0,
            readable,
            python: python.executable.clone(),
            driver: driver.into(),
            mark: mark.into(),
        }
    }

    pub(super) fn to_argument(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Sandbox(format!("paths that are not text: {e}")))
    }
}

/// The launcher's `main`: the last argument says what to do. Call it before anything else when the hidden subcommand is
/// seen; it returns only when the program has ended.
pub fn child_main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let Some((argument, before)) = arguments.split_last() else { return ExitCode::from(2) };
    let Ok(spec) = serde_json::from_str::<Spec>(argument) else {
        eprintln!("this is how mixse runs generated code in a sandbox; it is not meant to be called by hand");
        return ExitCode::from(2);
    };
    let mark = spec.mark.clone();
    let verdict = match spec.stage {
        Stage::Watcher => watch(spec, before.get(1..).unwrap_or_default()),
        Stage::Interpreter => become_interpreter(spec).map(|never| match never {}),
    };
    // After the interpreter's last word, so that a program cannot write its own verdict below.
    eprintln!("\n{mark} {}", verdict.unwrap_or_else(|e| format!("broken {e}")));
    ExitCode::FAILURE
}

pub(super) fn started_by_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn watch(spec: Spec, launcher_args: &[String]) -> std::result::Result<String, String> {
    let mut inner = Spec { stage: Stage::Interpreter, ..spec };
    let executable = enter(&mut inner)?;
    let argument = inner.to_argument().map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(inner.limits.wall_seconds);
    let mut child = Command::new(executable)
        .args(launcher_args)
        .arg(argument)
        .current_dir(&inner.work)
        .spawn()
        .map_err(|e| format!("the second stage does not start: {e}"))?;
    let mut pause = Duration::from_millis(1);
    let why = loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(describe(status, &inner.limits)),
            Ok(None) if Instant::now() >= deadline => break "time",
            // A file system of its own has a size.
            Ok(None) if !inner.defences.namespaces && !Room::of(&inner.limits).holds(&inner.work) => {
                break "space";
            }
            Ok(None) => std::thread::sleep(pause),
            Err(e) => return Err(format!("the interpreter cannot be awaited: {e}")),
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    // Where there is a process namespace, its first process takes all others with it.
    child.kill().and_then(|()| child.wait()).map_err(|e| format!("the interpreter cannot be ended: {e}"))?;
    Ok(why.into())
}

/// What a program's directory may still take.
struct Room {
    files: usize,
    bytes: u64,
}

impl Room {
    fn of(limits: &Limits) -> Self {
        Self { files: MAX_FILES, bytes: limits.file_size }
    }

    /// Whether everything below a directory has room. A directory that cannot be listed hides something.
    fn holds(&mut self, directory: &Path) -> bool {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e) => return e.kind() == std::io::ErrorKind::NotFound,
        };
        // What is gone meanwhile needs no room.
        entries.flatten().filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))).all(
            |(path, found)| {
                let left = self.files.checked_sub(1).zip(self.bytes.checked_sub(512 * found.blocks()));
                let Some((files, bytes)) = left else { return false };
                (self.files, self.bytes) = (files, bytes);
                !found.is_dir() || self.holds(&path)
            },
        )
    }
}

fn describe(status: ExitStatus, limits: &Limits) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) if signal == Signal::SIGXCPU as i32 => "time".into(),
        // It ignored the signal of the soft limit and was killed at the hard one; the used-up time tells this from other
        // reasons. The limit and this figure are counted by different clocks, hence the second between the two limits.
        (None, _) if cpu_of_children() >= Duration::from_secs(limits.cpu_seconds) => "time".into(),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
    }
}

fn cpu_of_children() -> Duration {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    };
    let used =
        getrusage(UsageWho::RUSAGE_CHILDREN).map(|u| (u.user_time() + u.system_time()).num_microseconds());
    used.ok().and_then(|us| u64::try_from(us).ok()).map_or(Duration::ZERO, Duration::from_micros)
}

/// A type without values: a stage that succeeds does not return.
enum Never {}

fn become_interpreter(spec: Spec) -> std::result::Result<Never, String> {
    restrict(&spec)?;
    let error = Command::new(&spec.python)
        .args(["-s", "-B", "-X", "utf8", "-c", &spec.driver])
        .env_clear()
        .envs([("HOME", &spec.work), ("TMPDIR", &spec.work)])
        .envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("PYTHONHASHSEED", "0")])
        .exec();
    Err(format!("{} does not start: {error}", spec.python.display()))
}

/// The watcher's own restrictions; returns the executable of the second stage as seen from inside.
#[cfg(target_os = "linux")]
fn enter(spec: &mut Spec) -> std::result::Result<PathBuf, String> {
    super::linux::enter(spec)
}

#[cfg(target_os = "linux")]
fn restrict(spec: &Spec) -> std::result::Result<(), String> {
    super::linux::restrict(spec)
}

#[cfg(not(target_os = "linux"))]
fn enter(spec: &mut Spec) -> std::result::Result<PathBuf, String> {
    refuse(spec.defences)?;
    spec.work = std::env::current_dir().map_err(|e| e.to_string())?;
    std::env::current_exe().map_err(|e| e.to_string())
}

#[cfg(not(target_os = "linux"))]
fn restrict(spec: &Spec) -> std::result::Result<(), String> {
    refuse(spec.defences)
}

#[cfg(not(target_os = "linux"))]
fn refuse(defences: Defences) -> std::result::Result<(), String> {
    if defences == Defences::default() { Ok(()) } else { Err("only built for Linux".into()) }
}
