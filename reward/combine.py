"""Several rewards as one number: weights that move, scales that are made alike, limits.

Pure functions and small values; `align.ppo.rewards` calls the functions and logs. A `None` is a
reward that does not apply to a completion: it is left out of the sum and of the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from reward.errors import RewardError

Values = Sequence[float | None]
Reduce = Callable[[Tensor], Tensor]
Normalise = Literal["none", "running", "group"]
FLAT = 1e-8  # a standard deviation below this is none: values are only centred


@dataclass(frozen=True)
class Schedule:
    """How a weight moves to `to`, in a line or along half a cosine, and then stays."""

    kind: Literal["linear", "cosine"]
    to: float
    updates: int  # so many, from `start` on
    start: int = 0

    def at(self, weight: float, update: int) -> float:
        """The weight at an update, counted from 0.

        Args:
            weight: the one it begins with.
            update: updates before this one.
        """
        done = min(1.0, max(0.0, (update - self.start) / self.updates))
        if self.kind == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return weight + (self.to - weight) * done


@dataclass(frozen=True)
class RewardTerm:
    """One reward in the sum."""

    name: str
    function: Callable[..., Any]  # a RewardFn
    weight: float = 1.0
    schedule: Schedule | None = None
    normalise: Normalise = "none"
    clip: float | None = None  # to [-clip, clip], after normalisation and before the weight
    gold: bool = False  # logged, never trained on
    timeout: float | None = None  # seconds of one attempt
    retries: int = 0

    def weight_at(self, update: int) -> float:
        """The weight at an update, counted from 0."""
        return self.schedule.at(self.weight, update) if self.schedule else self.weight


@dataclass
class RunningStatistics:
    """Mean and variance of all values seen (Welford 1962, in batches as Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0  # sum of squared deviations from the mean

    @property
    def std(self) -> float:
        """Biased standard deviation; 0 before the second value."""
        return math.sqrt(max(0.0, self.m2) / self.count) if self.count else 0.0

    def update(self, values: Values, reduce: Reduce | None = None) -> None:
        """Take in a batch.

        Args:
            values: one rank's; None is left out.
            reduce: sums a tensor over ranks, so that all ranks hold the statistics of all values.
        """
        kept = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
        away = kept - self.mean  # from a value that all ranks share: little is lost to rounding
        sums = torch.stack([torch.tensor(float(len(kept))).double(), away.sum(), (away**2).sum()])
        count, total, squares = (reduce(sums) if reduce else sums).tolist()
        if not count:
            return
        shift = total / count
        whole = self.count + count
        self.m2 += (squares - count * shift**2) + shift**2 * self.count * count / whole
        self.mean += shift * count / whole
        self.count = whole

    def apply(self, values: Values) -> list[float | None]:
        """Values with mean 0 and standard deviation 1 over all that were seen."""
        scale = self.std if self.std > FLAT else 1.0
        return [None if v is None else (v - self.mean) / scale for v in values]

    def state_dict(self) -> dict[str, float]:
        """Plain numbers, for checkpoints."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore `state_dict`."""
        self.count, self.mean, self.m2 = state["count"], state["mean"], state["m2"]


def groups_of(prompts: Sequence[Any], group_size: int | None = None) -> list[range]:
    """Rows that answer the same prompt: blocks of `group_size`, or neighbours of equal prompt.

    Raises:
        RewardError: the rows are no multiple of the group size.
    """
    if group_size is not None:
        if len(prompts) % group_size:
            raise RewardError(f"{len(prompts)} completions are not groups of {group_size}.")
        starts = list(range(0, len(prompts), group_size))
    else:
        starts = [i for i, p in enumerate(prompts) if i == 0 or p != prompts[i - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(prompts)], strict=True)]


def group_zscore(values: Values, groups: Sequence[range]) -> list[float | None]:
    """Each group's values with mean 0 and (biased) standard deviation 1.

    A group of equal values, or of one value, becomes zeros: there is nothing to prefer in it.
    """
    result: list[float | None] = [None] * len(values)
    for rows in groups:
        kept = {row: value for row in rows if (value := values[row]) is not None}
        if not kept:
            continue
        mean = math.fsum(kept.values()) / len(kept)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in kept.values()) / len(kept))
        for row, value in kept.items():
            result[row] = (value - mean) / std if std > FLAT else 0.0
    return result


def clipped(values: Values, limit: float | None) -> list[float | None]:
    """Values within [-limit, limit]."""
    if limit is None:
        return list(values)
    return [None if v is None else max(-limit, min(limit, v)) for v in values]


def weighted_sum(parts: Sequence[tuple[str, Values, float]]) -> list[float]:
    """Sum over rewards of weight times value; None adds nothing.

    Args:
        parts: (name, B values, weight).

    Raises:
        RewardError: no reward applies to some completion.
    """
    rows = len(parts[0][1]) if parts else 0
    totals = []
    for row in range(rows):
        terms = [
            weight * value for _, values, weight in parts if (value := values[row]) is not None
        ]
        if not terms:
            names = ", ".join(repr(name) for name, _, _ in parts)
            raise RewardError(
                f"no reward applies to completion {row}: {names} returned None for it. Fix: return "
                "0.0 there, or add a reward that applies to every completion."
            )
        totals.append(math.fsum(terms))
    return totals


def mean_of(values: Values) -> float | None:
    """Mean of the values that apply; None without any."""
    kept = [value for value in values if value is not None]
    return math.fsum(kept) / len(kept) if kept else None
