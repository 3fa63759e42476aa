//! Processes that may hang.

use std::{
    fs::File,
    io::{Read, Seek},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What a process with a limit left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; none where a signal ended it, the limit's included.
    pub code: Option<i32>,
    /// It did not end within the limit.
    pub hung: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a process without input and ends it after `limit`, in which time that this process itself was stopped does not count.
pub fn finish_within(limit: Duration, mut command: Command) -> Finished {
    const LOOK: Duration = Duration::from_millis(10);
    let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null()).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let mut waited = Duration::ZERO;
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if waited > limit {
            hung = true;
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        let begin = Instant::now();
        std::thread::sleep(LOOK);
        waited += begin.elapsed().min(4 * LOOK);
    };
    Finished { code: status.code(), hung, stdout: text(stdout), stderr: text(stderr) }
}

fn text(mut file: File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
