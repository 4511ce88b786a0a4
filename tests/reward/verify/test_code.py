"""Programs scored by their tests, and programs that cheat: run for real in the sandbox."""

from __future__ import annotations

import time

import pytest

from reward.errors import RewardError
from reward.functions import call_reward
from reward.sandbox import Limits
from reward.verify.code import CodeReward, extract_code, run_tests

QUICK = Limits(seconds=20, cpu=20)  # the machine may be busy
TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
RIGHT = "def add(a, b):\n    return a + b\n"


def passes(source: str, tests=TESTS, limits=QUICK) -> bool:
    return run_tests(source, tests, limits).share == 1.0


def test_right_and_wrong():
    assert passes(RIGHT)
    assert not passes("def add(a, b):\n    return a - b\n")
    assert not passes("def plus(a, b):\n    return a + b\n")
    assert not passes("def add(a, b)\n")
    problems = run_tests("def add(a, b):\n    return a - b\n", TESTS, QUICK).problems
    assert problems[0].startswith("AssertionError")


CHEATS = {
    "leaves with status 0": "import sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves when asked": "import os\ndef add(a, b):\n    os._exit(0)",
    "leaves by exception": "def add(a, b):\n    raise SystemExit(0)",
    "equals everything": (
        "class Yes:\n    def __eq__(self, other): return True\n"
        "    __hash__ = None\n    def __bool__(self): return True\n"
        "def add(a, b): return Yes()"
    ),
    "an int that equals everything": (
        "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def add(a, b): return Yes(9)"
    ),
    "a list that equals everything": (
        "class Yes(list):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def add(a, b): return Yes()"
    ),
    "replaces AssertionError": (
        "import builtins\nclass Fine(BaseException): pass\n"
        "builtins.AssertionError = Fine\nAssertionError = Fine\n"
        "def add(a, b): return 9"
    ),
    "replaces the builtins that tests use": (
        "def all(x): return True\nint = len = abs = sorted = all\n"
        "__builtins__['all'] = all\n"
        "def add(a, b): return 9"
    ),
    "replaces exec and compile": (
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n"
        "def add(a, b): return 9"
    ),
    "traces the assertions away": (
        "import sys, threading\ndef t(*a): return t\nsys.settrace(t)\nthreading.settrace(t)\n"
        "sys.excepthook = lambda *a: None\n"
        "def add(a, b): return 9"
    ),
    "prints a verdict": (
        "import sys, os\nfor fd in range(1, 64):\n"
        "    try: os.write(fd, b'[\"\"]')\n    except OSError: pass\nos._exit(0)"
    ),
    "sends a verdict down the line": (
        "import os\nfor fd in range(3, 64):\n"
        '    try: os.write(fd, b\'{"value": 5}\\n{"value": 0}\\n\' * 9)\n    except OSError: pass\n'
        "def add(a, b): return 9"
    ),
    "looks for the tests": (
        "import os\nfor folder, _, files in os.walk('/box'):\n"
        "    for name in files:\n        open(os.path.join(folder, name), 'a').write('\\n#')\n"
        "def add(a, b): return 9"
    ),
    "rewrites the caller": (
        "import sys, gc\n"
        "for o in gc.get_objects():\n"
        "    if isinstance(o, dict) and 'tests' in o: o['tests'] = []\n"
        "f = sys._getframe()\n"
        "while f: f.f_globals['perform'] = lambda *a: {'value': True}; f = f.f_back\n"
        "def add(a, b): return 9"
    ),
    "answers with true": "def add(a, b): return True",
    "never ends": "while True: pass",
    "never answers": "def add(a, b):\n    while True: pass",
    "prints for ever": "while True: print('x' * 10000)",
    "sends for ever": "def add(a, b): return 'x' * (100 << 20)",
    "nests for ever": "x = []\nfor _ in range(900): x = [x]\ndef add(a, b): return x",
    "takes all memory": "x = ' ' * (1 << 40)",
    "forks": "import os\nwhile True: os.fork()",
}


@pytest.mark.parametrize("source", CHEATS.values(), ids=CHEATS)
def test_no_cheat_passes(source):
    started = time.monotonic()
    limits = Limits(seconds=2, cpu=2, memory=256 << 20)
    # A test for `all`, which some cheats replace, and one that any truthy answer would pass.
    for tests in (TESTS, "assert all([add(n, n) == 2 * n for n in [1, 2]])"):
        assert not passes(source, tests, limits)
    assert time.monotonic() - started < 30


HONEST = [
    (
        """
def first(xs):
    xs.sort()
    return xs[0]
""",
        """
a = [3, 1]
assert first(a) == 1
assert a == [1, 3]
""",
    ),
    (
        """
def f(d):
    d['k'] = (1, {2})
""",
        """
d = {}
assert f(d) is None
assert d == {'k': (1, {2})}
""",
    ),
    ("def f():\n    yield from range(3)", "assert list(f()) == [0, 1, 2]"),
    ("def f(): return range(3)", "assert list(f()) == [0, 1, 2] and len(f()) == 3"),
    (
        """
def f(x):
    raise ValueError('bad ' + x)
""",
        """
try:
    f('x')
except ValueError as e:
    assert str(e) == 'bad x'
else:
    assert False
""",
    ),
    (
        """
class Empty(LookupError): pass
def f():
    raise Empty('no')
""",
        """
try:
    f()
except Empty as e:
    assert isinstance(e, LookupError)
else:
    assert False
""",
    ),
    (
        """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
""",
        """
s = Stack()
s.push(4)
assert len(s) == 1 and s.items == [4]
assert s.pop() == 4
assert not s
""",
    ),
    (
        """
from dataclasses import dataclass
@dataclass
class V:
    x: int
    def __add__(self, o): return V(self.x + o.x)
""",
        """
assert V(1) + V(2) == V(3)
assert V(1) != V(2)
assert (V(1) + V(1)).x == 2
assert str(V(1)) == 'V(x=1)'
""",
    ),
    (
        """
from collections import Counter
def f(s): return Counter(s)
""",
        "assert f('aab') == {'a': 2, 'b': 1}",
    ),
    (
        """
PI = 3.5
def area(r): return PI * r * r
""",
        """
import math
assert math.isclose(area(2.0), 14.0) and PI == 3.5
""",
    ),
    (
        "def f(x): return float(x)",
        "assert f('inf') == float('inf') and f('nan') != f('nan')",
    ),
    (
        "def f(x): return x",
        """
for x in [b'a', bytearray(b'b'), 1j, None, 10**30, {1: (2, [3])}, frozenset({1})]:
    assert f(x) == x and type(f(x)) is type(x)
""",
    ),
    (
        """
class N:
    def __init__(self, v, n=None): self.v, self.n = v, n
def total(n):
    return n.v + (total(n.n) if n.n else 0)
""",
        "assert total(N(1, N(2))) == 3",
    ),
    (
        RIGHT,
        """
def test_one():
    assert add(1, 1) == 2
""",
    ),
    (
        RIGHT,
        """
import unittest
class T(unittest.TestCase):
    def test_one(self):
        self.assertEqual(add(1, 1), 2)
""",
    ),
    (
        """
print('noise')
def add(a, b):
    return a + b
if __name__ == '__main__':
    input()
""",
        TESTS,
    ),
]


@pytest.mark.parametrize(("source", "tests"), HONEST)
def test_honest_solutions_of_many_kinds_pass(source, tests):
    assert run_tests(source, tests, QUICK).problems == [""]


FAILING = [
    """
def test_one():
    assert add(1, 1) == 3
""",
    """
import unittest
class T(unittest.TestCase):
    def test_one(self):
        self.assertEqual(add(1, 1), 3)
""",
]


@pytest.mark.parametrize("tests", FAILING)
def test_tests_in_functions_and_classes_can_fail(tests):
    assert not passes(RIGHT, tests)


def test_a_function_of_the_tests_cannot_cross():
    found = run_tests("def f(g): return g()", "assert f(lambda: 1) == 1", QUICK)
    assert "cannot be handed to the solution" in found.problems[0]


def test_programs_that_read_and_print():
    cases = [{"input": "2 3\n", "output": "5\n"}, {"input": "4 4", "output": "8"}]
    good = "a, b = map(int, input().split())\nprint(a + b, ' ')\n"
    assert run_tests(good, cases, QUICK).passed == [True, True]
    assert run_tests("print(5)", cases, QUICK).passed == [True, False]
    result = run_tests("import sys\nprint(5)\nsys.exit(1)", cases[:1], QUICK)
    assert result.problems == ["exit: exit 1"]
    late = run_tests("while True: pass", cases[:1], Limits(seconds=1))
    assert (late.passed, late.ended) == ([False], "timeout")


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], "no test to run"),
        ("  \n", "an empty one would pass anything"),
        (["assert add(1, 1) == 2", {"input": "", "output": ""}], "either all Python text or all"),
        ([{"input": "1"}], "either all Python text or all"),
    ],
)
def test_tests_that_are_none(tests, message):
    with pytest.raises(RewardError, match=message):
        run_tests(RIGHT, tests, QUICK)


def test_code_is_taken_from_the_last_python_block():
    text = "Try\n```python\nold\n```\nbetter:\n```py\nnew = 1\n```\n```bash\nls\n```"
    assert extract_code(text) == "new = 1\n"
    assert extract_code([{"role": "assistant", "content": "```\nx\n```"}]) == "x\n"
    assert extract_code("def f(): pass") == "def f(): pass"
    assert extract_code("```python\ncut off") == "cut off"


def test_the_reward_scores_rows_by_their_own_tests():
    noted = {}
    completions = [
        "```python\ndef add(a, b):\n    return a + b\n```",
        "```python\ndef add(a, b):\n    return a * b\n```",
        "```python\nwhile True: pass\n```",
    ]
    tests = [[TESTS, "assert add(0, 0) == 0"]] * 3
    reward = CodeReward(seconds=3, workers=2)
    assert reward(["p"] * 3, completions, log_metric=noted.__setitem__, tests=tests) == [1, 0, 0]
    assert noted == {"code/timeouts": pytest.approx(1 / 3)}
    share = CodeReward(seconds=3, partial=True)
    assert call_reward(share, ["p"] * 3, completions, tests=tests) == [1.0, 0.5, 0.0]
    continued = CodeReward(before="signature", tests="checks", name="unit_tests")
    body = {"signature": ["def add(a, b):\n"], "checks": [TESTS]}
    assert continued(["p"], ["    return a + b\n"], **body) == [1.0]


def test_missing_columns_and_tests_are_named():
    with pytest.raises(RewardError, match=r"needs the column 'tests'; the data have answer"):
        CodeReward()(["p"], ["c"], answer=["1"])
    with pytest.raises(RewardError, match=r"row 1, column 'tests': there is no test"):
        CodeReward()(["p", "p"], [RIGHT, RIGHT], tests=[TESTS, ""])
