"""A reward for programs: the share of tests that a completion's code passes, run in a sandbox.

The solution and its tests run in two sandboxes joined by pipes, because a solution that shares a
process with its tests can always make them pass: it ends the process with status 0, replaces the
assertion machinery, or returns an object that equals everything. Here it can only return data, and
what a test compares or computes with plain data of its own has to be data.
"""

from __future__ import annotations

import ast
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import final
from reward.sandbox import Job, Limits, check_sandbox, run_python, start, watch
from reward.verify.test_side import UNUSED

Test = str | Mapping[str, str]  # Python with assertions, or {"input": ..., "output": ...}
Tests = Test | Sequence[Test]
FENCE = re.compile(r"```[ \t]*(\w*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
PYTHON = ("", "python", "py", "python3")


@dataclass
class CodeResult:
    """How a solution fared."""

    passed: list[bool]  # one per test
    problems: list[str]  # why not; "" where it passed
    ended: Literal["ran", "timeout"] = "ran"

    @property
    def share(self) -> float:
        """Share of tests passed."""
        return sum(self.passed) / len(self.passed)


def extract_code(completion: Text) -> str:
    """The last fenced Python block of a completion; all of it without one."""
    text = final(completion)
    blocks = [body for name, body in FENCE.findall(text) if name.lower() in PYTHON]
    return blocks[-1] if blocks else text


def run_tests(
    source: str,
    tests: Tests,
    limits: Limits | None = None,
    *,
    packages: bool = False,
    entry_point: str | None = None,
    partial: bool = True,
) -> CodeResult:
    """Run a solution's tests.

    Args:
        source: the solution's Python.
        tests: Python with assertions that use the solution's names, or an input and the output
            that is expected for it; one or several.
        limits: of each process, and on the time of them all.
        packages: whether they may import what is installed beside Align.
        entry_point: the function under test; a test that only defines `check(candidate)`, as
            HumanEval's do, is called with it.
        partial: go on to the next input after an output that is wrong.

    Raises:
        RewardError: there are no tests, nothing calls them, or programs cannot be locked in here.
    """
    several = [tests] if isinstance(tests, str | Mapping) else list(tests)
    if not several or any(isinstance(test, str) and not test.strip() for test in several):
        raise RewardError("there is no test to run: an empty one would pass anything.")
    limits = limits or Limits()
    if all(isinstance(test, str) for test in several):
        texts = [str(test) for test in several]
        for text in texts:
            _check_test(text, entry_point)
        return _run_assertions(source, texts, entry_point, limits, packages)
    if not all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in several):
        raise RewardError(
            "tests are either all Python text or all {'input': ..., 'output': ...}; got "
            f"{str(several)[:120]}."
        )
    cases = [dict(test) for test in several]  # type: ignore[arg-type]
    return _run_programs(source, cases, limits, packages, partial)


def _check_test(test: str, entry_point: str | None) -> None:
    """Refuse a test that passes whatever the solution is, because nothing in it is ever called."""
    try:
        body = ast.parse(test).body
    except SyntaxError:
        return  # it fails, and says so
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = [node for node in body if isinstance(node, defining)]
    for node in body:
        if node in defined and not getattr(node, "decorator_list", None):
            continue
        if any(isinstance(part, ast.Assert | ast.Call | ast.Raise) for part in ast.walk(node)):
            return
    names = [node.name for node in defined]
    if any(name.startswith(("test", "Test")) for name in names):
        return
    if any(isinstance(node, ast.ClassDef) and node.bases for node in defined):
        return  # unittest's, by whatever name
    if "check" not in names or not entry_point:
        raise RewardError(
            f"a test only defines {', '.join(names) or 'nothing'}, and nothing calls it: it would "
            "pass anything. Fix: name functions test_...; for check(candidate), as HumanEval has "
            "it, give the column entry_point with the name of the function to check."
        )


def _run_assertions(
    source: str, tests: list[str], entry_point: str | None, limits: Limits, packages: bool
) -> CodeResult:
    asked = json.dumps({"tests": tests, "entry_point": entry_point})
    to_solution, to_tests = os.pipe(), os.pipe()
    with (
        os.fdopen(to_solution[0], "rb") as requests,
        os.fdopen(to_solution[1], "wb") as ask,
        os.fdopen(to_tests[0], "rb") as replies,
        os.fdopen(to_tests[1], "wb") as reply,
        start(
            ["/box/main.py"],
            {"main.py": _program("wire", "solution_side"), "solution.py": source},
            limits,
            packages=packages,
            stdin=requests,
            stdout=reply,
        ) as solution,
        start(
            ["/box/main.py"],
            {"main.py": _program("wire", "remote", "test_side"), "tests.json": asked},
            limits,
            packages=packages,
            stdin=replies,
            stdout=ask,
        ) as judge,
    ):
        for pipe in (requests, ask, replies, reply):
            pipe.close()  # so that either side hears the other's end
        watch([solution, judge], judge)
        return _verdict(solution, judge, len(tests))


def _verdict(solution: Job, judge: Job, count: int) -> CodeResult:
    """What the tests' process said; anything but its whole verdict is a failure."""
    told, other = judge.finished(), solution.finished()
    late = "timeout" in (told.ended, other.ended)
    try:
        problems = [str(problem) for problem in json.loads(told.errors)]
    except ValueError:
        problems = []
    if told.ended != "exit" or len(problems) != count:
        what = {"timeout": "the tests did not end in time", "output": "printed too much"}
        cause = what.get(other.ended if other.ended in what else told.ended)
        problems = [cause or f"the tests' process failed: {told.errors[-500:]}"] * count
    return CodeResult([p == "" for p in problems], problems, "timeout" if late else "ran")


def _run_programs(
    source: str, cases: list[dict[str, str]], limits: Limits, packages: bool, partial: bool
) -> CodeResult:
    """One run for each input, all within the time of `limits`."""
    deadline = time.monotonic() + limits.seconds
    problems: list[str] = []
    late = False
    for case in cases:
        left = deadline - time.monotonic()
        if any(problems) and not partial:
            problems.append("not run: an earlier test failed")
        elif left <= 0:
            problems.append("not run: the time was up")
            late = True
        else:
            within = replace(limits, seconds=left)
            problem, timeout = _run_program(source, case, within, packages)
            problems.append(problem)
            late = late or timeout
    return CodeResult([not p for p in problems], problems, "timeout" if late else "ran")


def _run_program(
    source: str, test: dict[str, str], limits: Limits, packages: bool
) -> tuple[str, bool]:
    """Why a program's output is not the expected one ("" if it is), and whether it was late."""
    done = run_python(source, str(test["input"]), limits, packages=packages)
    if not done.ok:
        why = done.errors.strip().splitlines()[-1:] or [f"{done.ended} {done.code}"]
        return f"{done.ended}: {why[0]}", done.ended == "timeout"
    if _lines(done.output) != _lines(str(test["output"])):
        return f"printed {done.output[:200]!r}", False
    return "", False


def _lines(text: str) -> list[str]:
    """Lines without the blanks at their ends and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _program(*names: str) -> str:
    """Modules of this folder as one text: inside there is no package to import from."""
    texts = [Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in names]
    return re.sub(r"^from reward\.verify\..*$", "", "\n".join(texts), flags=re.MULTILINE)


class CodeReward:
    """1.0 where a completion's code passes all its tests, else 0.0 (or the share it passes)."""

    def __init__(
        self,
        *,
        tests: str = "tests",
        before: str | None = None,
        entry_point: str = "entry_point",
        partial: bool = False,
        seconds: float = 10.0,
        memory: int = 512 << 20,
        processes: int = 8,
        packages: bool = False,
        workers: int | None = None,
        name: str = "code",
    ):
        """Check that programs can be locked in here.

        Args:
            tests: the column with each row's tests, see `run_tests`.
            before: a column with text that the completion continues, such as a signature.
            entry_point: the column that names the function under test, where the data have it;
                HumanEval's `check(candidate)` is called with that function.
            partial: return the share of tests passed instead of all or nothing.
            seconds: for a solution and all its tests together.
            memory: bytes of address space of a process.
            processes: and threads, at once.
            packages: whether code may import what is installed beside Align.
            workers: solutions run at once; default: the processors that this process may use.
            name: in metrics and errors.

        Raises:
            RewardError: this machine cannot lock programs in.
        """
        check_sandbox()
        self.tests, self.before, self.entry_point = tests, before, entry_point
        self.partial, self.packages = partial, packages
        cpu = max(1, round(seconds))
        self.limits = Limits(seconds=seconds, cpu=cpu, memory=memory, processes=processes)
        self.workers = workers or len(os.sched_getaffinity(0))
        self.__name__ = name

    def results(
        self,
        completions: Sequence[Text],
        tests: Sequence[Tests],
        before: Sequence[str],
        entry_points: Sequence[str | None] | None = None,
    ) -> list[CodeResult]:
        """Each completion's own results.

        Raises:
            RewardError: a row has no tests, or this machine cannot lock programs in.
        """

        def one(row: int) -> CodeResult:
            source = before[row] + extract_code(completions[row])
            try:
                return run_tests(
                    source,
                    tests[row],
                    self.limits,
                    packages=self.packages,
                    entry_point=entry_points[row] if entry_points else None,
                    partial=self.partial,
                )
            except RewardError as error:
                raise RewardError(f"row {row}, column {self.tests!r}: {error}") from error

        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(one, range(len(completions))))

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float in [0, 1] per completion.

        Raises:
            RewardError: a column is missing, see also `results`.
        """
        wanted = [self.tests] + ([self.before] if self.before else [])
        for name in wanted:
            if name not in columns:
                raise RewardError(
                    f"reward {self.__name__!r} needs the column {name!r}; the data have "
                    f"{', '.join(sorted(columns)) or 'none'}."
                )
        before = columns[self.before] if self.before else [""] * len(completions)
        results = self.results(
            completions, columns[self.tests], before, columns.get(self.entry_point)
        )
        if log_metric is not None and results:
            late = sum(result.ended == "timeout" for result in results)
            log_metric(f"{self.__name__}/timeouts", late / len(results))
            unused = sum(UNUSED in problem for result in results for problem in result.problems)
            if unused:
                log_metric(f"{self.__name__}/unused_tests", unused)
        if self.partial:
            return [result.share for result in results]
        return [float(all(result.passed)) for result in results]
