"""Two rewards on the same rows: how much more often one is right, and whether that is chance.

Prompts are the independent units: gains are summed per prompt before they are resampled or their
signs exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from align.evaluate.reward_pairs import Pairs, decided_rows, make_pairs, prompt_sums
from align.evaluate.reward_sets import AnswerSet
from align.evaluate.significance import (
    difference_interval,
    holm,
    mcnemar_test,
    permutation_test,
)
from reward.metrics import correctness
from reward.statistics import Interval


@dataclass(frozen=True)
class Ahead:
    """How much more often the first of two rewards is right."""

    name: str  # of the category; "" for all rows
    difference: Interval  # of weighted accuracies, over prompts
    p_value: float  # permutation test over prompts
    p_adjusted: float  # after Holm over the categories


@dataclass(frozen=True)
class RewardComparison:
    """Two rewards on the same rows."""

    first: str
    second: str
    overall: Ahead
    mcnemar_p: float  # over pairs; right where every pair has a prompt of its own
    only_first: int  # pairs that only the first gets right
    only_second: int
    categories: list[Ahead]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare_rewards(
    sets: Sequence[AnswerSet],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    names: tuple[str, str] = ("first", "second"),
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> RewardComparison:
    """Compare the accuracies of two rewards.

    Args:
        sets: labelled answers; those graded alike are left out.
        first: (K,) scores for each set.
        second: of the other reward.
        names: of the two.
        level: confidence level.
        resamples: of the permutation.
        seed: of it.

    Raises:
        DataError: numbers that differ, or no set says that an answer is better.
    """
    kept = decided_rows(sets, first)
    decided_rows(sets, second)
    pairs = make_pairs([sets[row] for row in kept])
    one, two = (
        correctness(pairs.margins([np.asarray(found[row], float) for row in kept]))
        for found in (first, second)
    )
    settings = (level, resamples, seed)
    gains = pairs.means(one - two)
    parts = [_ahead(name, pairs.of(name), pairs, gains, *settings) for name in pairs.names]
    adjusted = holm([part.p_value for part in parts]) if parts else []
    sure = [[bool(value) for value in side == 1] for side in (one, two)]
    return RewardComparison(
        first=names[0],
        second=names[1],
        overall=_ahead("", np.arange(len(gains)), pairs, gains, *settings),
        mcnemar_p=mcnemar_test(sure[0], sure[1]),
        only_first=int(((one == 1) & (two != 1)).sum()),
        only_second=int(((two == 1) & (one != 1)).sum()),
        categories=[replace(part, p_adjusted=p) for part, p in zip(parts, adjusted, strict=True)],
    )


def _ahead(
    name: str,
    inside: np.ndarray,
    pairs: Pairs,
    gains: np.ndarray,
    level: float,
    resamples: int,
    seed: int,
) -> Ahead:
    prompts = [pairs.prompts[row] for row in inside]
    above, below = prompt_sums(gains[inside], pairs.weights[inside], prompts)
    p_value = permutation_test(above, resamples, seed)
    interval = difference_interval(above, below, level)
    return Ahead(name, interval, p_value, p_value)
