"""Intervals and exact tests for shares: the statistics that reward models and policies share.

Pure functions on numbers. Tests of score differences, intervals over seeds and corrections for
several comparisons are in `align.evaluate.significance`, which re-exports these.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from feedback.errors import DataError


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    n: float  # effective number of independent observations behind it
    level: float = 0.95

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def wilson_interval(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927, JASA 22; Brown et al. 2001, eq. 4).

    Args:
        successes: how many of `n`; may be fractional (a tie counts half).
        n: number of observations; may be an effective number (`share_interval`).
        level: confidence level in (0, 1).

    Raises:
        DataError: n is not positive, or successes lies outside [0, n].
    """
    if not n > 0:
        raise DataError(f"a share of {n} observations has no interval; at least one is needed.")
    if not -1e-9 <= successes <= n * (1 + 1e-12) + 1e-9:
        raise DataError(f"{successes} successes out of {n} observations is not a share.")
    p = min(1.0, max(0.0, successes / n))
    z = float(stats.norm.ppf(0.5 + check_level(level) / 2))
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The bounds meet 0 and 1 there exactly; only rounding says otherwise.
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return Interval(p, low, high, n, level)


def share_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Interval:
    """Wilson interval of the mean of values in [0, 1], at the effective number of observations.

    A tie (0.5) varies less than a win or a loss and rows that share a prompt vary together, so
    n observations are worth more, or less, than n coin flips. As for survey data (Kish 1965; Korn
    and Graubard 1998), the Wilson interval is taken at

        n_effective = n * (variance of n coin flips) / (variance of the clustered values),

    both estimated with one imagined win and one imagined loss added (after Agresti and Coull 1998),
    which keeps it finite when every value is the same. For wins and losses only, each from another
    prompt, n_effective = n and this is the plain Wilson interval.

    Args:
        values: (n,) outcomes in [0, 1]: 1 win, 0 loss, 0.5 tie, or means of several samples.
        clusters: (n,) labels; rows with equal labels (same prompt) are not independent.
        level: confidence level.

    Raises:
        DataError: no values, values outside [0, 1], or another number of clusters.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise DataError("a share of no observations has no interval; at least one is needed.")
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise DataError(f"outcomes lie in [0, 1]; found {x.min()} to {x.max()}.")
    if clusters is not None and len(clusters) != x.size:
        raise DataError(f"{x.size} values came with {len(clusters)} cluster labels.")
    padded = np.append(x, [0.0, 1.0])
    p = padded.mean()
    deviations = padded - p
    sums = deviations if clusters is None else _cluster_sums(deviations, clusters)
    flips = padded.size * p * (1 - p)
    effective = x.size * flips / float(np.square(sums).sum())
    mean = float(x.mean())
    return replace(wilson_interval(mean * effective, effective, level), value=mean)


def _cluster_sums(deviations: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Sum of deviations per cluster; the two imagined rows at the end stand alone."""
    codes: dict[Hashable, int] = {}
    labels = [codes.setdefault(cluster, len(codes)) for cluster in clusters]
    labels += [len(codes), len(codes) + 1]
    return np.bincount(labels, weights=deviations)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test; ties are left out (Dixon and Mood 1946).

    With the discordant pairs of two classifiers this is the exact McNemar test (McNemar 1947).
    No wins and no losses give 1.
    """
    if wins < 0 or losses < 0:
        raise DataError(f"wins and losses are counts; got {wins} and {losses}.")
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(int(wins), int(wins + losses), 0.5).pvalue)


def check_level(level: float) -> float:
    """The confidence level itself, if it is one.

    Raises:
        DataError: it does not lie strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise DataError(f"a confidence level lies between 0 and 1; got {level} (use 0.95 for 95%).")
    return level
