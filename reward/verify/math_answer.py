"""A reward for mathematics: is the completion's final answer the row's?

Numbers are compared exactly, as fractions. What is no plain number goes to `math-verify`
(an optional package) in a process of its own, because algebra can take for ever and cannot be
interrupted in a thread; without that package only numbers and equal texts count.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

import regex

from feedback.schema import Text
from reward.errors import MissingDependencyError, RewardError
from reward.functions import final
from reward.verify.worker import Worker

INSTALL = "pip install 'align-rlhf[rewards]'"
NUMBER = regex.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:\s?/\s?\d+)?")
MIXED = regex.compile(r"([-+]?)(\d{1,9}) ([1-9]\d{0,8}) ?/ ?([1-9]\d{0,8})")  # 1 1/2
LAST = regex.compile(r"[-+]?(?<![\d.,/])\d{1,3} [1-9]\d?/[1-9]\d?(?!\d|[/.]\d)|" + NUMBER.pattern)
FRACTION = regex.compile(r"\\[dt]?frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?")
HASHES = regex.compile(r"####\s*(.+)")
WORDS = regex.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}")
DRESS = regex.compile(r"\\(?:text|mathrm|mbox)\{[^{}]*\}|\\[,;: ]|\\left|\\right|[$€£\\~]|\s+")
GROUPS = regex.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?! ?[\d/])")  # 12 345; not 1 100/200
IDLE = regex.compile(r"(?<!\d)\s+|\s+(?!\d)")  # blanks that part no two numbers


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
    found = [match.group() for match in LAST.finditer(text) if match.group()]
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
    r"""A plain number, exactly: 1,234.50, 12 345, 3/4, 1 1/2, \frac{3}{4}, $5, 20% (as 20).

    None if it is none. Two numbers beside each other are none.
    """
    bare = _bare(FRACTION.sub(r" \1/\2 ", answer)).rstrip(".% ")
    bare = GROUPS.sub(lambda match: match[0].replace(" ", ""), bare)
    if len(bare) > 1000:
        return None
    mixed = MIXED.fullmatch(bare)
    if mixed:
        sign, whole, above, below = mixed.groups()
        value = int(whole) + Fraction(int(above), int(below))
        # 1 3/2 is as likely a product
        return (-value if sign == "-" else value) if int(above) < int(below) else None
    if not NUMBER.fullmatch(bare):
        return None
    try:
        above, _, below = bare.replace(",", "").partition("/")
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _bare(text: str) -> str:
    """A text without typesetting, and without blanks but those between two numbers."""
    return IDLE.sub("", DRESS.sub(" ", text.replace("\\!", "")))


def same_answer(found: str, expected: str) -> bool | None:
    """Whether two answers are one number or one text; None where algebra would have to say."""
    first, second = as_number(found), as_number(expected)
    if first is not None and second is not None:
        return first == second
    return True if _undressed(found) == _undressed(expected) else None


def _undressed(answer: str) -> str:
    """An answer as text: words kept, typesetting gone."""
    return _bare(WORDS.sub(r"\1", answer)).lower()


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
        self._algebra = Worker("algebra", seconds)

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
            answer = final_answer(final(text), strict=self.strict)
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
        return self._algebra.ask(expected, found) is True


def math_answer(
    prompts: Sequence[Text], completions: Sequence[Text], answer: Sequence[str], **columns: Any
) -> list[float]:
    """`MathReward` with its defaults, as a plain function that reads the column `answer`."""
    return _DEFAULT(list(prompts), list(completions), answer=answer)


_DEFAULT = MathReward()
