//! Hostile programs in the sandbox. These tests are about running Python: they need `python3`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fault in a test's own support is a panic")]

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use mixse_eval::sandbox::{Defence, Launcher, Limits, Outcome, Policy, Program, Python, Sandbox, Support};

const LAUNCHER: &str = env!("CARGO_BIN_EXE_mixse-sandbox-child");

fn launcher() -> Launcher {
    // An unprivileged user may be unable to reach the place where it was built and has a copy.
    let beside = std::env::current_exe().unwrap().with_file_name("mixse-sandbox-child");
    let program = if beside.is_file() { beside } else { PathBuf::from(LAUNCHER) };
    Launcher { program, args: Vec::new() }
}

/// `None` where the kernel (or a container around it) does not offer the minimum; then opening must refuse. With an interpreter
/// that another user can read, where the system has one.
fn sandbox(change: impl FnOnce(&mut Limits)) -> Option<Sandbox> {
    let python = Python::at("/usr/bin/python3").or_else(|_| Python::find()).unwrap();
    let mut limits = Limits { wall_seconds: 4, cpu_seconds: 1, memory: 512 << 20, ..Limits::default() };
    change(&mut limits);
    match Sandbox::with_python(launcher(), limits, Policy::RequireMinimum, python) {
        Ok(sandbox) => Some(sandbox),
        Err(e) => {
            assert!(e.to_string().contains("lacks what is needed"), "{e}");
            None
        }
    }
}

fn run_all(sandbox: &Sandbox, programs: &[String]) -> Vec<Outcome> {
    let mut outcomes = vec![None; programs.len()];
    let programs: Vec<Program> = programs.iter().map(|code| Program::without_tests(code)).collect();
    sandbox.run_all(&programs, |i, outcome| outcomes[i] = Some(outcome)).unwrap();
    outcomes.into_iter().map(Option::unwrap).collect()
}

/// Programs that compute.
const HONEST: &[&str] = &[
    "assert 1 + 1 == 2",
    "import math, re, json, itertools, collections, heapq, datetime, random, string, typing",
    "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\nassert A().x == 1",
    "open('a', 'w').write('x' * 1000)\nassert len(open('a').read()) == 1000\nopen('a', 'w').close()",
    "import tempfile\nwith tempfile.NamedTemporaryFile() as f:\n    f.write(b'x')",
    "import os, tempfile\nwith tempfile.TemporaryDirectory() as d:\n    open(os.path.join(d, 'a'), 'w').write('x')",
    "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
    "import asyncio\nasync def f():\n    await asyncio.sleep(0)\nasyncio.run(f())",
    "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'",
    "import fcntl\nwith open('a', 'w') as f:\n    fcntl.flock(f, fcntl.LOCK_EX)\n    fcntl.lockf(f, fcntl.LOCK_EX)",
    "print('a line')\nprint('no line', end='')",
    "import os\nassert os.listdir('.') == []",
    "if __name__ == '__main__':\n    raise Exception",
];

/// Programs that end in another way, and what is said of them.
const ENDINGS: &[(&str, &str)] = &[
    ("assert 1 == 2, 'no'", "failed: AssertionError: no"),
    ("def f(:", "failed: SyntaxError: invalid syntax"),
    ("exit(0)\nassert False", "failed: SystemExit: 0"),
    ("import os\nos._exit(0)", "failed: it left before its end"),
    ("input()", "failed: EOFError: EOF when reading a line"),
    ("while True: pass", "timed out"),
    ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "timed out"),
    ("import time\ntime.sleep(60)", "timed out"),
    ("def f(): f()\nf()", "failed: RecursionError: maximum recursion depth exceeded"),
];

#[test]
fn honest_programs_get_what_they_need() {
    let Some(sandbox) = sandbox(|_| ()) else { return };
    let expected: Vec<_> =
        HONEST.iter().map(|program| (*program, "passed")).chain(ENDINGS.to_vec()).collect();
    let programs: Vec<String> = expected.iter().map(|(program, _)| (*program).to_owned()).collect();
    for ((program, ending), outcome) in expected.iter().zip(run_all(&sandbox, &programs)) {
        assert_eq!(outcome.describe(), *ending, "{program}");
    }
}

/// Programs that attack. Each one reaches its end only if the attack succeeded, or `assert`s that it was refused.
const HOSTILE: &[(&str, &str)] = &[
    ("fork bomb", "import os\nwhile True: os.fork()"),
    ("fork bomb that catches", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    (
        "thread bomb",
        "import threading, time\nfor _ in range(5000): threading.Thread(target=time.sleep, args=(60,)).start()",
    ),
    (
        "thread bomb with small stacks",
        "import threading, time\nthreading.stack_size(32768)\nfor _ in range(5000): threading.Thread(target=time.sleep, args=(60,)).start()",
    ),
    ("subprocess", "import subprocess\nsubprocess.run(['/bin/true'])"),
    ("shell", "import os\nassert os.system('true') == 0"),
    ("memory bomb", "x = 'x' * (8 << 30)"),
    ("memory bomb by steps", "x = []\nwhile True: x.append(bytearray(1 << 24))"),
    ("anonymous files", "import os\nfd = os.memfd_create('x')"),
    (
        "shared memory",
        "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=1 << 33)",
    ),
    ("endless output", "while True: print('x' * 1000)"),
    ("endless errors", "import os\nwhile True: os.write(2, b'x' * 1000)"),
    ("password file", "open('/etc/passwd').read()"),
    ("our files", "open(SECRET).read()"),
    ("our files by a link", "import os\nos.symlink(SECRET, 'link')\nopen('link').read()"),
    ("our files by a hard link", "import os\nos.link(SECRET, 'link')\nopen('link').read()"),
    ("our files by a relative path", "open('../../../../../../../../..' + SECRET).read()"),
    ("our directory", "import os\nos.listdir(os.path.dirname(SECRET))"),
    ("writing over our files", "open(SECRET, 'w').write('x')"),
    ("deleting our files", "import os\nos.remove(SECRET)"),
    ("renaming a link over our files", "import os\nopen('x', 'w')\nos.rename('x', SECRET)"),
    ("changing our files' mode", "import os\nos.chmod(SECRET, 0o777)"),
    ("changing our files' times", "import os\nos.utime(SECRET, (0, 0))"),
    ("changing our files' owner", "import os\nos.chown(SECRET, os.getuid(), os.getgid())"),
    ("changing our files' attributes", "import os\nos.setxattr(SECRET, 'user.x', b'x')"),
    ("emptying our files", "import os\nos.truncate(SECRET, 0)"),
    ("emptying our files by opening them", "import os\nos.open(SECRET, os.O_RDONLY | os.O_TRUNC)"),
    ("changing the library's mode", "import os\nos.chmod(os.__file__, 0o644)"),
    ("changing an open file's mode", "import os\nos.fchmod(os.open(os.__file__, os.O_RDONLY), 0o644)"),
    ("changing an open file's times", "import os\nos.utime(os.open(os.__file__, os.O_RDONLY))"),
    ("writing to /tmp", "open('/tmp/mixse-sandbox-escape', 'w')"),
    ("writing to the root", "open('/mixse-sandbox-escape', 'w')"),
    (
        "writing to the system",
        "import os\nopen(os.path.join(os.path.dirname(os.__file__), 'mixse_sandbox_escape.py'), 'w')",
    ),
    ("writing to the interpreter", "import sys\nopen(sys.executable, 'r+b')"),
    ("our environment", "import os\nassert any('SANDBOX_SECRET' in k for k in os.environ)"),
    (
        "our environment in proc",
        "import os\nassert any(b'SANDBOX_SECRET' in open(f'/proc/{p}/environ', 'rb').read() for p in os.listdir('/proc') if p.isdigit())",
    ),
    ("parent's memory", "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')"),
    ("its own memory map", "open('/proc/self/maps').read()"),
    ("internet socket", "import socket\nsocket.socket(socket.AF_INET)"),
    ("internet socket v6", "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"),
    ("local socket", "import socket\nsocket.socket(socket.AF_UNIX)"),
    ("pair of datagram sockets", "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"),
    ("netlink socket", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    ("vsock", "import socket\nsocket.socket(40, socket.SOCK_STREAM)"),
    ("server", "import http.server\nhttp.server.HTTPServer(('127.0.0.1', 0), None)"),
    ("connection", "import socket\nsocket.create_connection(('127.0.0.1', PORT))"),
    ("name lookup", "import socket\nsocket.gethostbyname('example.com')"),
    ("killing the parent", "import os\nassert os.getppid() > 1\nos.kill(os.getppid(), 9)"),
    ("killing everything", "import os\nos.kill(-1, 9)"),
    ("killing the group", "import os\nos.killpg(0, 9)"),
    ("killing the evaluator", "import os\nos.kill(EVALUATOR, 9)"),
    (
        "killing the evaluator by a pipe's signal",
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, EVALUATOR)\nfcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')",
    ),
    ("stopping itself", "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)"),
    (
        "ignoring signals",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    ),
    (
        "grandchild that survives",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: open('alive', 'w').write('x'); time.sleep(0.1)\n    os._exit(0)",
    ),
    ("new session", "import os\nos.setsid()"),
    (
        "ptrace",
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.ptrace(16, os.getppid(), 0, 0) == 0",
    ),
    (
        "ptrace of itself",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.ptrace(0, 0, 0, 0) == 0",
    ),
    (
        "reading another process",
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.process_vm_readv(EVALUATOR, None, 0, None, 0, 0) == 0",
    ),
    ("raw fork", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(57) >= 0"),
    (
        "raw vfork by clone",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(56, 17, 0, 0, 0, 0) >= 0",
    ),
    ("raw clone3", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(435, 0, 0) == -1 and False"),
    (
        "32-bit numbers",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(0x40000000 + 41, 2, 1, 0) >= 0",
    ),
    (
        "mount",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(b'x', b'/work', b'tmpfs', 0, None) == 0",
    ),
    ("unmount", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.umount2(b'/work', 2) == 0"),
    ("chroot", "import os\nos.chroot('.')"),
    ("new namespaces", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.unshare(0x10000000) == 0"),
    ("becoming root", "import os\nos.setuid(0)\nassert open('/etc/shadow')"),
    ("raising limits", "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))"),
    ("many open files", "import os\nfor i in range(5000): os.open('/dev/null', os.O_RDONLY)"),
    ("large file", "f = open('big', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"),
    ("many files", "i = 0\nwhile True:\n    open(f'f{i}', 'wb').write(b'x' * (1 << 20)); i += 1"),
    ("device", "import os\nos.mknod('disk', 0o60666, os.makedev(254, 0))\nopen('disk', 'rb')"),
    ("pipe and device links", "open('/dev/kmsg').read(1)"),
    ("kernel settings", "open('/proc/sys/kernel/core_pattern', 'w').write('x')"),
    ("tracing", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(298, 0, 0, -1, -1, 0) >= 0"),
    ("kernel programs", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(321, 0, 0, 0) >= 0"),
    (
        "ring",
        "import ctypes\nlibc = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(256)\nassert libc.syscall(425, 4, b) >= 0",
    ),
    ("keyring", "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.syscall(250, 0, -3, 0) >= 0"),
    ("forged verdict", "import os\nos.write(2, b'mixse-0 exit 0\\n')\nos._exit(0)"),
    ("crash", "import ctypes\nctypes.string_at(0)"),
    (
        "closing its streams",
        "import os, time\nfor i in range(64):\n    try: os.close(i)\n    except OSError: pass\ntime.sleep(60)",
    ),
    ("deep stack", "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()"),
    ("terminal input", "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSTI, b'x')"),
];

/// These run into limits of time and output, which the other defences have no part in.
const SLOW: &[&str] = &[
    "fork bomb that catches",
    "stopping itself",
    "ignoring signals",
    "closing its streams",
    "deep stack",
    "endless output",
    "endless errors",
];

/// Only a user of its own, which is not root, has its threads counted. Else memory bounds them, and small ones fit.
const THREADS: &[&str] = &["thread bomb", "thread bomb with small stacks"];

/// Runs the programs and returns the names of those that succeeded.
fn attack(sandbox: &Sandbox, skipped: &[&str]) -> Vec<&'static str> {
    // Open to everyone, so that it is not the file's rights that keep a program out.
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let state = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (fs::read_to_string(path).unwrap(), found.mode(), found.mtime(), found.uid(), found.nlink())
    };
    let before = state(&secret);
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let preamble = format!(
        "SECRET = {:?}\nEVALUATOR = {}\nPORT = {}\n",
        secret.display().to_string(),
        std::process::id(),
        server.local_addr().unwrap().port()
    );
    let tried: Vec<_> = HOSTILE.iter().filter(|(name, _)| !skipped.contains(name)).collect();
    let programs: Vec<String> = tried.iter().map(|(_, program)| format!("{preamble}{program}")).collect();
    let started = Instant::now();
    let outcomes = run_all(sandbox, &programs);
    println!("{} programs in {:?}: {:?}", programs.len(), started.elapsed(), sandbox.capabilities());
    let mut succeeded = Vec::new();
    for ((name, _), outcome) in tried.iter().zip(&outcomes) {
        println!("{name}: {}", outcome.describe());
        let output = matches!(*name, "endless output" | "endless errors");
        assert_eq!(output, outcome == &Outcome::TooMuchOutput, "{name}: {outcome:?}");
        if outcome.passed() {
            succeeded.push(*name);
        }
    }
    assert_eq!(state(&secret), before);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    for trace in ["/tmp/mixse-sandbox-escape", "/mixse-sandbox-escape"] {
        assert!(fs::symlink_metadata(trace).is_err(), "{trace} was written");
    }
    succeeded
}

#[test]
fn no_hostile_program_succeeds_or_disturbs_the_next() {
    let Some(sandbox) = sandbox(|_| ()) else { return };
    let succeeded = attack(&sandbox, &[]);
    let have = sandbox.capabilities();
    let counted =
        have.other_user == Support::Available || (have.namespaces == Support::Available && !is_root());
    let unstopped = if counted { &[] } else { THREADS };
    assert!(succeeded.iter().all(|name| unstopped.contains(name)), "{succeeded:?}");
    assert_eq!(sandbox.run(&Program::without_tests("assert 1 + 1 == 2")).unwrap(), Outcome::Passed);
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// The sandbox without some defences, with which honest programs run; `None` where too few are left, which must be refused.
fn without(off: &[Defence], change: impl FnOnce(&mut Limits)) -> Option<Sandbox> {
    let all = sandbox(change)?;
    let have = all.capabilities();
    let left =
        |defence: Defence, support: &Support| *support == Support::Available && !off.contains(&defence);
    let enough = left(Defence::Namespaces, &have.namespaces) || left(Defence::Landlock, &have.landlock);
    let sandbox = match all.without(off) {
        Ok(sandbox) => sandbox,
        Err(e) => {
            println!("without {off:?}: {e}");
            assert!(!enough && e.to_string().contains("lacks what is needed"), "{e}");
            return None;
        }
    };
    assert!(enough && sandbox.capabilities().minimum());
    // The last but one wants an empty directory: all in one program, from the last to the first.
    let mut together = HONEST.to_vec();
    together.reverse();
    let program = format!("for program in {}:\n    exec(program, {{}})", serde_json::json!(together));
    assert_eq!(sandbox.run(&Program::without_tests(&program)).unwrap(), Outcome::Passed, "without {off:?}");
    Some(sandbox)
}

/// Runs the programs with some defences switched off, where the system then still offers the minimum. Those in `unstopped` may
/// succeed: only what is switched off stops them.
fn attack_without(off: &[Defence], unstopped: &[&str]) {
    let Some(sandbox) = without(off, |_| ()) else { return };
    let succeeded = attack(&sandbox, SLOW);
    assert!(succeeded.iter().all(|name| unstopped.contains(name)), "without {off:?}: {succeeded:?}");
}

// Each defence only takes away, so what the least of them stop, more of them stop too: the two smallest allowed sets are attacked.

#[test]
fn landlock_and_seccomp_suffice() {
    // Threads are counted where root can become another user.
    without(&[Defence::Namespaces], |_| ());
    attack_without(&[Defence::Namespaces, Defence::OtherUser], THREADS);
}

#[test]
fn namespaces_and_seccomp_suffice() {
    without(&[Defence::Landlock], |_| ());
    without(&[Defence::OtherUser], |_| ());
    attack_without(&[Defence::Landlock, Defence::OtherUser], THREADS);
}

#[test]
fn less_than_the_minimum_is_refused() {
    let Some(sandbox) = sandbox(|_| ()) else { return };
    for off in [&[Defence::Seccomp][..], &[Defence::Namespaces, Defence::Landlock]] {
        let e = sandbox.without(off).unwrap_err().to_string();
        assert!(e.contains("lacks what is needed") && e.contains("switched off"), "{e}");
    }
}

/// The tests above once more for a user without rights, whom a system may refuse namespaces. Started by root, this test starts
/// itself as such a user.
#[test]
fn a_user_without_rights_is_as_safe() {
    if is_root() {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let test = place.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
        fs::copy(LAUNCHER, place.path().join("mixse-sandbox-child")).unwrap();
        let output = Command::new(test)
            .args(["--exact", "a_user_without_rights_is_as_safe", "--nocapture"])
            .env_remove("TMPDIR")
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output();
        // In a user namespace there may be no other user.
        let Ok(output) = output else { return println!("no other user: {output:?}") };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        println!("{}", text(&output.stdout));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("1 passed"));
        return;
    }
    match without(&[], |_| ()) {
        Some(sandbox) => assert_eq!(sandbox.capabilities().other_user, Support::NotNeeded),
        None => return println!("this user is offered less than the minimum, and refused"),
    }
    attack_without(&[Defence::Namespaces], THREADS);
    attack_without(&[Defence::Landlock], &[]);
}

#[test]
fn a_directory_on_a_shared_disk_is_kept_small() {
    let programs = [
        "i = 0\nwhile True:\n    open(f'f{i}', 'wb').write(b'x' * (1 << 20)); i += 1",
        "i = 0\nwhile True:\n    open(f'f{i}', 'wb'); i += 1",
        "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')",
        "import os, time\nos.mkdir('d', 0o300)\nopen('d/x', 'w')\ntime.sleep(1)",
    ];
    // A thousand files can take a second on a slow disk.
    let time = |limits: &mut Limits| (limits.wall_seconds, limits.cpu_seconds) = (30, 20);
    let Some(sandbox) = without(&[Defence::Namespaces], time) else { return };
    for (program, outcome) in programs.iter().zip(run_all(&sandbox, &programs.map(str::to_owned))) {
        let outcome = outcome.describe();
        // Root can list every directory, and sees how little is in this one.
        let seen = is_root() && program.contains("0o300");
        assert_eq!(outcome, if seen { "passed" } else { "failed: it filled its directory" }, "{program}");
    }
}

#[test]
fn the_time_limit_holds_and_leaves_nothing_behind() {
    let Some(sandbox) = sandbox(|l| l.wall_seconds = 1) else { return };
    let started = Instant::now();
    assert_eq!(
        sandbox.run(&Program::without_tests("import time\ntime.sleep(60)")).unwrap(),
        Outcome::TimedOut
    );
    assert!(started.elapsed().as_secs() < 4, "{:?}", started.elapsed());
}

#[test]
fn a_missing_launcher_is_refused() {
    let launcher = Launcher { program: PathBuf::from("/no/such/launcher"), args: Vec::new() };
    let e = Sandbox::open(launcher, Limits::default(), Policy::RequireMinimum).unwrap_err();
    assert!(e.to_string().contains("lacks what is needed"), "{e}");
}

#[test]
fn a_missing_python_is_named() {
    let e = Python::at("no-such-python3").unwrap_err().to_string();
    assert!(e.contains("no-such-python3 does not start") && e.contains("install Python 3"), "{e}");
}
