//! Runs generated Python in a child process that can do no harm.
//!
//! [`Sandbox::open`] finds the interpreter and tries out what the kernel offers; [`Sandbox::run`] runs one program.
//! The program is run by a *launcher*: our own binary, started again with a hidden argument, whose `main` calls
//! [`child_main`]. It takes away its own rights step by step and then becomes the interpreter:
//!
//! ```text
//! mixse ── watcher (new namespaces, private root, time limit) ── interpreter (other user, limits, Landlock, seccomp)
//! ```
//!
//! Each program gets two of these: one runs its code, the other its tests. What passes between them is data, carried by our own
//! process.
//!
//! | defence | what it takes away | without it |
//! |---|---|---|
//! | namespaces | files, network, other processes: a root of its own with the system read-only and a bounded empty directory; the kernel ends every process of the namespace with the first one | Landlock and seccomp do the same, but show which files there are; the watcher keeps the directory small |
//! | other user (only when started by root) | root's rights; the process limit counts | – |
//! | Landlock | files and TCP by rule, even where the root is private | namespaces do |
//! | seccomp | every system call that a computing program does not need: sockets, new processes, signals to others, ptrace, mounts; without a private root also changes of modes and times, which Landlock does not govern | refused |
//!
//! The minimum is seccomp with namespaces or Landlock. Threads are counted where the interpreter has a user that is not root's and not
//! shared with other processes; elsewhere only memory bounds them. New processes are refused (as the usual graders of generated code
//! do by replacing `os.fork` and `subprocess`), so nothing can outlive the interpreter.

mod child;
#[cfg(target_os = "linux")]
mod linux;
mod python;
mod run;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use child::child_main;
pub use mixse_selfmoe::execute::Program;
pub use python::Python;

use crate::{Error, Result};

/// Raised when the same program may get another verdict than before; kept verdicts name it.
pub const VERSION: u32 = 3;

/// What a program may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds on the clock.
    pub wall_seconds: u64,
    /// Seconds of processor time.
    pub cpu_seconds: u64,
    /// Bytes of address space.
    pub memory: u64,
    /// Threads, the main one included (counted where the user is the sandbox's own, and not root).
    pub threads: u64,
    /// Bytes in one file and in the whole directory. Without namespaces the directory is measured while the program runs, so it
    /// can be larger for some milliseconds.
    pub file_size: u64,
    /// Bytes written to standard output and standard error.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_seconds: 10,
            cpu_seconds: 5,
            memory: 1 << 30,
            threads: 16,
            file_size: 16 << 20,
            output: 1 << 20,
        }
    }
}

/// How our own binary is started again as a launcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// The executable.
    pub program: PathBuf,
    /// Arguments that make its `main` call [`child_main`] with the next argument.
    pub args: Vec<String>,
}

impl Launcher {
    /// The running executable with one hidden subcommand.
    ///
    /// # Errors
    /// The system does not say where the executable is.
    pub fn current_exe(subcommand: &str) -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|e| Error::Sandbox(format!("the path of the running executable is unknown: {e}")))?;
        Ok(Self { program, args: vec![subcommand.into()] })
    }
}

/// Whether to run code where the minimum of defences is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Refuse.
    #[default]
    RequireMinimum,
    /// The user said that it is safe here (a container or machine of its own).
    AcceptWeak,
}

/// The defences that are switched on for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Defences {
    pub(crate) namespaces: bool,
    pub(crate) other_user: bool,
    pub(crate) landlock: bool,
    pub(crate) seccomp: bool,
}

/// One of the defences; the module's documentation says what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// Namespaces with a private root.
    Namespaces,
    /// Another user than root.
    OtherUser,
    /// Landlock.
    Landlock,
    /// The filter of system calls.
    Seccomp,
}

/// So many files and directories a program may make.
const MAX_FILES: usize = 1024;

/// Whether one defence works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// A program ran under it.
    Available,
    /// It does not, for this reason.
    Missing(String),
    /// It is not needed here.
    NotNeeded,
}

impl Support {
    fn on(&self) -> bool {
        *self == Self::Available
    }
}

/// What the machine offers; belongs in the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// User (unless started by root), mount, process, network, IPC and host name namespaces with a private root.
    pub namespaces: Support,
    /// Another user than root.
    pub other_user: Support,
    /// Landlock.
    pub landlock: Support,
    /// A seccomp filter.
    pub seccomp: Support,
}

impl Capabilities {
    fn defences(&self) -> Defences {
        Defences {
            namespaces: self.namespaces.on(),
            other_user: self.other_user.on(),
            landlock: self.landlock.on(),
            seccomp: self.seccomp.on(),
        }
    }

    /// Seccomp, and a view of the files that is limited by namespaces or Landlock.
    pub fn minimum(&self) -> bool {
        self.seccomp.on() && (self.namespaces.on() || self.landlock.on())
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It ran to its last line, and so did its tests.
    Passed,
    /// An exception, an early exit or a signal ended it.
    Failed {
        /// The last line of the traceback, or how it ended.
        reason: String,
    },
    /// It used up its time (clock or processor).
    TimedOut,
    /// It wrote more than allowed.
    TooMuchOutput,
}

impl Outcome {
    /// The program ran to its end.
    pub fn passed(&self) -> bool {
        *self == Self::Passed
    }

    /// Short text in the words of the usual graders: `passed`, `timed out` or `failed: …`.
    pub fn describe(&self) -> String {
        match self {
            Self::Passed => "passed".into(),
            Self::Failed { reason } => format!("failed: {reason}"),
            Self::TimedOut => "timed out".into(),
            Self::TooMuchOutput => "failed: too much output".into(),
        }
    }
}

/// Runs programs; can be shared between threads.
#[derive(Debug, Clone)]
pub struct Sandbox {
    launcher: Launcher,
    limits: Limits,
    python: Python,
    capabilities: Capabilities,
}

impl Sandbox {
    /// Finds Python and tries out the defences, each alone and then together.
    ///
    /// # Errors
    /// No Python, no launcher, or less than the minimum of defences under [`Policy::RequireMinimum`].
    pub fn open(launcher: Launcher, limits: Limits, policy: Policy) -> Result<Self> {
        Self::with_python(launcher, limits, policy, Python::find()?)
    }

    /// As [`Sandbox::open`] with a given interpreter.
    ///
    /// # Errors
    /// As [`Sandbox::open`].
    pub fn with_python(launcher: Launcher, limits: Limits, policy: Policy, python: Python) -> Result<Self> {
        let capabilities = Self::probe(&launcher, &python);
        Self { launcher, limits, python, capabilities }.tried(policy)
    }

    /// The same sandbox with defences switched off, to see what the others stop by themselves.
    ///
    /// # Errors
    /// What is left is less than the minimum.
    pub fn without(&self, off: &[Defence]) -> Result<Self> {
        let capabilities = Self::probe_without(&self.launcher, &self.python, off);
        Self { capabilities, ..self.clone() }.tried(Policy::RequireMinimum)
    }

    fn tried(self, policy: Policy) -> Result<Self> {
        let capabilities = &self.capabilities;
        if !capabilities.minimum() && policy == Policy::RequireMinimum {
            return Err(Error::Sandbox(format!(
                "this system lacks what is needed to run generated code safely ({capabilities:?}); run it in a \
                 container or machine of its own and say that weak isolation is accepted"
            )));
        }
        // Whether it starts is asked here, not how fast: the limit may be short and the machine busy.
        let wall_seconds = self.limits.wall_seconds.max(Limits::default().wall_seconds);
        let limits = Limits { wall_seconds, ..self.limits.clone() };
        let nothing = Program::without_tests("");
        match run::run(&self.launcher, &limits, &self.python, self.capabilities.defences(), &nothing)? {
            Outcome::Passed => Ok(self),
            other => Err(Error::Sandbox(format!("an empty program does not run: {}", other.describe()))),
        }
    }

    /// Which defences work here: an empty program is run under each.
    pub fn probe(launcher: &Launcher, python: &Python) -> Capabilities {
        Self::probe_without(launcher, python, &[])
    }

    fn probe_without(launcher: &Launcher, python: &Python, off: &[Defence]) -> Capabilities {
        let try_out = |defence: Defence, defences: Defences, program: &str| {
            if off.contains(&defence) {
                return Support::Missing("switched off".into());
            }
            let program = Program::without_tests(program);
            match run::run(launcher, &Limits::default(), python, defences, &program) {
                Ok(Outcome::Passed) => Support::Available,
                Ok(other) => Support::Missing(other.describe()),
                Err(e) => Support::Missing(e.to_string()),
            }
        };
        let none = Defences::default();
        let namespaces = try_out(Defence::Namespaces, Defences { namespaces: true, ..none }, "");
        let other_user = match child::started_by_root() {
            // Alone it may fail because the interpreter lies in a directory that only root can read; the private
            // root of the namespaces shows it to the other user. In a user namespace there is none.
            true => try_out(
                Defence::OtherUser,
                Defences { other_user: true, namespaces: namespaces.on(), ..none },
                "import os\nassert os.getuid() != 0, 'still root'",
            ),
            false => Support::NotNeeded,
        };
        Capabilities {
            namespaces,
            other_user,
            landlock: try_out(Defence::Landlock, Defences { landlock: true, ..none }, ""),
            seccomp: try_out(Defence::Seccomp, Defences { seccomp: true, ..none }, ""),
        }
    }

    /// Runs a program in an empty directory of its own, then its tests in another interpreter with another one.
    ///
    /// The program's globals are empty and it is not `__main__`, as in the usual graders of generated code; its standard input is
    /// empty. It passes if its own last line and that of the tests are reached. The tests see what the program defines as names: a
    /// call of a function goes to the program and its value comes back as plain data, of Python's own types. So a program cannot
    /// decide how values compare, what the tests do or what they say; it can only answer.
    ///
    /// # Errors
    /// The launcher failed; what the program does is an [`Outcome`].
    pub fn run(&self, program: &Program) -> Result<Outcome> {
        run::run(&self.launcher, &self.limits, &self.python, self.capabilities.defences(), program)
    }

    /// Runs programs on as many threads as the machine has, and hands out each result with its index as it comes.
    ///
    /// # Errors
    /// As [`Sandbox::run`]; the first error ends the work.
    pub fn run_all(&self, programs: &[Program], mut done: impl FnMut(usize, Outcome)) -> Result<()> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(programs.len());
        let next = std::sync::atomic::AtomicUsize::new(0);
        let (sender, results) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(program) = programs.get(i) else { break };
                        let result = self.run(program);
                        let failed = result.is_err();
                        if sender.send((i, result)).is_err() || failed {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (i, result) in results {
                done(i, result?);
            }
            Ok(())
        })
    }

    /// The interpreter.
    pub fn python(&self) -> &Python {
        &self.python
    }

    /// What the machine offers.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
}
