"""A prompt with graded answers, and rated answers brought together by prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    """One answer with its grades, to be compared with others to the same prompt."""

    prompt: Text
    answer: Text
    scores: Mapping[str, float]  # by aspect
    category: str = ""
    weight: float = 1.0
    columns: Mapping[str, Any] = field(default_factory=dict)

    def about(self, category: str, weight: float, columns: Mapping[str, Any]) -> Rated:
        """The same with what its row says beside the answer."""
        return replace(self, category=category, weight=weight, columns=columns)


def gather_rated(rows: Iterable[Rated]) -> list[AnswerSet]:
    """One set per prompt and category with two answers or more; the first row's columns count.

    Prompts are the same where every character is: a system message, case and spaces count. An
    answer that is rated more than once has the mean of its ratings, aspect by aspect.
    """
    groups: dict[tuple[str, str], list[Rated]] = {}
    for row in rows:
        groups.setdefault((_key(row.prompt), row.category), []).append(row)
    sets = []
    for group in groups.values():
        given: dict[str, dict[str, list[float]]] = {}
        texts: dict[str, Text] = {}
        for row in group:
            key = _key(row.answer)
            texts.setdefault(key, row.answer)
            for aspect, score in row.scores.items():
                given.setdefault(key, {}).setdefault(aspect, []).append(score)
        if len(texts) < 2:
            continue
        first = group[0]
        means = [{name: sum(v) / len(v) for name, v in given[key].items()} for key in texts]
        sets.append(
            AnswerSet(
                first.prompt,
                tuple(texts.values()),
                grades_of(means),
                first.category,
                sum(row.weight for row in group) / len(group),
                columns=first.columns,
            )
        )
    return sets


def grades_of(scores: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
    """One grade per answer: the mean of the aspects that all the answers have.

    An answer that was not rated on its weak side would win otherwise. Without a common aspect the
    answers do not compare: they are graded alike.
    """
    common = sorted(set.intersection(*(set(one) for one in scores)))
    return tuple(sum(one[name] for name in common) / max(1, len(common)) for one in scores)


def aspects_of(value: Any, name: str) -> dict[str, float]:
    """Scores by aspect; a number alone is one aspect, named score.

    Raises:
        RowProblem: it holds no finite number.
    """
    given = value if isinstance(value, Mapping) else {"score": value}
    found = {str(key): single(one, name) for key, one in given.items() if one is not None}
    return found or {"score": single(None, name)}


def single(value: Any, name: str) -> float:
    """A grade: a finite number, true or false.

    Raises:
        RowProblem: it is neither.
    """
    try:
        number = float({"true": 1.0, "false": 0.0}.get(str(value).lower(), value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowProblem(f"{name} is no number", f"{value!r}; expected a finite number")
    return number


def _key(text: Text) -> str:
    return json.dumps(text, sort_keys=True, ensure_ascii=False)
