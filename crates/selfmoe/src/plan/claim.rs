//! Who runs a task: `tasks/claims/ID.N`.
//!
//! Only the file with the highest N counts. It is made with exclusive creation, so one process wins each N, and the highest one is never
//! removed, so two processes can never both believe that they hold it: who makes a lower N because it looked
//! too early sees the higher one when it looks again. A holder that is done or failed marks its file as released;
//! one that died is recognised by its process (same machine) or by the age of its file, which a living holder keeps
//! touching (other machines).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// Times between signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A holder touches its claim this often.
    pub heartbeat: Duration,
    /// A claim from another machine that was not touched for so long is taken over.
    pub stale_after: Duration,
    /// A process that waits for another one looks this often.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(15),
            stale_after: Duration::from_secs(300),
            poll: Duration::from_millis(500),
        }
    }
}

/// A claim without a readable holder is one that is being written, or whose writer died over it; it counts for so long.
const UNREADABLE_GRACE: Duration = Duration::from_secs(10);

/// The most bytes of a claim: a line for its holder, and a byte for every sign of life.
const MAX_CLAIM: u64 = 64 << 20;

/// Lost races after which something else must be wrong.
const MAX_RACES: usize = 100;

/// A process that runs a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of its machine.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// Distinguishes restarts of the machine and separate process spaces on it; empty where the system does not tell.
    space: String,
    /// Distinguishes processes that had the same id one after the other; empty where the system does not tell.
    birth: String,
    /// It has let go.
    #[serde(default)]
    released: bool,
}

impl Holder {
    fn this_process() -> Self {
        let link = |path: &str| fs::read_link(path).map(|p| p.display().to_string()).unwrap_or_default();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid,
            space: format!("{} {}", boot.trim(), link("/proc/self/ns/pid")).trim().to_owned(),
            birth: birth(pid).unwrap_or_default(),
            released: false,
        }
    }

    fn is_on_machine_of(&self, other: &Self) -> bool {
        self.host == other.host && self.space == other.space
    }

    /// Whether its process, on this machine, still runs.
    fn process_lives(&self) -> bool {
        if cfg!(target_os = "linux") {
            return birth(self.pid).is_some_and(|birth| birth == self.birth);
        }
        i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw).is_some_and(|pid| {
            !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
        })
    }
}

/// Start time of a running process in clock ticks, as the system writes it. `None`: it does not run (a process that has
/// ended and was not waited for does not either).
fn birth(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| start.to_owned())
}

/// A held claim; dropped, it is released.
#[derive(Debug)]
pub(super) struct Claim {
    directory: PathBuf,
    name: String,
    generation: u64,
    holder: Holder,
    heart: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// Result of trying to get a claim.
#[derive(Debug)]
pub(super) enum Attempt {
    Mine(Claim),
    Held(Holder),
}

/// Takes the claim unless a living process holds it.
pub(super) fn attempt(directory: &Path, name: &str, timing: Timing) -> Result<Attempt> {
    fs::create_dir_all(directory).map_err(Error::io(directory))?;
    let holder = Holder::this_process();
    for _ in 0..MAX_RACES {
        let top = highest(directory, name)?;
        if let Some(top) = top
            && let Some(other) = living_holder(directory, name, top, &holder, timing)?
        {
            return Ok(Attempt::Held(other));
        }
        let generation = top.map_or(1, |top| top + 1);
        let path = claim_path(directory, name, generation);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => write_holder(&mut file, &holder).map_err(Error::io(&path))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(Error::io(&path)(e)),
        }
        if highest(directory, name)? != Some(generation) {
            // Somebody was faster by more than one generation; this one never counted.
            let _ = fs::remove_file(&path);
            continue;
        }
        if let Some(old) = top {
            // Superseded and of no use; that it may stay does no harm.
            let _ = fs::remove_file(claim_path(directory, name, old));
        }
        return Ok(Attempt::Mine(Claim::start(directory, name, generation, holder, timing)));
    }
    Err(Error::Plan(format!("{}: too many processes fight for the claim {name}", directory.display())))
}

/// The living process that holds the claim. Nothing but a probe of the file system's clock is written.
pub(super) fn holder(directory: &Path, name: &str, timing: Timing) -> Result<Option<Holder>> {
    match highest(directory, name)? {
        Some(top) => living_holder(directory, name, top, &Holder::this_process(), timing),
        None => Ok(None),
    }
}

fn living_holder(
    directory: &Path,
    name: &str,
    generation: u64,
    me: &Holder,
    timing: Timing,
) -> Result<Option<Holder>> {
    let path = claim_path(directory, name, generation);
    let text = match mixse_files::read(&path, MAX_CLAIM) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path)(e)),
    };
    let lives = match serde_json::from_slice::<Holder>(&text) {
        Ok(holder) if holder.released => return Ok(None),
        Ok(holder) if holder.is_on_machine_of(me) => holder.process_lives().then_some(holder),
        Ok(holder) => (age(directory, &path)? < timing.stale_after).then_some(holder),
        Err(_) => {
            let unknown = Holder {
                host: "unknown".into(),
                pid: 0,
                space: String::new(),
                birth: String::new(),
                released: false,
            };
            (age(directory, &path)? < UNREADABLE_GRACE).then_some(unknown)
        }
    };
    Ok(lives)
}

/// Time since a claim was touched, by the clock of the file system that it lies on: clocks of machines differ.
fn age(directory: &Path, path: &Path) -> Result<Duration> {
    let modified = |meta: io::Result<fs::Metadata>| meta.and_then(|meta| meta.modified());
    let touched = match modified(fs::metadata(path)) {
        Ok(touched) => touched,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Duration::MAX),
        Err(e) => return Err(Error::io(path)(e)),
    };
    let probe = mixse_files::temporary_file(directory);
    let now = probe.and_then(|mut probe| {
        probe.write_all(b"x")?;
        modified(probe.as_file().metadata())
    });
    // Who may only read the directory can only look at this machine's clock.
    Ok(now.unwrap_or_else(|_| SystemTime::now()).duration_since(touched).unwrap_or_default())
}

fn highest(directory: &Path, name: &str) -> Result<Option<u64>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(directory)(e)),
    };
    let mut highest = None;
    for entry in entries {
        let file = entry.map_err(Error::io(directory))?.file_name();
        let generation =
            file.to_str().and_then(|f| f.strip_prefix(name)?.strip_prefix('.')?.parse::<u64>().ok());
        highest = highest.max(generation);
    }
    Ok(highest)
}

fn claim_path(directory: &Path, name: &str, generation: u64) -> PathBuf {
    directory.join(format!("{name}.{generation}"))
}

fn write_holder(file: &mut File, holder: &Holder) -> io::Result<()> {
    file.write_all(&serde_json::to_vec(holder)?)
}

impl Claim {
    fn start(directory: &Path, name: &str, generation: u64, holder: Holder, timing: Timing) -> Self {
        let mut claim =
            Self { directory: directory.to_owned(), name: name.to_owned(), generation, holder, heart: None };
        let (stop, stopped) = mpsc::channel();
        let (directory, name) = (claim.directory.clone(), claim.name.clone());
        let beat = move || {
            while stopped.recv_timeout(timing.heartbeat) == Err(RecvTimeoutError::Timeout) {
                // A claim that cannot be touched is lost sooner or later; `check` finds out.
                let _ = touch(&claim_path(&directory, &name, generation));
            }
        };
        claim.heart = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(beat)
            .ok()
            .map(|thread| (stop, thread));
        claim
    }

    pub(super) fn holder(&self) -> &Holder {
        &self.holder
    }

    /// An error if another process has taken the claim over.
    pub(super) fn check(&self) -> Result<()> {
        if highest(&self.directory, &self.name)? == Some(self.generation) {
            return Ok(());
        }
        Err(Error::Lost(self.name.replace('+', "/")))
    }
}

/// Changes the file's modification time, as the file system's own clock has it; the line break means nothing to its reader.
fn touch(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"\n")
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.heart.take() {
            drop(stop);
            let _ = thread.join();
        }
        if self.check().is_err() {
            return;
        }
        let path = claim_path(&self.directory, &self.name, self.generation);
        let released = Holder { released: true, ..self.holder.clone() };
        // If this fails, others recognise the end of this process instead.
        let _ = serde_json::to_vec(&released).map(|text| mixse_files::write_atomic(&path, &text));
    }
}

#[cfg(test)]
mod tests;
