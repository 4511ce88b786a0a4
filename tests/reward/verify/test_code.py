"""Programs scored by their tests, run for real in the sandbox."""

from __future__ import annotations

import pytest

from reward.errors import RewardError
from reward.functions import call_reward
from reward.sandbox import Limits, run_python
from reward.verify import code
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


def test_inputs_share_one_limit_of_time(monkeypatch):
    """Counted in programs and in what each was given, not by a clock."""
    given = []

    def run(source, stdin, limits, *, packages):
        given.append(limits.seconds)
        return run_python(source, stdin, limits, packages=packages)

    monkeypatch.setattr(code, "run_python", run)
    cases = [{"input": str(n), "output": str(n)} for n in range(5)]
    assert run_tests("print(input())", cases, Limits(seconds=60)).passed == [True] * 5
    assert given == sorted(set(given), reverse=True)
    assert given[0] <= 60
    given.clear()
    late = run_tests("while True: pass", cases, Limits(seconds=1))
    assert late.problems == ["timeout: timeout 9"] + ["not run: the time was up"] * 4
    assert (late.ended, late.share, len(given)) == ("timeout", 0.0, 1)


def test_an_input_that_failed_is_the_last_unless_shares_are_wanted():
    cases = [{"input": str(n), "output": str(n)} for n in (1, 2, 3)]
    source = "n = input()\nprint(n if n != '2' else 'no')"
    stopped = run_tests(source, cases, QUICK, partial=False)
    assert stopped.passed == [True, False, False]
    assert stopped.problems[2] == "not run: an earlier test failed"
    tests = [cases]
    assert CodeReward(seconds=20)(["p"], [source], tests=tests) == [0.0]
    assert CodeReward(seconds=20, partial=True)(["p"], [source], tests=tests) == [2 / 3]


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
