"""A reward for programs: the share of tests that a completion's code passes, run in a sandbox.

The solution and its tests run in two sandboxes joined by pipes, because a solution that shares a
process with its tests can always make them pass: it ends the process with status 0, replaces the
assertion machinery, or returns an object that equals everything. Here it can only return data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import plain
from reward.sandbox import Job, Limits, check_sandbox, run_python, start, watch

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
    text = plain(completion)
    blocks = [body for name, body in FENCE.findall(text) if name.lower() in PYTHON]
    return blocks[-1] if blocks else text


def run_tests(
    source: str, tests: Tests, limits: Limits | None = None, *, packages: bool = False
) -> CodeResult:
    """Run a solution's tests.

    Args:
        source: the solution's Python.
        tests: Python with assertions that use the solution's names, or an input and the output
            that is expected for it; one or several.
        limits: of each of the two processes, and on the time of them all.
        packages: whether they may import what is installed beside Align.

    Raises:
        RewardError: there are no tests, or this machine cannot lock programs in.
    """
    several = [tests] if isinstance(tests, str | Mapping) else list(tests)
    if not several or any(isinstance(test, str) and not test.strip() for test in several):
        raise RewardError("there is no test to run: an empty one would pass anything.")
    limits = limits or Limits()
    if all(isinstance(test, str) for test in several):
        return _run_assertions(source, [str(test) for test in several], limits, packages)
    if not all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in several):
        raise RewardError(
            "tests are either all Python text or all {'input': ..., 'output': ...}; got "
            f"{str(several)[:120]}."
        )
    results = [_run_program(source, dict(test), limits, packages) for test in several]  # type: ignore[arg-type]
    problems = [problem for problem, _ in results]
    late = any(timeout for _, timeout in results)
    return CodeResult([not p for p in problems], problems, "timeout" if late else "ran")


def _run_assertions(source: str, tests: list[str], limits: Limits, packages: bool) -> CodeResult:
    to_solution, to_tests = os.pipe(), os.pipe()
    with (
        os.fdopen(to_solution[0], "rb") as requests,
        os.fdopen(to_solution[1], "wb") as ask,
        os.fdopen(to_tests[0], "rb") as replies,
        os.fdopen(to_tests[1], "wb") as reply,
        start(
            ["/box/main.py"],
            {"main.py": _program("solution_side"), "solution.py": source},
            limits,
            packages=packages,
            stdin=requests,
            stdout=reply,
        ) as solution,
        start(
            ["/box/main.py"],
            {"main.py": _program("test_side"), "tests.json": json.dumps(tests)},
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


def _program(name: str) -> str:
    """One side's text with what both share: inside there is no package to import from."""
    folder = Path(__file__).parent
    wire = (folder / "wire.py").read_text(encoding="utf-8")
    side = (folder / f"{name}.py").read_text(encoding="utf-8")
    return wire + "\n" + re.sub(r"^from reward\.verify\.wire .*$", "", side, flags=re.MULTILINE)


class CodeReward:
    """1.0 where a completion's code passes all its tests, else 0.0 (or the share it passes)."""

    def __init__(
        self,
        *,
        tests: str = "tests",
        before: str | None = None,
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
            partial: return the share of tests passed instead of all or nothing.
            seconds: for a solution and its tests together.
            memory: bytes of address space of a process.
            processes: and threads, at once.
            packages: whether code may import what is installed beside Align.
            workers: solutions run at once; default: the processors that this process may use.
            name: in metrics and errors.

        Raises:
            RewardError: this machine cannot lock programs in.
        """
        check_sandbox()
        self.tests, self.before, self.partial, self.packages = tests, before, partial, packages
        cpu = max(1, round(seconds))
        self.limits = Limits(seconds=seconds, cpu=cpu, memory=memory, processes=processes)
        self.workers = workers or len(os.sched_getaffinity(0))
        self.__name__ = name

    def results(
        self, completions: Sequence[Text], tests: Sequence[Tests], before: Sequence[str]
    ) -> list[CodeResult]:
        """Each completion's own results.

        Raises:
            RewardError: a row has no tests, or this machine cannot lock programs in.
        """

        def one(row: int) -> CodeResult:
            source = before[row] + extract_code(completions[row])
            try:
                return run_tests(source, tests[row], self.limits, packages=self.packages)
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
        results = self.results(completions, columns[self.tests], before)
        if log_metric is not None and results:
            late = sum(result.ended == "timeout" for result in results)
            log_metric(f"{self.__name__}/timeouts", late / len(results))
        if self.partial:
            return [result.share for result in results]
        return [float(all(result.passed)) for result in results]
