//! Hostile programs in the sandbox. These tests are about running Python: they need `python3`.

use std::{fs, path::PathBuf, time::Instant};

use mixse_eval::sandbox::{Launcher, Limits, Outcome, Policy, Sandbox};

fn launcher() -> Launcher {
    Launcher { program: PathBuf::from(env!("CARGO_BIN_EXE_mixse-sandbox-child")), args: Vec::new() }
}

/// `None` where the kernel (or a container around it) does not offer the minimum; then opening must refuse.
fn sandbox(change: impl FnOnce(&mut Limits)) -> Option<Sandbox> {
    let mut limits = Limits { wall_seconds: 5, cpu_seconds: 2, ..Limits::default() };
    change(&mut limits);
    match Sandbox::open(launcher(), limits, Policy::RequireMinimum) {
        Ok(sandbox) => Some(sandbox),
        Err(e) => {
            assert!(e.to_string().contains("lacks what is needed"), "{e}");
            None
        }
    }
}

#[test]
fn honest_programs_get_what_they_need() {
    let Some(sandbox) = sandbox(|_| ()) else { return };
    let check = |program: &str, expected: &str| {
        let outcome = sandbox.run(program).unwrap().describe();
        assert_eq!(outcome, expected, "{program}");
    };
    check("assert 1 + 1 == 2", "passed");
    check("import math, re, json, itertools, collections, heapq, datetime, random, string, typing", "passed");
    check(
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\nassert A().x == 1",
        "passed",
    );
    check("open('a', 'w').write('x' * 1000)\nassert len(open('a').read()) == 1000", "passed");
    check("import tempfile\nwith tempfile.NamedTemporaryFile() as f:\n    f.write(b'x')", "passed");
    check("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", "passed");
    check("import asyncio\nasync def f():\n    await asyncio.sleep(0)\nasyncio.run(f())", "passed");
    check("print('a line')\nprint('no line', end='')", "passed");
    check("import os\nassert os.listdir('.') == []", "passed");
    check("if __name__ == '__main__':\n    raise Exception", "passed");
    check("assert 1 == 2, 'no'", "failed: AssertionError: no");
    check("def f(:", "failed: SyntaxError: invalid syntax");
    check("exit(0)\nassert False", "failed: SystemExit: 0");
    check("import os\nos._exit(0)", "failed: it left before its end");
    check("input()", "failed: EOFError: EOF when reading a line");
    check("while True: pass", "timed out");
    check("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "timed out");
    check("import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'", "passed");
    check("import time\ntime.sleep(60)", "timed out");
    check("def f(): f()\nf()", "failed: RecursionError: maximum recursion depth exceeded");
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

#[test]
fn no_hostile_program_succeeds_or_disturbs_the_next() {
    let Some(sandbox) = sandbox(|l| l.memory = 512 << 20) else { return };
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let preamble = format!(
        "SECRET = {:?}\nEVALUATOR = {}\nPORT = {}\n",
        secret.display().to_string(),
        std::process::id(),
        server.local_addr().unwrap().port()
    );
    let programs: Vec<String> = HOSTILE.iter().map(|(_, program)| format!("{preamble}{program}")).collect();
    let started = Instant::now();
    let mut outcomes = vec![None; programs.len()];
    sandbox.run_all(&programs, |i, outcome| outcomes[i] = Some(outcome)).unwrap();
    for ((name, _), outcome) in HOSTILE.iter().zip(&outcomes) {
        let outcome = outcome.as_ref().unwrap();
        println!("{name}: {}", outcome.describe());
        assert!(!outcome.passed(), "{name} succeeded");
        assert_eq!(sandbox_output_expected(name), outcome == &Outcome::TooMuchOutput, "{name}: {outcome:?}");
    }
    println!("{} programs in {:?}", programs.len(), started.elapsed());
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    for trace in ["/tmp/mixse-sandbox-escape", "/mixse-sandbox-escape"] {
        assert!(fs::symlink_metadata(trace).is_err(), "{trace} was written");
    }
    assert_eq!(sandbox.run("assert 1 + 1 == 2").unwrap(), Outcome::Passed);
}

fn sandbox_output_expected(name: &str) -> bool {
    matches!(name, "endless output" | "endless errors")
}

#[test]
fn the_time_limit_holds_and_leaves_nothing_behind() {
    let Some(sandbox) = sandbox(|l| l.wall_seconds = 1) else { return };
    let started = Instant::now();
    assert_eq!(sandbox.run("import time\ntime.sleep(60)").unwrap(), Outcome::TimedOut);
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
    let e = mixse_eval::sandbox::Python::at("no-such-python3").unwrap_err().to_string();
    assert!(e.contains("no-such-python3 does not start") && e.contains("install Python 3"), "{e}");
}
