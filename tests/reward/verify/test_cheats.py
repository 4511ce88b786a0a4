"""Programs that cheat their tests, and tests that say nothing: run for real in the sandbox."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from reward.errors import RewardError
from reward.sandbox import Limits
from reward.verify.code import CodeReward, run_tests
from reward.verify.test_side import UNUSED

QUICK = Limits(seconds=20, cpu=20)  # the machine may be busy
TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"
RIGHT = "def add(a, b):\n    return a + b\n"


def passes(source: str, tests=TESTS, limits=QUICK) -> bool:
    return run_tests(source, tests, limits).share == 1.0


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


OBJECTS = """
class Z:
    def yes(self, *others): return True
    def nothing(self, *others): return 0.0
    def itself(self, *others): return self
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = yes
    startswith = endswith = issubset = issuperset = isdisjoint = __exit__ = yes
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = RESULT
    __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __pow__ = __matmul__ = RESULT
    __and__ = __or__ = __xor__ = difference = symmetric_difference = RESULT
    __abs__ = __neg__ = __float__ = nothing
    def __bool__(self): return False
    def __len__(self): return 0
    def __int__(self): return 0
    def __iter__(self): return self
    def __next__(self): raise StopIteration
    def __enter__(self): return self
    __hash__ = object.__hash__
def f(*a): return Z()
class Area(Z):
    def __init__(self, *a): pass
"""
HELD_AGAINST = [
    "abs(f(1) - 2.5) < 1e-6",
    "abs(2.5 - f(1)) < 1e-6",
    "not (f(1) - 2.5)",
    "f(1) - 2.5 < 1e-6",
    "-1e-6 < f(1) - 2.5 < 1e-6",
    "f(1) + -2.5 == 0",
    "-2.5 + f(1) == 0",
    "f(1) * 2 == 0 == 2 * f(1)",
    "abs(f(1) / 2.5 - 1) <= 1",
    "2.5 / f(1) == 0",
    "f(1) // 2.5 == 0",
    "f(1) % 7 == 0",
    "f(1) ** 2 == 0",
    "not f(1) ^ {1, 2}",
    "len(f(1) - {1, 2}) == 0",
    "not list(f(1) & {1, 2})",
    "f(1) | {1, 2}",
    "3 in f(1)",
    "3 not in [x for x in [3] if x not in f(1)] and 3 in f(1)",
    "f(1).startswith('Hello')",
    "f(1).endswith('you')",
    "f(1).issubset({1}) and f(1).issuperset({1})",
    "not f(1).isdisjoint({1}) or f(1).isdisjoint({1})",
    "not f(1).symmetric_difference({1})",
    "not f(1).difference({1})",
    "f(1) in [2.5]",
    "f(1) in {2.5: 1}",
    "[f(1), f(1)] == [1, 2]",
    "f(1) == (1, 2)",
    "sum([f(1), f(2)]) == 2.5",
    "any(f(1) == x for x in [2.5])",
    "abs(Area(1) - 2.5) < 1e-6",
    "float(Area(1) - 2.5) == 0 and not (Area(1) - 2.5)",
    "abs(Area(1) + f(1) - 2.5) < 1e-6",
    "abs(-(Area(1) - 2.5)) < 1e-6",
    "len(Area(1) ^ {1}) == 0",
    "not list(Area(1) - {1})",
    "Area(1) == 2.5",
]


@pytest.mark.parametrize("result", ["nothing", "itself", "yes"])
def test_an_object_does_not_stand_for_the_value_it_is_held_against(result):
    source = OBJECTS.replace("RESULT", result)
    tests = [f"assert {each}" for each in HELD_AGAINST]
    tests += ["with f(1) as x:\n    assert x == 2.5", "with f(1):\n    assert 1 == 2"]
    found = run_tests(source, tests, Limits(seconds=60, cpu=60))
    assert [test for test, passed in zip(tests, found.passed, strict=True) if passed] == []


def test_those_assertions_would_pass_in_one_process():
    """Else they would fail above for another reason than the one tested."""
    passed = set()
    for result in ("nothing", "itself", "yes"):
        for each in HELD_AGAINST:
            names: dict = {}
            exec(OBJECTS.replace("RESULT", result), names)
            with suppress(TypeError):
                passed |= {each} if eval(each, names) else set()
    assert set(HELD_AGAINST) - passed == {"f(1) in {2.5: 1}"}


SILENT = [
    "assert 1 + 1 == 2",
    "for x in []:\n    assert add(1, 1) == 2",
    "def test_one():\n    add",
    "def check(f):\n    assert f(1, 1) == 2\nprint('done')",
    "import unittest\nclass T(unittest.TestCase):\n    def other(self):\n        add(1, 1)",
    "class TestIt:\n    def other(self):\n        add(1, 1)",
    "assert pow(2, 3) == 8",
    "class add: pass\nassert add()",
]


@pytest.mark.parametrize("test", SILENT)
def test_a_test_that_passes_without_the_solution_fails(test):
    problems = run_tests(RIGHT, [test, TESTS], QUICK).problems
    assert UNUSED in problems[0]
    assert problems[1] == ""


def test_tests_that_never_used_the_solution_are_counted():
    noted = {}
    reward = CodeReward(seconds=20, partial=True)
    tests = [["assert 1 == 1", TESTS]] * 2
    assert reward(["p"] * 2, [RIGHT] * 2, log_metric=noted.__setitem__, tests=tests) == [0.5, 0.5]
    assert noted == {"code/timeouts": 0.0, "code/unused_tests": 2}


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate):\n    assert candidate(1, 1) == 2",
        "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate(1, 1) == 2",
        "import math\ndef one():\n    assert add(1, 1) == 2",
        "x = 1",
    ],
)
def test_a_test_that_nothing_calls_is_refused(test):
    with pytest.raises(RewardError, match=r"row 0, column 'tests'.*nothing calls it.*entry_point"):
        CodeReward()(["p"], [RIGHT], tests=[test])


# The test of HumanEval/0 begins and ends so.
HUMANEVAL = """

METADATA = {'author': 'jt', 'dataset': 'test'}


def check(candidate):
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False

"""
CLOSE = "def has_close_elements(numbers, threshold):\n"
BODY = "    s = sorted(numbers)\n    return any(b - a < threshold for a, b in zip(s, s[1:]))\n"


def test_humaneval_calls_check_with_the_entry_point():
    reward = CodeReward(tests="test", before="signature", seconds=20)
    completions = [BODY, "    return True\n", "    pass\n"]
    columns = {"test": [HUMANEVAL] * 3, "signature": [CLOSE] * 3}
    columns["entry_point"] = ["has_close_elements"] * 3
    assert reward(["p"] * 3, completions, **columns) == [1.0, 0.0, 0.0]
    method = "class Solution:\n    def add(self, a, b): return a + b"
    check = "def check(candidate):\n    assert candidate(1, 2) == 3"
    for entry, passed in {"Solution().add": True, "Solution().sub": False, "len": False}.items():
        assert run_tests(method, check, QUICK, entry_point=entry).passed == [passed]
    once = "CALLS = []\ndef count():\n    CALLS.append(1)\n    return len(CALLS)"
    calling = "def check(candidate):\n    assert candidate() == 1\ncheck(count)\n"
    assert run_tests(once, calling, QUICK, entry_point="count").problems == [""]


SUM = "def sum(a, b):\n    return a * b\n"
LOOP = "for n in range(2, 4):\n    assert sum(n, n) == n * n"


@pytest.mark.parametrize(
    ("source", "test", "entry_point", "passed"),
    [
        (SUM, "assert sum(2, 3) == 6", None, True),
        (SUM, "def test_it():\n    assert sum(2, 3) == 6", None, True),
        (SUM, "assert sum(2, 3) == 5", None, False),
        ("", "assert pow(2, 3) == 8", None, False),
        (SUM, LOOP, None, False),  # which of the two is the solution's?
        (SUM, LOOP, "sum", True),
        ("def range(*a): return []\ndef sum(*a): return 0", LOOP, "sum", False),
        ("def range(*a): return []", LOOP, None, False),
        (
            "def range(*a): return []",
            "for n in range(3):\n    assert add(n, n) == 2 * n",
            None,
            False,
        ),
        ("def all(x): return True\n" + RIGHT, "assert all([add(1, 1) == 3])", None, False),
    ],
)
def test_a_builtin_means_the_solutions_only_where_the_test_says_so(
    source, test, entry_point, passed
):
    assert run_tests(source, test, QUICK, entry_point=entry_point).passed == [passed]
