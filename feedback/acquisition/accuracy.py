"""Accuracy of the whole pool from a random sample of it with known propensities.

With c_i = 1 where the model is right on item i, and pi_i the chance that i was asked,

    Horvitz-Thompson   1/N sum c_i / pi_i             unbiased (JASA 47, 1952)
    self-normalised    sum c_i / pi_i  /  sum 1 / pi_i    nearly unbiased, steadier, within [0, 1]

(Hajek 1971). Items that a strategy chose have no propensity, and are refused: what was asked
because it is hard never estimates accuracy. Intervals treat items, or clusters of them (pairs of
one prompt), as drawn independently, which is a little wide for a sample without repetition.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, t

from feedback.acquisition.arrays import Array, Index, finite
from feedback.errors import DataError

Method = Literal["self_normalised", "horvitz_thompson"]


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and what it rests on."""

    value: float
    low: float
    high: float
    n: int  # items
    effective: float  # items that an even sample would need to be as exact
    level: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def estimate_accuracy(
    correct: ArrayLike,
    propensities: ArrayLike,
    *,
    population: int | None = None,
    clusters: Sequence[Hashable] | None = None,
    method: Method = "self_normalised",
    level: float = 0.95,
) -> Estimate:
    """Accuracy over the pool, with an interval.

    Args:
        correct: (n,) 1 or 0, or any credit in [0, 1] such as half for a tie.
        propensities: (n,) chance of each item to have been asked, from `Holdout.propensities`.
        population: N, items of the pool; needed by `horvitz_thompson` only.
        clusters: (n,) what goes together, such as the prompt of each pair.
        method: see the module.
        level: of the interval.

    Returns:
        The self-normalised interval is Wilson's for `effective` items, so it neither leaves [0, 1]
        nor shrinks to nothing where all are right; Horvitz and Thompson's is normal, cut at [0, 1].

    Raises:
        DataError: no items, no known propensity, credit outside [0, 1], or no population.
    """
    c, pi = finite(correct, "correct", 1), _propensities(propensities)
    if len(c) != len(pi) or not len(c):
        raise DataError(
            f"{len(c)} answers and {len(pi)} propensities; as many of both, and at least one, are "
            "expected."
        )
    if c.min() < 0 or c.max() > 1:
        raise DataError(f"correct holds {c[np.abs(c - 0.5).argmax()]:.4g}; [0, 1] is expected.")
    if not 0 < level < 1:
        raise DataError(f"level is {level}; a share in (0, 1) is expected.")
    group = _groups(clusters, len(c))
    weight = 1 / pi
    if method == "self_normalised":
        return _self_normalised(c, weight, group, level)
    if method == "horvitz_thompson":
        return _horvitz_thompson(c, pi, group, population, level)
    raise DataError(f"method is {method!r}; 'self_normalised' or 'horvitz_thompson' is expected.")


def _self_normalised(c: Array, weight: Array, group: Index, level: float) -> Estimate:
    total = weight.sum()
    value = float((weight * c).sum() / total)
    per = np.bincount(group, weight * (c - value)) / total  # linearised, by cluster
    sizes = np.bincount(group, weight) / total
    kish = float(1 / np.square(sizes).sum())
    count = len(sizes)
    variance = float(np.square(per).sum()) * count / max(count - 1, 1)
    spread = value * (1 - value)
    # Where the sample does not vary, the size of its clusters says all that is known.
    effective = min(spread / variance, float(len(c))) if variance > 0 and spread > 0 else kish
    z = float(t.ppf(0.5 + level / 2, count - 1)) if count > 1 else float(norm.ppf(0.5 + level / 2))
    square = z * z / effective
    middle = (value + square / 2) / (1 + square)
    half = z * np.sqrt(spread / effective + square / (4 * effective)) / (1 + square)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Estimate(value, min(low, value), max(high, value), len(c), effective, level)


def _horvitz_thompson(
    c: Array, pi: Array, group: Index, population: int | None, level: float
) -> Estimate:
    if population is None or population < len(c):
        raise DataError(
            f"population is {population}; the pool's size, at least {len(c)}, is expected. "
            "Fix: population=len(pool)."
        )
    value = float((c / pi).sum() / population)
    # Poisson sampling: items of one cluster come together, with one chance.
    per = np.bincount(group, c / pi)
    chance = np.bincount(group, pi) / np.bincount(group)
    variance = float(((1 - chance) * np.square(per)).sum()) / population**2
    half = float(norm.ppf(0.5 + level / 2)) * variance**0.5
    weight = np.bincount(group, 1 / pi)
    effective = float(weight.sum() ** 2 / np.square(weight).sum())
    low, high = max(value - half, 0.0), min(value + half, 1.0)
    return Estimate(value, min(low, value), max(high, value), len(c), effective, level)


def _propensities(values: ArrayLike) -> Array:
    pi = np.asarray(values, dtype=np.float64)
    if pi.ndim != 1:
        raise DataError(f"propensities has shape {pi.shape}; (n,) is expected.")
    unknown = int(np.isnan(pi).sum())
    if unknown:
        raise DataError(
            f"{unknown} of {len(pi)} items have no propensity: a strategy chose them, and accuracy "
            "on what was chosen is not the pool's. Fix: keep the items of the holdout only."
        )
    if len(pi) and not ((pi > 0) & (pi <= 1)).all():
        odd = pi[~((pi > 0) & (pi <= 1))][0]
        raise DataError(f"a propensity is {odd:.4g}; a chance in (0, 1] is expected.")
    return pi


def _groups(clusters: Sequence[Hashable] | None, count: int) -> Index:
    if clusters is None:
        return np.arange(count)
    if len(clusters) != count:
        raise DataError(f"{len(clusters)} clusters for {count} items; one for each is expected.")
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    return np.array([names[name] for name in clusters])
