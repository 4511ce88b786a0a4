"""A reward for mathematics: is the completion's final answer the row's?

Numbers are compared exactly, as fractions. What is no plain number goes to `math-verify`
(an optional package) in a process of its own, because algebra can take for ever and cannot be
interrupted in a thread; without that package only numbers and equal texts count.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import regex

from feedback.schema import Text
from reward.errors import MissingDependencyError, RewardError
from reward.functions import plain

INSTALL = "pip install 'align-rlhf[rewards]'"
WORKER = Path(__file__).with_name("math_worker.py")
START_SECONDS = 120.0  # importing sympy on a busy machine
NUMBER = regex.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:\s?/\s?\d+)?")
FRACTION = regex.compile(r"([-+]?)\s*\\[dt]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?")
HASHES = regex.compile(r"####\s*(.+)")
WORDS = regex.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}")
DRESS = regex.compile(r"\\(?:text|mathrm|mbox)\{[^{}]*\}|\\[,;!: ]|\\left|\\right|[$€£\\]|\s")


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, braces matched; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for place in range(begin, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth < 0:
                return text[begin:place].strip()
    return None


def hashes(text: str) -> str | None:
    """What follows the last `####`, as GSM8K ends its answers; None without one."""
    found = HASHES.findall(text)
    return found[-1].strip() if found else None


def last_number(text: str) -> str | None:
    """The last number in a text; None without one."""
    found = [match.group() for match in NUMBER.finditer(text) if match.group()]
    return found[-1] if found else None


def final_answer(text: str, *, strict: bool = False) -> str | None:
    r"""The answer that a solution comes to: boxed, after `####`, or the last number.

    Args:
        text: the solution.
        strict: take a boxed or marked answer only, not any last number.
    """
    marked = boxed(text) or hashes(text)
    return marked if marked or strict else last_number(text)


def as_number(answer: str) -> Fraction | None:
    r"""A plain number, exactly: 1,234.50, 3/4, \frac{3}{4}, $5, 20% (as 20); None if it is none."""
    fraction = FRACTION.fullmatch(answer.strip().strip("$ "))
    if fraction:
        sign, above, below = fraction.groups()
        answer = f"{sign}{above}/{below}"
    bare = DRESS.sub("", answer).rstrip(".%")
    if not NUMBER.fullmatch(bare) or len(bare) > 1000:
        return None
    try:
        above, _, below = bare.replace(",", "").partition("/")
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None


def same_answer(found: str, expected: str) -> bool | None:
    """Whether two answers are one number or one text; None where algebra would have to say."""
    first, second = as_number(found), as_number(expected)
    if first is not None and second is not None:
        return first == second
    return True if _undressed(found) == _undressed(expected) else None


def _undressed(answer: str) -> str:
    """An answer as text: words kept, typesetting and blanks gone."""
    return DRESS.sub("", WORDS.sub(r"\1", answer)).lower()


class MathReward:
    r"""1.0 where the final answer is right, else 0.0.

    The answer is looked for in `\boxed{}`, after `####`, and is otherwise the last number.
    """

    def __init__(
        self,
        *,
        column: str = "answer",
        parser: Literal["auto", "math-verify", "numeric"] = "auto",
        strict: bool = False,
        seconds: float = 5.0,
        name: str = "math",
    ):
        """Set up; nothing starts before an answer needs algebra.

        Args:
            column: with the right answers, bare or at the end of a worked solution.
            parser: `numeric` compares numbers and texts only, `math-verify` algebra too; `auto`
                takes what is installed.
            strict: only boxed and marked answers count.
            seconds: for one comparison by `math-verify`; one that takes longer counts as wrong.
            name: in metrics and errors.

        Raises:
            MissingDependencyError: `math-verify` was asked for and is not installed.
        """
        installed = importlib.util.find_spec("math_verify") is not None
        if parser == "math-verify" and not installed:
            raise MissingDependencyError(
                f"reward {name!r}: math-verify is not installed. {INSTALL}"
            )
        self.parser = "math-verify" if installed and parser != "numeric" else "numeric"
        self.column, self.strict, self.seconds, self.__name__ = column, strict, seconds, name
        self._algebra: Algebra | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float per completion; the share without any answer goes to `log_metric`.

        Raises:
            RewardError: the column is missing, or holds no answer in some row.
        """
        if self.column not in columns:
            raise RewardError(
                f"reward {self.__name__!r} needs the column {self.column!r}; the data have "
                f"{', '.join(sorted(columns)) or 'none'}."
            )
        rewards, silent = [], 0
        for row, (text, truth) in enumerate(zip(completions, columns[self.column], strict=True)):
            expected = boxed(str(truth)) or hashes(str(truth)) or str(truth).strip()
            if not expected:
                raise RewardError(f"row {row}: the column {self.column!r} holds no answer.")
            answer = final_answer(plain(text), strict=self.strict)
            silent += answer is None
            rewards.append(float(answer is not None and self.same(answer, expected)))
        if log_metric is not None and rewards:
            log_metric(f"{self.__name__}/no_answer", silent / len(rewards))
        return rewards

    def same(self, found: str, expected: str) -> bool:
        """Whether two answers are the same."""
        verdict = same_answer(found, expected)
        if verdict is not None:
            return verdict
        if self.parser == "numeric" or max(len(found), len(expected)) > 1000:
            return False
        with self._lock:  # one worker, asked by one thread at a time
            if self._algebra is None:
                self._algebra = Algebra(self.seconds)
            return self._algebra.same(found, expected)


class Algebra:
    """`math-verify` in a process that is ended, and started anew, when it takes too long."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None

    def same(self, found: str, expected: str) -> bool:
        """Whether two LaTeX expressions are equal; False if that takes too long.

        Raises:
            RewardError: the process does not start.
        """
        process = self.process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([expected, found]).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            self.close()
            return False
        answer = self._line(process, self.seconds)
        if not answer:
            self.close()
        return answer == b"1"

    def _start(self) -> subprocess.Popen[bytes]:
        self.process = process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._line(process, START_SECONDS) != b"ready":
            self.close()
            raise RewardError("math-verify does not start: import math_verify by hand to see why.")
        return process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """Its next line; empty if none comes in time."""
        assert process.stdout is not None
        line, deadline = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                piece = os.read(process.stdout.fileno(), 64)
                if not piece:
                    return b""
                line += piece
        return line.strip()

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            self.process = None

    def __enter__(self) -> Algebra:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def math_answer(
    prompts: Sequence[Text], completions: Sequence[Text], answer: Sequence[str], **columns: Any
) -> list[float]:
    """`MathReward` with its defaults, as a plain function that reads the column `answer`."""
    return _DEFAULT(list(prompts), list(completions), answer=answer)


_DEFAULT = MathReward()
