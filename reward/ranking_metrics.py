"""How well scores order the answers of one prompt, and shares whose rows have weights.

Pure numbers. A grade says how good an answer is by the labels (higher is better, equal grades are
not compared), a score what the reward model says. Pairs and their calibration: `reward.metrics`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from feedback.errors import DataError
from reward.metrics import Numbers
from reward.statistics import Interval, check_level, share_interval, wilson_interval


def graded_pairs(grades: Numbers) -> list[tuple[int, int]]:
    """(better, worse) for every two answers whose grades differ; at most K(K-1)/2."""
    g = _numbers(grades, "grades")
    return [(int(i), int(j)) for i, j in np.argwhere(g[:, None] > g[None, :])]


def best_of(grades: Numbers, scores: Numbers) -> float:
    """1 where the answer that scores highest has the best grade, else 0.

    Equal highest scores share: the mean over what a draw among them would give. The random baseline
    is the share of answers with the best grade. RewardBench 2 (Malik et al. 2025, arXiv 2506.01937)
    calls this accuracy, of one right answer among four.
    """
    g, s = _both(grades, scores)
    return float((g == g.max())[s == s.max()].mean())


def ndcg(grades: Numbers, scores: Numbers, k: int | None = None) -> float:
    """Normalised discounted cumulative gain of the order that the scores make.

    Jarvelin and Kekalainen (2002), ACM TOIS 20, with linear gains and log2 discounts. Equal scores
    share their places' discounts evenly (McSherry and Najork 2008), as in scikit-learn's
    `ndcg_score`. Negative grades are shifted until the least is 0.

    Args:
        grades: (K,) gains.
        scores: (K,).
        k: only the first k places count; default: all.

    Raises:
        DataError: all gains are 0, so that every order is as good.
    """
    g, s = _both(grades, scores)
    g = g - min(0.0, g.min())
    discounts = _discounts(g.size, k)
    ideal = float(np.sort(g)[::-1] @ discounts)
    if not ideal > 0:
        raise DataError("NDCG needs an answer with a grade above 0; all are alike.")
    _, group = np.unique(-s, return_inverse=True)  # 0 is the highest score
    sizes = np.bincount(group)
    means = np.bincount(group, weights=g) / sizes
    ends = np.cumsum(sizes)
    shares = np.array(
        [discounts[end - size : end].sum() for end, size in zip(ends, sizes, strict=True)]
    )
    return float(means @ shares) / ideal


def expected_ndcg(grades: Numbers, k: int | None = None) -> float:
    """What `ndcg` gives on average to an order drawn at random: the same as to equal scores."""
    return ndcg(grades, np.zeros(len(grades)), k)


def kendall_tau(grades: Numbers, scores: Numbers) -> float:
    """Kendall's tau-b of grades and scores; 0 where all scores are equal, since they order nothing.

    Kendall (1945), Biometrika 33: corrected for ties in either. A random order gives 0 on average.
    """
    g, s = _both(grades, scores)
    first, second = (np.sign(values[:, None] - values[None, :]) for values in (g, s))
    scale = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def weighted_share(
    values: Numbers,
    weights: Numbers | None = None,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> Interval:
    """`share_interval` for rows that count unequally: the Wilson interval of a weighted mean.

    The effective number of rows is n times the variance of n coin flips over that of the weighted
    and clustered values (Kish 1965), with one win and one loss of mean weight imagined. Equal
    weights give `share_interval` exactly.

    Args:
        values: (n,) outcomes in [0, 1].
        weights: (n,) none negative, not all 0; default: 1 each.
        clusters: (n,) labels of rows that are not independent.
        level: confidence level.

    Raises:
        DataError: lengths differ, or a value or weight is out of range.
    """
    x = _numbers(values, "values")
    if weights is None:
        return share_interval(x, clusters, level)
    w = _numbers(weights, "weights")
    if w.shape != x.shape or (clusters is not None and len(clusters) != x.size):
        raise DataError(f"{x.size} values came with {w.size} weights and other clusters.")
    if w.min() < 0 or not w.sum() > 0:
        raise DataError("weights are none negative and not all 0.")
    if x.min() < 0 or x.max() > 1:
        raise DataError(f"outcomes lie in [0, 1]; found {x.min()} to {x.max()}.")
    w = w / w.mean()
    mean = min(1.0, float(w @ x / w.sum()))  # rounding may pass 1
    padded, heavy = np.append(x, [0.0, 1.0]), np.append(w, [1.0, 1.0])
    p = float(heavy @ padded / heavy.sum())
    codes: dict[Hashable, int] = {}
    labels = [codes.setdefault(c, len(codes)) for c in clusters or range(x.size)]
    labels += [len(codes), len(codes) + 1]
    sums = np.bincount(labels, weights=heavy * (padded - p))
    effective = x.size * padded.size * p * (1 - p) / float(np.square(sums).sum())
    return replace(wilson_interval(mean * effective, effective, level), value=mean)


def mean_interval(
    values: Numbers, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Student's t-interval of a mean whose rows may share clusters (Liang and Zeger 1986).

    Args:
        values: (n,) numbers of any range.
        clusters: (n,) labels; the degrees of freedom are clusters less one.
        level: confidence level.

    Returns:
        the mean, its ends (both infinite with a single cluster), and the number of clusters.
    """
    x = _numbers(values, "values")
    labels = list(clusters) if clusters is not None else list(range(x.size))
    codes: dict[Hashable, int] = {}
    sums = np.bincount([codes.setdefault(c, len(codes)) for c in labels], weights=x - x.mean())
    count, mean = len(codes), float(x.mean())
    if count < 2:
        return Interval(mean, -np.inf, np.inf, count, level)
    error = float(np.sqrt(np.square(sums).sum() * count / (count - 1))) / x.size
    half = float(stats.t.ppf(0.5 + check_level(level) / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, count, level)


def _discounts(size: int, k: int | None) -> np.ndarray:
    found = 1 / np.log2(np.arange(size) + 2)
    if k is not None:
        found[k:] = 0.0
    return found


def _both(grades: Numbers, scores: Numbers) -> tuple[np.ndarray, np.ndarray]:
    g, s = _numbers(grades, "grades"), _numbers(scores, "scores")
    if g.shape != s.shape:
        raise DataError(f"{g.size} grades came with {s.size} scores.")
    return g, s


def _numbers(values: Numbers, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise DataError(f"{name}: expected a list of finite numbers; got {array!r}.")
    return array
