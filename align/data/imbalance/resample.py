"""Classes of unequal size: how many rows of each, which ones, and how much each row counts.

A class of n rows aims at n_max (n / n_max)^(1 - power) by over-sampling, or the same with n_min by
under-sampling: with power 1 all classes are as large as the largest (or smallest), with 0.5 the
difference in logarithms is halved. Weights are (N / (K n))^power, or follow the effective number of
samples (Cui et al. 2019, "Class-Balanced Loss", arXiv 1901.05555, equation 2).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from align.data.split import position_of


def class_sizes(
    counts: Mapping[str, int], method: Literal["over", "under"], power: float = 1.0
) -> dict[str, int]:
    """How many rows each class should have.

    Args:
        counts: rows of each class, all above 0.
        method: towards the largest class, or towards the smallest.
        power: in (0, 1].
    """
    if not counts:
        return {}
    goal = max(counts.values()) if method == "over" else min(counts.values())
    return {name: round(goal * (n / goal) ** (1 - power)) for name, n in counts.items()}


def over_sample(
    groups: Sequence[str],
    ids: Sequence[str],
    *,
    power: float = 1.0,
    most: float = 10.0,
    seed: int = 0,
) -> list[int]:
    """Indices of the rows to repeat, once for each repetition.

    Every row is repeated equally often, but for the rest, which goes to the rows whose ids hash
    lowest: neither chance nor the order of rows decides.

    Args:
        groups: the class of each row.
        ids: of each row, such as `fingerprint(row)`; equal ones share their fate.
        power: see `class_sizes`.
        most: copies of a row at most, itself included.
        seed: of the hash.
    """
    counts = Counter(groups)
    sizes = class_sizes(counts, "over", power)
    extra: list[int] = []
    for name, places in _by_class(groups, ids, seed).items():
        wanted = min(sizes[name], int(most * counts[name])) - counts[name]
        extra += [places[number % len(places)] for number in range(wanted)]
    return sorted(extra)


def under_sample(
    groups: Sequence[str], ids: Sequence[str], *, power: float = 1.0, seed: int = 0
) -> list[int]:
    """Indices of the rows that stay, in order: of each class those whose ids hash lowest."""
    sizes = class_sizes(Counter(groups), "under", power)
    placed = _by_class(groups, ids, seed)
    return sorted(i for name, places in placed.items() for i in places[: sizes[name]])


def class_weights(
    counts: Mapping[str, int],
    *,
    power: float = 1.0,
    beta: float | None = None,
    most: float = 10.0,
) -> dict[str, float]:
    """What a row of each class counts; the mean over all rows is 1.

    Args:
        counts: rows of each class, all above 0.
        power: of the inverse frequency; 1 makes classes count alike.
        beta: in [0, 1): by effective number instead, (1 - beta) / (1 - beta^n).
        most: times the weight of the class that counts least, at most.

    Returns:
        With power 1 and no limit reached, scikit-learn's "balanced" weights.
    """
    if not counts:
        return {}
    if beta is None:
        raw = {name: (1 / n) ** power for name, n in counts.items()}
    else:
        raw = {name: (1 - beta) / (1 - beta**n) for name, n in counts.items()}
    least = min(raw.values())
    raw = {name: min(weight, most * least) for name, weight in raw.items()}
    total = sum(raw[name] * n for name, n in counts.items())
    rows = sum(counts.values())
    return {name: weight * rows / total for name, weight in raw.items()}


def _by_class(groups: Sequence[str], ids: Sequence[str], seed: int) -> dict[str, list[int]]:
    """The rows of each class, by hash."""
    placed: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        placed[group].append(index)
    for places in placed.values():
        places.sort(key=lambda i: (position_of(ids[i], seed, b"balance"), ids[i], i))
    return dict(placed)
