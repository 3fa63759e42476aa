//! What generated code can do about the verdict on it. These tests are about running Python: they need `python3`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use std::path::PathBuf;

use mixse_eval::sandbox::{Launcher, Limits, Outcome, Policy, Program, Sandbox};

fn sandbox() -> Option<Sandbox> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_mixse-sandbox-child"));
    let limits = Limits { wall_seconds: 6, cpu_seconds: 2, ..Limits::default() };
    Sandbox::open(Launcher { program, args: Vec::new() }, limits, Policy::RequireMinimum)
        .map_err(|e| eprintln!("generated code is not run: {e}"))
        .ok()
}

fn outcomes(cases: &[(&str, &str)]) -> Option<Vec<Outcome>> {
    let sandbox = sandbox()?;
    let programs: Vec<Program> =
        cases.iter().map(|(code, tests)| Program { code: (*code).into(), tests: (*tests).into() }).collect();
    let mut outcomes = vec![None; programs.len()];
    sandbox.run_all(&programs, |i, outcome| outcomes[i] = Some(outcome)).unwrap();
    Some(outcomes.into_iter().map(Option::unwrap).collect())
}

/// Right code in many forms, with tests as benchmarks and models write them.
const HONEST: &[(&str, &str)] = &[
    ("def f(n):\n    return 2 * n", "assert f(2) == 4\nassert f(0.5) == 1.0\nassert f('ab') == 'abab'"),
    ("def f(n):\n    return n > 0", "assert f(1) is True and f(-1) is False\nassert f(1)\nassert not f(0)"),
    ("def f():\n    pass", "assert f() is None"),
    ("def f(n):\n    return 10 ** n", "assert f(400) == 10 ** 400 and -f(400) < -1"),
    (
        "def f():\n    return [float('nan'), float('inf'), -0.0]",
        "x = f()\nassert x[0] != x[0] and x[1] > 1e308 and str(x[2]) == '-0.0'",
    ),
    (
        "def f():\n    return (1, 2.0, 'x'), [None, True], {'a': {1, 2}, (1, 2): frozenset([3])}",
        "t, l, d = f()\nassert t == (1, 2.0, 'x') and isinstance(t, tuple) and l == [None, True]\nassert d == {'a': {1, 2}, (1, 2): frozenset([3])}",
    ),
    (
        "def f():\n    return b'\\x00\\xff', bytearray(b'a'), 2 + 3j, range(0, 9, 2), ...",
        "a, b, c, d, e = f()\nassert a == b'\\x00\\xff' and b == bytearray(b'a') and c == 2 + 3j and list(d) == [0, 2, 4, 6, 8] and e is Ellipsis",
    ),
    ("def f():\n    return '\\ud800é\\0\\n'", "assert f() == '\\ud800é\\0\\n'"),
    ("def f(l):\n    l.append(3)\n    l.sort()", "x = [5, 1]\nf(x)\nassert x == [1, 3, 5]"),
    ("def f(d):\n    d['k'] = 1\n    del d['o']", "x = {'o': 2}\nassert f(x) is None\nassert x == {'k': 1}"),
    (
        "def f(n):\n    for i in range(n):\n        yield i * i",
        "assert list(f(4)) == [0, 1, 4, 9]\nassert sum(f(3)) == 5",
    ),
    (
        "def f(n):\n    if n < 0:\n        raise ValueError('negative')\n    return n",
        "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)\nassert f(1) == 1",
    ),
    (
        "class Own(Exception):\n    pass\ndef f():\n    raise Own('x')",
        "try:\n    f()\nexcept Own:\n    pass\nelse:\n    assert False",
    ),
    (
        "def f(g, l):\n    return [g(x) for x in l]",
        "assert f(lambda x: x + 1, [1, 2]) == [2, 3]\nassert f(str, [1]) == ['1']",
    ),
    ("def f(n):\n    def g(m):\n        return n + m\n    return g", "assert f(2)(3) == 5"),
    (
        "class Point:\n    def __init__(self, x):\n        self.x = x\n    def moved(self, by=1):\n        return Point(self.x + by)",
        "p = Point(2).moved(by=3)\nassert p.x == 5 and isinstance(p, Point)",
    ),
    (
        "import math\ndef area(r):\n    return math.pi * r * r",
        "assert math.isclose(area(2), 12.566370614359172)",
    ),
    (
        "from collections import Counter, OrderedDict, defaultdict\ndef f(s):\n    return Counter(s)\ndef g():\n    return OrderedDict(a=1)",
        "assert f('aab') == {'a': 2, 'b': 1} == Counter('aab')\nassert g() == {'a': 1}",
    ),
    ("def f(n):\n    return f(n - 1) + 1 if n else 0", "assert f(500) == 500"),
    ("def f():\n    print('text on standard output')\n    return 1", "assert f() == 1"),
    ("def f(*a, k=1, **n):\n    return a, k, n", "assert f(1, 2, k=3, z=4) == ((1, 2), 3, {'z': 4})"),
    (
        "def candidate(x):\n    return x + 1",
        "METADATA = {'author': 'x'}\ndef check(candidate):\n    assert candidate(1) == 2\n    assert [candidate(i) for i in range(3)] == [1, 2, 3]\n\ncheck(candidate)",
    ),
    ("def max(a):\n    return a[0]", "assert max([3, 9]) == 3"),
    ("import math as m\nfrom math import pi\ndef f(r):\n    return pi * r", "assert m.isclose(f(1), m.pi)"),
    (
        "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\ndef depth(n):\n    return 0 if n is None else 1 + depth(n.left)",
        "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2",
    ),
    (
        "class Box:\n    def __init__(self):\n        self.d = {}\n    def __setitem__(self, k, v):\n        self.d[k] = v\n    def __getitem__(self, k):\n        return self.d[k]",
        "b = Box()\nb['x'] = [1]\nassert b['x'] == [1]",
    ),
    ("def f():\n    return int, [str, list]", "assert f() == (int, [str, list])"),
    ("def string(n):\n    return 'x' * n", "assert string(3) == 'xxx'"),
    ("LIMIT = 7\ndef f():\n    return LIMIT", "assert f() == LIMIT"),
    ("def f():\n    return sorted({3, 1})", "assert len(f()) == 2 and 3 in f() and f()[0] == 1"),
];

#[test]
fn honest_code_passes_its_tests() {
    let Some(outcomes) = outcomes(HONEST) else { return };
    for ((code, tests), outcome) in HONEST.iter().zip(outcomes) {
        assert_eq!(outcome, Outcome::Passed, "{code}\n---\n{tests}");
    }
}

/// The tests that no attack passes: the attacks do not compute what is asked.
const ASKED: &str = "assert f(2) == 4\nassert f(5) == 10\nassert isinstance(f(1), int)";

/// Code that is after the verdict, or wrong in a way that a comparison may pass over.
const ATTACKS: &[(&str, &str)] = &[
    (
        "always equal",
        "class A:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\ndef f(n):\n    return A()",
    ),
    (
        "always equal, of Python's type",
        "class A(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\ndef f(n):\n    return A(0)",
    ),
    (
        "equal by its class",
        "class M(type):\n    def __eq__(self, other):\n        return True\n    __hash__ = None\nclass A(metaclass=M):\n    pass\ndef f(n):\n    return A",
    ),
    ("reads standard input", "import sys\nsys.stdin.read()\ndef f(n):\n    return eval(input())"),
    ("leaves well", "import os\nos._exit(0)"),
    ("leaves well when called", "import os\ndef f(n):\n    os._exit(0)"),
    ("exits", "raise SystemExit(0)"),
    ("exits when called", "import sys\ndef f(n):\n    sys.exit(0)"),
    ("interrupts", "def f(n):\n    raise KeyboardInterrupt"),
    (
        "walks the frames",
        "import sys\ndef f(n):\n    frame = sys._getframe()\n    while frame:\n        for k, v in list(frame.f_locals.items()):\n            if 'mark' in k or 'mark' in str(v)[:200]:\n                print(v)\n        frame = frame.f_back\n    return None",
    ),
    (
        "replaces the channel's functions",
        "import sys, gc\ndef f(n):\n    return None\nframe = sys._getframe()\nwhile frame:\n    for k in list(frame.f_locals):\n        if k == 'line':\n            frame.f_locals[k].send({'value': True})\n            frame.f_locals[k].send({'value': 4})\n    frame = frame.f_back",
    ),
    (
        "answers out of turn",
        "import os\nfor fd in range(3, 32):\n    try:\n        os.write(fd, b'{\"names\": [\"f\"]}\\n{\"value\": true}\\n' * 50)\n    except OSError:\n        pass\ndef f(n):\n    return 0",
    ),
    (
        "says what is no message",
        "import os\nfor fd in range(3, 32):\n    try:\n        os.write(fd, b'[1, 2\\xff\\n')\n    except OSError:\n        pass\ndef f(n):\n    return 0",
    ),
    ("closes everything", "import os\nos.closerange(0, 64)\ndef f(n):\n    return 2 * n + 1"),
    (
        "replaces builtins",
        "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.AssertionError = Exception\ndef isinstance(*a):\n    return True\ndef f(n):\n    return 'x'",
    ),
    (
        "replaces json",
        "import json\njson.dumps = lambda *a, **k: '{\"value\": 4}'\njson.loads = lambda *a, **k: {'value': 4}\ndef f(n):\n    return 4",
    ),
    (
        "kills its parent",
        "import os, signal\nfor pid in (os.getppid(), 0, 1, -1):\n    try:\n        os.kill(pid, signal.SIGKILL)\n    except BaseException:\n        pass\ndef f(n):\n    return 0",
    ),
    (
        "ends in a thread",
        "import threading, os\nthreading.Timer(0.01, lambda: os._exit(0)).start()\nimport time\ndef f(n):\n    time.sleep(1)",
    ),
    ("never ends", "def f(n):\n    while True:\n        pass"),
    ("never ends before its end", "while True:\n    pass"),
    ("endless value", "def f(n):\n    return 'x' * (1 << 28)"),
    ("deep value", "def f(n):\n    x = []\n    for i in range(100000):\n        x = [x]\n    return x"),
    ("value that holds itself", "def f(n):\n    x = []\n    x.append(x)\n    return x"),
    (
        "prints a verdict",
        "import sys\ndef f(n):\n    print('exit 0')\n    sys.stderr.write('\\nmixse-0000 exit 0\\n')\n    return 1",
    ),
    ("is of another type", "def f(n):\n    return float(2 * n)"),
    ("is text of the answer", "def f(n):\n    return str(2 * n)"),
    ("defines nothing", "x = 1"),
    ("fails to compile", "def f(n:\n    return 2 * n"),
    ("is no function", "f = {2: 4, 5: 10, 1: 2}"),
    (
        "compares by its own rules in a list",
        "class A:\n    def __eq__(self, other):\n        return True\ndef f(n):\n    return [A()]",
    ),
];

#[test]
fn no_program_decides_about_itself() {
    let cases: Vec<(&str, &str)> = ATTACKS.iter().map(|(_, code)| (*code, ASKED)).collect();
    let Some(outcomes) = outcomes(&cases) else { return };
    for ((name, _), outcome) in ATTACKS.iter().zip(outcomes) {
        assert!(!outcome.passed(), "{name}");
    }
}

/// What the tests see is data: an object that stays with the program equals no value.
#[test]
fn objects_of_the_program_equal_no_value() {
    let same = "class A:\n    def __eq__(self, other):\n        return True\ndef f(n):\n    return A()";
    let cases: Vec<(&str, &str)> = [
        "assert f(1) == 1",
        "assert 1 == f(1)",
        "assert f(1) in [1, 2]",
        "assert [f(1)] == [1]",
        "assert f(1) == None",
        "assert {f(1): 1} == {1: 1}",
    ]
    .into_iter()
    .map(|tests| (same, tests))
    .collect();
    let Some(outcomes) = outcomes(&cases) else { return };
    for ((_, tests), outcome) in cases.iter().zip(outcomes) {
        assert!(!outcome.passed(), "{tests}");
    }
}

/// Tests that hand one function's value to another, and code that makes these the judge's own.
#[test]
fn what_could_end_the_judge_stays_with_the_program() {
    const LEAVE: &str = "\"__import__('os')._exit(0)\"";
    let forged = |decode: &str| format!("decode = {decode}\ndef encode(s):\n    return {LEAVE}");
    let check = "def check(candidate):\n    assert decode(candidate('ab')) == 'ab'\n\ncheck(encode)";
    let cases: Vec<(String, &str)> = vec![
        (forged("eval"), "assert decode(encode('ab')) == 'ab'"),
        (forged("exec"), "assert decode(encode('ab')) == 'ab'"),
        (forged("eval"), check),
        (format!("def f(n):\n    return eval if n == 1 else {LEAVE}"), "assert f(1)(f(2)) == 'ab'"),
        ("import os as m".into(), "m._exit(0)"),
        ("import sys, os\nm = sys".into(), "m.exit(0)"),
        ("import os, posix\nm = posix".into(), "m._exit(0)"),
        (format!("def f():\n    return {LEAVE}"), "assert eval(f()) == 4"),
        (format!("def f():\n    return {LEAVE}"), "exec(f())"),
        ("def f(n):\n    return exit".into(), "f(1)(0)\nassert False"),
        (
            "class math:\n    isclose = staticmethod(lambda *a, **k: True)\ndef f(n):\n    return 1".into(),
            "assert math.isclose(f(2), 4.0)",
        ),
        ("import operator as math\ndef f(n):\n    return 1".into(), "assert math.isclose(f(2), 4.0)"),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(code, tests)| (code.as_str(), *tests)).collect();
    let Some(outcomes) = outcomes(&cases) else { return };
    for ((code, tests), outcome) in cases.iter().zip(outcomes) {
        assert!(!outcome.passed(), "{code}\n---\n{tests}");
    }
}

/// What is said of a failure.
#[test]
fn failures_say_why() {
    let cases: &[(&str, &str, &str)] = &[
        ("def f():\n    return 1", "assert f() == 2, 'two'", "failed: AssertionError: two"),
        ("def f():\n    return [][0]", "f()", "failed: IndexError: list index out of range"),
        ("def g():\n    return 1", "f()", "failed: NameError: name 'f' is not defined"),
        ("import os\ndef f():\n    os._exit(0)", "f()", "failed: it left before its end"),
        ("def f():\n    return 1", "assert f(", "failed: SyntaxError: '(' was never closed"),
        ("import time\ndef f():\n    time.sleep(60)", "f()", "timed out"),
        ("def f():\n    return 1", "while f():\n    pass", "timed out"),
        ("def f():\n    return 'x' * (1 << 28)", "f()", "failed: too much output"),
    ];
    let programs: Vec<(&str, &str)> = cases.iter().map(|(code, tests, _)| (*code, *tests)).collect();
    let Some(outcomes) = outcomes(&programs) else { return };
    for ((code, tests, expected), outcome) in cases.iter().zip(outcomes) {
        assert_eq!(outcome.describe(), *expected, "{code}\n---\n{tests}");
    }
}
