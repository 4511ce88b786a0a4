"""Sets of graded answers as arrays over pairs, and intervals that keep prompts together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.errors import DataError
from align.evaluate.reward_sets import AnswerSet
from align.evaluate.significance import CHUNK
from reward.ranking_metrics import graded_pairs
from reward.statistics import Interval, check_level


@dataclass(frozen=True)
class Pairs:
    """Every better answer beside every worse one of its set: n pairs of S sets."""

    index: np.ndarray  # (n,) which set
    better: np.ndarray  # (n,) which answer of it
    worse: np.ndarray  # (n,)
    weights: np.ndarray  # (S,)
    prompts: list[str]  # S
    categories: list[str]  # S

    def __len__(self) -> int:
        return len(self.index)

    def margins(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Better less worse of some value per answer, (n,); `values` has (K,) for each set."""
        rows = zip(self.index, self.better, self.worse, strict=True)
        return np.array([values[i][b] - values[i][w] for i, b, w in rows])

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means over the pairs of each set, (S,), so that a set counts once."""
        return np.bincount(self.index, weights=values) / np.bincount(self.index)

    def of(self, category: str) -> np.ndarray:
        """The sets of a category, (S',) indices."""
        return np.flatnonzero([name == category for name in self.categories])

    @property
    def names(self) -> list[str]:
        """The categories, first seen first; none where no row names one."""
        found = list(dict.fromkeys(self.categories))
        return [] if found == [""] else found


def make_pairs(sets: Sequence[AnswerSet]) -> Pairs:
    """The pairs of sets that all say something.

    Raises:
        DataError: all weights are 0.
    """
    found = [(row, i, j) for row, one in enumerate(sets) for i, j in graded_pairs(one.grades)]
    index, better, worse = np.array(found).T
    pairs = Pairs(
        index,
        better,
        worse,
        np.array([one.weight for one in sets]),
        [json.dumps(one.prompt, sort_keys=True) for one in sets],
        [one.category for one in sets],
    )
    for name in pairs.names or [""]:
        if not pairs.weights[pairs.of(name)].sum() > 0:
            where = f" of the category {name!r}" if name else ""
            raise DataError(f"all rows{where} have the weight 0. Fix: leave them out.")
    return pairs


def decided_rows(sets: Sequence[AnswerSet], scores: Sequence[np.ndarray]) -> list[int]:
    """Rows of the sets that say something.

    Raises:
        DataError: there are none, or the scores are not one per answer.
    """
    if len(sets) != len(scores):
        raise DataError(f"{len(sets)} sets came with scores for {len(scores)}.")
    for row, (one, found) in enumerate(zip(sets, scores, strict=True)):
        if len(one.answers) != len(found):
            raise DataError(f"set {row} has {len(one.answers)} answers and {len(found)} scores.")
    kept = [row for row, one in enumerate(sets) if one.decided]
    if not kept:
        raise DataError("no set says that one answer is better than another.")
    return kept


def prompt_sums(
    values: np.ndarray, weights: np.ndarray, prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Per prompt the sum of weight times value, and the sum of weights; each (P,)."""
    codes: dict[str, int] = {}
    labels = [codes.setdefault(prompt, len(codes)) for prompt in prompts]
    return np.bincount(labels, weights=weights * values), np.bincount(labels, weights=weights)


def macro_interval(
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over categories of their ratios, with a bootstrap over prompts within each category.

    Args:
        parts: for each category the sums of `prompt_sums`.
        level: confidence level.
        resamples: bootstrap samples.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    value = 0.0
    for above, below in parts:
        value += float(above.sum() / below.sum()) / len(parts)
        step = max(1, CHUNK // len(above))
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            drawn = generator.integers(0, len(above), size=(size, len(above)))
            weight = below[drawn].sum(axis=1)
            # A draw of weightless prompts only has no ratio; the category's own stands in.
            ratio = np.divide(
                above[drawn].sum(axis=1), weight, where=weight > 0,
                out=np.full(size, above.sum() / below.sum()),
            )  # fmt: skip
            means[start : start + size] += ratio / len(parts)
    tail = (1 - check_level(level)) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value, float(low), float(high), sum(len(above) for above, _ in parts), level)
