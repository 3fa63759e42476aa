//! The side of the sandbox that runs in our own process: starts two interpreters, carries what they say to each other, and judges.
//!
//! ```text
//! candidate (the program) ── lines of JSON ── this process ── lines of JSON ── judge (the tests)
//! ```
//!
//! Each is in a sandbox of its own. The program cannot reach the interpreter that decides: whatever it says arrives there as data.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    time::{Duration, Instant},
};

use super::{Defences, Launcher, Limits, Outcome, Program, Python, child::Spec};
use crate::{Error, Result};

const CANDIDATE: &str = concat!(include_str!("codec.py"), include_str!("candidate.py"));
const JUDGE: &str = concat!(include_str!("codec.py"), include_str!("judge.py"));

/// The watcher ends an interpreter at its limit; only if it does not, we do, this much later.
const GRACE: Duration = Duration::from_secs(3);

/// So much of what is written to standard error is kept for the judgement.
const KEEP: usize = 8 << 10;

/// Most bytes that one interpreter may say to the other: arguments and values of calls.
const CHANNEL: usize = 64 << 20;

/// How the judge ends when the program is not there any more.
const GONE: &str = "exit 3";

/// Runs a program and its tests.
///
/// # Errors
/// A launcher failed.
pub(super) fn run(
    launcher: &Launcher,
    limits: &Limits,
    python: &Python,
    defences: Defences,
    program: &Program,
) -> Result<Outcome> {
    let start = |driver| Interpreter::start(launcher, limits, python, defences, driver);
    let mut both = [start(CANDIDATE)?, start(JUDGE)?];
    let heard = converse(&mut both, limits, program);
    for interpreter in both {
        interpreter.end()?;
    }
    heard.outcome()
}

/// A place among the two interpreters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Candidate,
    Judge,
}

/// A launcher with an interpreter, in a directory of its own.
struct Interpreter {
    child: Child,
    directory: tempfile::TempDir,
    mark: String,
}

impl Interpreter {
    fn start(
        launcher: &Launcher,
        limits: &Limits,
        python: &Python,
        defences: Defences,
        driver: &str,
    ) -> Result<Self> {
        let fail = |what: &str, e: std::io::Error| Error::Sandbox(format!("{what}: {e}"));
        let directory = tempfile::tempdir().map_err(|e| fail("no temporary directory", e))?;
        let mark = mark();
        let spec = Spec::new(limits, python, defences, &mark, driver);
        let child = Command::new(&launcher.program)
            .args(&launcher.args)
            .arg(spec.to_argument()?)
            .env_clear()
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| fail(&format!("{} does not start", launcher.program.display()), e))?;
        Ok(Self { child, directory, mark })
    }

    /// The launcher leads a process group of its own, which the interpreter cannot leave.
    fn kill(&self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            // It may be gone already; then there is nothing to do.
            let _ =
                nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
        }
    }

    fn end(mut self) -> Result<()> {
        // Not after it was waited for: its id may be another process's then.
        self.kill();
        self.child.wait().map_err(|e| Error::Sandbox(format!("the launcher cannot be awaited: {e}")))?;
        remove(self.directory);
        Ok(())
    }
}

/// Removes the directory, and with it what the program made inaccessible to its own user. What is left then is in nobody's way.
fn remove(directory: tempfile::TempDir) {
    fn open_up(directory: &Path) {
        let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open_up(&entry.path());
            }
        }
    }
    let path = directory.keep();
    if fs::remove_dir_all(&path).is_err() {
        open_up(&path);
        let _ = fs::remove_dir_all(&path);
    }
}

/// Begins a line of the watcher's that no program can guess.
fn mark() -> String {
    use std::hash::{BuildHasher, RandomState};
    // Every `RandomState` has keys of its own from the system's random numbers.
    format!("mixse-{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2))
}

/// What was heard of one interpreter.
#[derive(Debug, Default)]
struct Heard {
    stderr: Tail,
    /// Its pipe was closed: the launcher and everything that it started are gone.
    ended: bool,
    mark: String,
}

impl Heard {
    /// The watcher's last line: how the interpreter ended.
    fn verdict(&self) -> Option<String> {
        let text = self.stderr.text();
        text.rsplit('\n').find_map(|line| line.strip_prefix(&self.mark)).map(|line| line.trim().to_owned())
    }

    /// What Python says last: the exception.
    fn last_line(&self) -> Option<String> {
        let text = self.stderr.text();
        let line = text.lines().rev().find(|l| !l.trim().is_empty() && !l.starts_with(&self.mark))?;
        Some(line.trim().chars().take(300).collect())
    }
}

/// The end of an output stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    total: usize,
}

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        self.total += chunk.len();
        self.bytes.extend_from_slice(chunk);
        if self.bytes.len() > 2 * KEEP {
            self.bytes.drain(..self.bytes.len() - KEEP);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// What was heard of both.
#[derive(Debug, Default)]
struct Conversation {
    candidate: Heard,
    judge: Heard,
    overflow: bool,
}

impl Conversation {
    fn of(&mut self, role: Role) -> &mut Heard {
        match role {
            Role::Candidate => &mut self.candidate,
            Role::Judge => &mut self.judge,
        }
    }

    fn outcome(&self) -> Result<Outcome> {
        if self.overflow {
            return Ok(Outcome::TooMuchOutput);
        }
        let (candidate, judge) = (self.candidate.verdict(), self.judge.verdict());
        for verdict in [&candidate, &judge].into_iter().flatten() {
            if let Some(broken) = verdict.strip_prefix("broken") {
                return Err(Error::Sandbox(broken.trim().into()));
            }
        }
        let failed = |reason: String| Ok(Outcome::Failed { reason });
        match (judge.as_deref(), candidate.as_deref()) {
            // What the judge decided holds, however the program ends after it.
            (Some("exit 0"), _) => Ok(Outcome::Passed),
            (_, Some("time")) | (Some("time"), _) => Ok(Outcome::TimedOut),
            (_, Some("space")) => failed("it filled its directory".into()),
            (Some(GONE), None) if !self.candidate.ended => Ok(Outcome::TimedOut),
            (Some(GONE), Some("exit 0")) => failed("it left before its end".into()),
            (Some(GONE), Some(how)) => {
                // It printed nothing but what it was to print, or the reason.
                failed(
                    if how == "exit 1" { self.candidate.last_line() } else { None }
                        .unwrap_or_else(|| how.into()),
                )
            }
            (Some(how), _) => failed(self.judge.last_line().unwrap_or_else(|| how.into())),
            (None, _) if !self.judge.ended => Ok(Outcome::TimedOut),
            (None, _) => {
                let said = self.judge.stderr.text();
                Err(Error::Sandbox(format!("the launcher ended without a verdict: {}", said.trim())))
            }
        }
    }
}

enum Event {
    Stderr(Role, Vec<u8>),
    Ended(Role),
    /// More was said than is allowed.
    Overflow,
}

/// Carries what they say until both are gone, or one of them decides.
fn converse(both: &mut [Interpreter; 2], limits: &Limits, program: &Program) -> Conversation {
    let deadline = Instant::now() + Duration::from_secs(limits.wall_seconds) + GRACE;
    let (sender, events) = mpsc::sync_channel(16);
    let [candidate, judge] = both;
    relay(judge.child.stdout.take(), candidate.child.stdin.take(), &program.code, &sender);
    relay(candidate.child.stdout.take(), judge.child.stdin.take(), &program.tests, &sender);
    forward(candidate.child.stderr.take(), Role::Candidate, &sender);
    forward(judge.child.stderr.take(), Role::Judge, &sender);
    drop(sender);
    let mut heard = Conversation::default();
    heard.candidate.mark.clone_from(&candidate.mark);
    heard.judge.mark.clone_from(&judge.mark);
    while !(heard.candidate.ended && heard.judge.ended) {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Stderr(role, chunk)) => heard.of(role).stderr.push(&chunk),
            Ok(Event::Ended(role)) => heard.of(role).ended = true,
            Ok(Event::Overflow) => heard.overflow = true,
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => break,
        }
        heard.overflow |= heard.candidate.stderr.total + heard.judge.stderr.total > limits.output;
        // A program that goes on after its tests is of no interest; one that has left is asked why.
        let decided = heard.judge.ended && heard.judge.verdict().as_deref() != Some(GONE);
        if heard.overflow || decided {
            break;
        }
    }
    heard
}

/// Says `first`, with its length before it, and then everything that the other side says.
fn relay(
    from: Option<impl Read + Send + 'static>,
    to: Option<impl Write + Send + 'static>,
    first: &str,
    sender: &SyncSender<Event>,
) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    let first = format!("{}\n{first}", first.len());
    let sender = sender.clone();
    std::thread::spawn(move || {
        // Either may end without reading or writing; then the pipe breaks and nothing is lost.
        let mut open = to.write_all(first.as_bytes()).is_ok();
        let (mut buffer, mut total) = (vec![0; KEEP], 0);
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            total += n;
            if total > CHANNEL {
                let _ = sender.send(Event::Overflow);
                break;
            }
            open = open && to.write_all(&buffer[..n]).is_ok();
        }
    });
}

fn forward(stream: Option<impl Read + Send + 'static>, role: Role, sender: &SyncSender<Event>) {
    let Some(mut stream) = stream else { return };
    let sender = sender.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; KEEP];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if sender.send(Event::Stderr(role, buffer[..n].to_vec())).is_err() {
                return;
            }
        }
        let _ = sender.send(Event::Ended(role));
    });
}
