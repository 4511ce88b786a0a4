"""How sure one can be: intervals and paired tests over prompts and over seeds.

Pure functions on numbers. Prompts are the independent units throughout: several samples of one
prompt are averaged before they come here. Shares (win rates, accuracies) are in
`reward.statistics`, re-exported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from align.errors import DataError
from reward.statistics import Interval, check_level, share_interval, sign_test, wilson_interval

__all__ = [
    "Difference",
    "Interval",
    "bootstrap_interval",
    "difference_interval",
    "holm",
    "mcnemar_test",
    "paired_difference",
    "permutation_test",
    "seeds_interval",
    "share_interval",
    "sign_test",
    "wilson_interval",
]

EXACT_UP_TO = 13  # differences that are enumerated: 2^13 sign patterns
CHUNK = 4_000_000  # random numbers held at once

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Difference:
    """A mean paired difference a - b, its bootstrap interval and its permutation p-value."""

    interval: Interval
    p_value: float


def paired_difference(
    a: Numbers,
    b: Numbers,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    shares: bool = False,
) -> Difference:
    """Compare two models' scores on the same prompts.

    Args:
        a: (P,) score of the first model per prompt (its samples averaged).
        b: (P,) score of the second.
        level: confidence level of the bootstrap interval.
        resamples: of bootstrap and permutation.
        seed: of both.
        shares: scores lie in [0, 1] (right or wrong), and the interval is `difference_interval`.

    Raises:
        DataError: the two differ in length, are empty, hold NaN, or are no shares.
    """
    first, second = _numbers(a, "a"), _numbers(b, "b")
    if first.shape != second.shape:
        raise DataError(f"paired scores differ in number: {first.size} and {second.size}.")
    differences = first - second
    if shares:
        interval = difference_interval(differences, level=level)
    else:
        interval = bootstrap_interval(differences, level=level, resamples=resamples, seed=seed)
    return Difference(interval, permutation_test(differences, resamples=resamples, seed=seed))


def difference_interval(
    values: Numbers, weights: Numbers | None = None, level: float = 0.95
) -> Interval:
    """Interval of a mean paired difference of shares, over independent units.

    Wald's interval after one imagined unit that only the first gets right and one that only the
    second does (Bonett and Price 2012, J. Educ. Behav. Stat. 37). Where all differences are equal a
    bootstrap has nothing to redraw and claims certainty; this one still has the width that so few
    units leave. Ties, means of several samples, and units of unequal weight go in as they are: the
    variance is that of a ratio of sums, which for wins and losses is theirs.

    Args:
        values: (n,) one difference per unit, each in [-1, 1]; times its weight, where there are.
        weights: (n,) of the units; default 1 each.
        level: confidence level.

    Raises:
        DataError: no values, NaN, lengths that differ, or a difference outside [-1, 1].
    """
    x, w = _weighted(values, weights)
    if (abs(x) > w * (1 + 1e-9)).any():
        raise DataError(f"differences of shares lie in [-1, 1]; found {x.min()} to {x.max()}.")
    each = w.mean()
    above, below = np.append(x, [each, -each]), np.append(w, [each, each])
    middle = above.sum() / below.sum()
    error = np.sqrt(np.square(above - middle * below).sum()) / below.sum()
    half = float(stats.norm.ppf(0.5 + check_level(level) / 2)) * error
    value = float(x.sum() / w.sum())
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Interval(value, min(value, float(low)), max(value, float(high)), x.size, level)


def bootstrap_interval(
    values: Numbers,
    weights: Numbers | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean, or of a ratio of sums, over independent units.

    Efron (1979), Annals of Statistics 7. With weights the estimate is sum(values) / sum(weights),
    for example total negative log-likelihood over total tokens, whole texts being redrawn.

    Args:
        values: (n,) one number per unit (a prompt, a text).
        weights: (n,) denominators, all positive in sum; default 1 each.
        level: confidence level.
        resamples: bootstrap samples.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        DataError: no values, NaN, or lengths that differ.
    """
    x, w = _weighted(values, weights)
    estimate = float(x.sum() / w.sum())
    draws = []
    generator = np.random.default_rng(seed)
    for size in _chunks(resamples, x.size):
        rows = generator.integers(0, x.size, size=(size, x.size))
        below = w[rows].sum(axis=1)
        # A draw of empty texts only has no ratio; it says nothing and is left out.
        draws.append((x[rows].sum(axis=1)[below > 0]) / below[below > 0])
    tail = (1 - check_level(level)) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), x.size, level)


def permutation_test(differences: Numbers, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value that paired differences are symmetric about 0 (Fisher 1935).

    Every sign pattern is tried for up to 13 non-zero differences; beyond that `resamples` are
    drawn and p = (1 + hits) / (1 + resamples), which is never 0 (Phipson and Smyth 2010).

    Raises:
        DataError: no differences, or NaN.
    """
    x = _numbers(differences, "differences")
    x = x[x != 0]  # a zero has no sign to flip
    if x.size == 0:
        return 1.0
    observed = abs(x.sum()) * (1 - 1e-12)  # sums that are equal but for rounding count as equal
    if x.size <= EXACT_UP_TO:
        bits = np.arange(2**x.size)[:, None] >> np.arange(x.size) & 1
        return float((abs((1 - 2 * bits) @ x) >= observed).mean())
    generator = np.random.default_rng(seed)
    hits = 0
    for size in _chunks(resamples, x.size):
        signs = 1 - 2 * generator.integers(0, 2, size=(size, x.size), dtype=np.int8)
        hits += int((abs(signs @ x) >= observed).sum())
    return (1 + hits) / (1 + resamples)


def mcnemar_test(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> float:
    """Exact two-sided p-value that two classifiers are right equally often (McNemar 1947).

    Args:
        correct_a: (n,) whether the first is right on each row.
        correct_b: (n,) the second, on the same rows.

    Raises:
        DataError: the two differ in length.
    """
    if len(correct_a) != len(correct_b):
        raise DataError(f"paired rows differ in number: {len(correct_a)} and {len(correct_b)}.")
    pairs = list(zip(correct_a, correct_b, strict=True))
    return sign_test(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))


def seeds_interval(
    values: Numbers,
    level: float = 0.95,
    method: Literal["t", "bootstrap"] = "t",
    resamples: int = 10_000,
    share: bool = False,
) -> Interval:
    """Interval of the mean of one metric over training seeds.

    Student's t is the default: with the three to five seeds one can afford, a bootstrap interval
    is too narrow (three values have only ten distinct resamples). Use it from about 20 seeds.
    A `share` lies in [0, 1], and so does its interval: what t has beyond is cut off.

    Raises:
        DataError: fewer than two seeds, NaN, or an unknown method.
    """
    x = _numbers(values, "values")
    if x.size < 2:
        raise DataError(f"an interval over seeds needs at least two of them; got {x.size}.")
    if method == "bootstrap":
        return bootstrap_interval(x, level=level, resamples=resamples)
    if method != "t":
        raise DataError(f"seeds_interval: method {method!r} is unknown; use 't' or 'bootstrap'.")
    half = float(stats.t.ppf(0.5 + check_level(level) / 2, x.size - 1)) * float(stats.sem(x))
    mean = float(x.mean())
    low, high = mean - half, mean + half
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Interval(mean, low, high, x.size, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; they control the family-wise error.

    Raises:
        DataError: a p-value lies outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise DataError(f"p-values lie in [0, 1]; got {list(p_values)}.")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _weighted(values: Numbers, weights: Numbers | None) -> tuple[np.ndarray, np.ndarray]:
    """Values and their weights, 1 each by default, both (n,)."""
    x = _numbers(values, "values")
    w = np.ones_like(x) if weights is None else _numbers(weights, "weights")
    if x.shape != w.shape:
        raise DataError(f"{x.size} values came with {w.size} weights.")
    if w.sum() <= 0 or w.min() < 0:
        raise DataError("weights are counts: none negative, not all zero.")
    return x, w


def _numbers(values: Numbers, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name}: expected a list of numbers; got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: entry {int(np.argmin(np.isfinite(array)))} is not finite.")
    return array


def _chunks(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to `total`, so that size * width random numbers fit in memory."""
    size = max(1, CHUNK // width)
    for start in range(0, total, size):
        yield min(size, total - start)
