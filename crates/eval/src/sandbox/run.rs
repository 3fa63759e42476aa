//! The side of the sandbox that runs in our own process: starts the launcher, feeds it, listens and judges.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    time::{Duration, Instant},
};

use super::{Defences, Launcher, Limits, Outcome, Python, child::Spec};
use crate::{Error, Result};

/// Runs the program that follows on standard input, then writes the mark that only a program that reached its end leaves
/// behind. It keeps out `exit(0)` before the tests; it does not keep a program from cheating that looks for it.
const DRIVER: &str = "import os, sys
def main(write=os.write, leave=os._exit):
    mark = sys.stdin.buffer.readline()
    source = sys.stdin.buffer.read()
    try:
        exec(compile(source, 'program.py', 'exec'), {})
    except BaseException:
        import traceback
        traceback.print_exc()
        leave(1)
    sys.stdout.flush()
    write(1, b'\\n' + mark)
    leave(0)
main()";

/// The watcher ends the program at its limit; only if it does not, we do, this much later.
const GRACE: Duration = Duration::from_secs(3);

/// So much of the output is kept for the judgement.
const KEEP: usize = 8 << 10;

pub(super) fn run(
    launcher: &Launcher,
    limits: &Limits,
    python: &Python,
    defences: Defences,
    program: &str,
) -> Result<Outcome> {
    let fail = |what: &str, e: std::io::Error| Error::Sandbox(format!("{what}: {e}"));
    let directory = tempfile::tempdir().map_err(|e| fail("no temporary directory", e))?;
    let mark = mark();
    let spec = Spec::new(limits, python, defences, &mark, DRIVER);
    let mut child = Command::new(&launcher.program)
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
    let heard = listen(&mut child, limits, format!("{mark}\n{program}"));
    if !heard.ended {
        kill_group(&child);
    }
    child.wait().map_err(|e| fail("the launcher cannot be awaited", e))?;
    remove(directory);
    judge(&heard, &mark)
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

/// A line that the program cannot guess.
fn mark() -> String {
    use std::hash::{BuildHasher, RandomState};
    // Every `RandomState` has keys of its own from the system's random numbers.
    format!("mixse-{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2))
}

/// The launcher leads a process group of its own, which the interpreter cannot leave.
fn kill_group(child: &Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        // It may be gone already; then there is nothing to do.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
    }
}

#[derive(Debug, Default)]
struct Heard {
    stdout: Tail,
    stderr: Tail,
    overflow: bool,
    /// Both pipes were closed: the launcher and everything that it started are gone.
    ended: bool,
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

enum Heading {
    Stdout,
    Stderr,
}

fn listen(child: &mut Child, limits: &Limits, input: String) -> Heard {
    let deadline = Instant::now() + Duration::from_secs(limits.wall_seconds) + GRACE;
    let (sender, chunks) = mpsc::sync_channel(16);
    if let Some(mut stdin) = child.stdin.take() {
        // The program may end without reading; then the pipe breaks and nothing is lost.
        std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    }
    forward(child.stdout.take(), || Heading::Stdout, &sender);
    forward(child.stderr.take(), || Heading::Stderr, &sender);
    drop(sender);
    let mut heard = Heard::default();
    loop {
        match chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((Heading::Stdout, chunk)) => heard.stdout.push(&chunk),
            Ok((Heading::Stderr, chunk)) => heard.stderr.push(&chunk),
            Err(RecvTimeoutError::Disconnected) => heard.ended = true,
            Err(RecvTimeoutError::Timeout) => return heard,
        }
        heard.overflow = heard.stdout.total + heard.stderr.total > limits.output;
        if heard.ended || heard.overflow {
            return heard;
        }
    }
}

fn forward(
    stream: Option<impl Read + Send + 'static>,
    heading: fn() -> Heading,
    sender: &SyncSender<(Heading, Vec<u8>)>,
) {
    let Some(mut stream) = stream else { return };
    let sender = sender.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; KEEP];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if sender.send((heading(), buffer[..n].to_vec())).is_err() {
                break;
            }
        }
    });
}

/// The watcher's last line on standard error says how the interpreter ended; the mark on standard output, whether the
/// program reached its end.
fn judge(heard: &Heard, mark: &str) -> Result<Outcome> {
    if heard.overflow {
        return Ok(Outcome::TooMuchOutput);
    }
    let (stdout, stderr) = (heard.stdout.text(), heard.stderr.text());
    let verdict = stderr.rsplit('\n').find_map(|line| line.strip_prefix(mark)).map(str::trim);
    Ok(match verdict {
        Some("exit 0") if stdout.trim_end().ends_with(mark) => Outcome::Passed,
        Some("exit 0") => Outcome::Failed { reason: "it left before its end".into() },
        Some("time") => Outcome::TimedOut,
        Some("space") => Outcome::Failed { reason: "it filled its directory".into() },
        Some(broken) if broken.starts_with("broken") => {
            return Err(Error::Sandbox(broken.trim_start_matches("broken ").into()));
        }
        Some(how) => Outcome::Failed { reason: last_line(&stderr, mark).unwrap_or_else(|| how.into()) },
        None if !heard.ended => Outcome::TimedOut,
        None => {
            return Err(Error::Sandbox(format!("the launcher ended without a verdict: {}", stderr.trim())));
        }
    })
}

/// What Python says last: the exception.
fn last_line(stderr: &str, mark: &str) -> Option<String> {
    let line = stderr.lines().rev().find(|l| !l.trim().is_empty() && !l.starts_with(mark))?;
    Some(line.trim().chars().take(300).collect())
}
