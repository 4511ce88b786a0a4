"""A prompt with graded answers, and rated answers brought together by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from align.data.rows import prompt_key
from feedback.dialogue import RowProblem
from feedback.schema import Text
from reward.preferences import TIE


@dataclass(frozen=True)
class AnswerSet:
    """K answers to one prompt with grades: higher is better, equal grades are not compared."""

    prompt: Text
    answers: tuple[Text, ...]  # K
    grades: tuple[float, ...]  # K
    category: str = ""
    weight: float = 1.0
    soft: float | None = None  # of two answers: P(the first is better)
    columns: Mapping[str, Any] = field(default_factory=dict)  # for the reward function

    @property
    def decided(self) -> bool:
        """Whether some answer is better than another."""
        return max(self.grades) - min(self.grades) > 2 * TIE

    def about(self, category: str, weight: float, columns: Mapping[str, Any]) -> AnswerSet:
        """The same with what its row says beside the answers."""
        return replace(self, category=category, weight=weight, columns=columns)


@dataclass(frozen=True)
class Rated:
    """One answer with its grade, to be compared with others to the same prompt."""

    prompt: Text
    answer: Text
    grade: float
    category: str = ""
    weight: float = 1.0
    columns: Mapping[str, Any] = field(default_factory=dict)

    def about(self, category: str, weight: float, columns: Mapping[str, Any]) -> Rated:
        """The same with what its row says beside the answer."""
        return replace(self, category=category, weight=weight, columns=columns)


def gather_rated(rows: Iterable[Rated]) -> list[AnswerSet]:
    """One set per prompt and category with two answers or more; the first row's columns count.

    An answer that is rated more than once has the mean of its ratings.
    """
    groups: dict[tuple[str, str], list[Rated]] = {}
    for row in rows:
        groups.setdefault((prompt_key(row.prompt), row.category), []).append(row)
    sets = []
    for group in groups.values():
        grades: dict[str, list[float]] = {}
        texts: dict[str, Text] = {}
        for row in group:
            key = repr(row.answer)
            texts.setdefault(key, row.answer)
            grades.setdefault(key, []).append(row.grade)
        if len(texts) < 2:
            continue
        first = group[0]
        sets.append(
            AnswerSet(
                first.prompt,
                tuple(texts.values()),
                tuple(sum(found) / len(found) for found in grades.values()),
                first.category,
                sum(row.weight for row in group) / len(group),
                columns=first.columns,
            )
        )
    return sets


def single(value: Any, name: str) -> float:
    """A grade: a finite number, true or false, or the mean of several aspects.

    Raises:
        RowProblem: it is none of these.
    """
    if isinstance(value, Mapping):
        found = [single(one, name) for one in value.values() if one is not None]
        if found:
            return sum(found) / len(found)
    try:
        number = float({"true": 1.0, "false": 0.0}.get(str(value).lower(), value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowProblem(f"{name} is no number", f"{value!r}; expected a finite number")
    return number
