"""Over-optimisation: gold and proxy against d = sqrt(KL), as Gao et al. (2023) draw it.

Best-of-n follows R(d) = d (alpha - beta d), reinforcement learning R(d) = d (alpha - beta log d),
both from R(0) = 0, the reward of the policy that one starts from. A fit always has a peak
somewhere; whether gold really turned is asked of the data (`turnover`). Pure functions on numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from align.errors import DataError
from align.rollout.best_of import best_of_curve, best_of_n_kl
from reward.statistics import Interval, check_level

Law = Literal["best_of_n", "rl"]
FEW_UNITS = 20  # below it a bootstrap's intervals are too narrow, and Student's t is used


@dataclass(frozen=True)
class Curve:
    """Gold and proxy at K distances, measured on U independent units (prompts or seeds)."""

    name: str
    d: np.ndarray  # (K,) sqrt of the KL to the start, ascending
    proxy: np.ndarray  # (U, K)
    gold: np.ndarray  # (U, K)

    def as_dict(self) -> dict[str, Any]:
        """Means and pointwise 95% intervals, for JSON."""
        found: dict[str, Any] = {"name": self.name, "d": self.d.tolist(), "units": len(self.gold)}
        for key, table in (("proxy", self.proxy), ("gold", self.gold)):
            half = half_widths(table)
            found[key] = table.mean(axis=0).tolist()
            found[f"{key}_half_width"] = half.tolist()
        return found


@dataclass(frozen=True)
class Fit:
    """A law of Gao et al. with its least-squares coefficients."""

    law: Law
    alpha: float
    beta: float
    start: float  # the reward at d = 0, subtracted before the fit
    rmse: float  # of the points

    def __call__(self, d: float) -> float:
        """The fitted reward at a distance."""
        if d <= 0:
            return self.start
        bent = d if self.law == "best_of_n" else math.log(d)
        return self.start + d * (self.alpha - self.beta * bent)

    @property
    def peak(self) -> float | None:
        """The distance at which the law is highest; None for one that never turns."""
        if self.beta <= 0 or (self.law == "best_of_n" and self.alpha <= 0):
            return None
        exponent = self.alpha / self.beta
        return exponent / 2 if self.law == "best_of_n" else math.exp(exponent - 1)


@dataclass(frozen=True)
class Turnover:
    """Whether gold rose to a peak and then fell, each by more than its interval."""

    found: bool
    peak_d: float
    peak: float  # mean gold there
    end_d: float
    end: float  # mean gold at the last distance
    rise: Interval  # peak - start; its interval holds for all distances at once
    fall: Interval  # end - peak; likewise

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"rise": self.rise.as_dict(), "fall": self.fall.as_dict()}


def best_of_n_curve(
    proxy: Sequence[Sequence[float]] | np.ndarray,
    gold: Sequence[Sequence[float]] | np.ndarray,
    ks: Sequence[int],
    name: str = "best of n",
) -> Curve:
    """The curve of best-of-k from N draws of each prompt; units are prompts.

    Args:
        proxy: (P, N) scores that decide.
        gold: (P, N) scores that judge.
        ks: ascending, each from 1 to N.
        name: of the curve.

    Raises:
        ValueError: shapes differ, or a k is out of range.
    """
    d = np.sqrt([best_of_n_kl(k) for k in ks])
    return Curve(name, d, best_of_curve(proxy, ks), best_of_curve(proxy, ks, gold))


def training_curve(
    runs: Sequence[Sequence[Mapping[str, Any]]],
    gold: str,
    blocks: int = 8,
    name: str = "PPO",
    proxy: str = "reward/mean",
    kl: str = "kl/reference",
    interleave: int = 1,
) -> Curve:
    """The curve of training runs, from their metrics; units are runs (seeds).

    The logged updates are averaged in consecutive blocks, since one update's figures are noisy and
    runs reach the same distance at different times. A block's distance is the root of its mean KL.

    Args:
        runs: rows of metrics.jsonl of each run.
        gold: the held-out reward's metric, for example `gold/quality`.
        blocks: points of the curve.
        name: of the curve.
        proxy: the metric that was trained on.
        kl: the metric of the distance.
        interleave: units of each run: every so-manieth update of a block is one. Their rollouts
            are independent, so intervals then hold over rollouts of these runs, not over seeds.

    Raises:
        DataError: a run logged those metrics at fewer updates than blocks * interleave.
    """
    tables = []
    for number, rows in enumerate(runs):
        points = [[row[key] for key in (kl, proxy, gold)] for row in rows if gold in row]
        if len(points) < blocks * interleave:
            raise DataError(
                f"run {number} logged {gold} at {len(points)} updates; {blocks} blocks need "
                f"{blocks * interleave}. Fix: train longer, or ask for fewer blocks."
            )
        parts = np.array_split(np.asarray(points, dtype=np.float64), blocks)
        for unit in range(interleave):
            tables.append([part[unit::interleave].mean(axis=0) for part in parts])
    found = np.asarray(tables)  # (runs * interleave, blocks, 3)
    d = np.sqrt(np.clip(found[:, :, 0].mean(axis=0), 0, None))
    return Curve(name, d, found[:, :, 1], found[:, :, 2])


def fit(d: Sequence[float] | np.ndarray, reward: Sequence[float] | np.ndarray, law: Law) -> Fit:
    """Least squares of a law through (d, reward); the first point's reward counts as the start.

    Args:
        d: (K,) ascending distances, the first (near) 0.
        reward: (K,) mean reward there.
        law: `best_of_n` or `rl`.

    Raises:
        DataError: fewer than two points beyond d = 0, or an unknown law.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if law not in ("best_of_n", "rl"):
        raise DataError(f"fit: law {law!r} is unknown; use 'best_of_n' or 'rl'.")
    start = float(y[0])
    apart = x > 1e-9
    apart[0] = False
    if apart.sum() < 2:
        raise DataError(f"fit: two points beyond the start are needed; got {int(apart.sum())}.")
    x, y = x[apart], y[apart] - start
    design = np.stack([x, -x * (x if law == "best_of_n" else np.log(x))], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(design, y, rcond=None)
    rmse = float(np.sqrt(np.mean((y - design @ [alpha, beta]) ** 2)))
    return Fit(law, float(alpha), float(beta), start, rmse)


def turnover(
    d: Sequence[float] | np.ndarray,
    gold: Sequence[Sequence[float]] | np.ndarray,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Turnover:
    """Did gold peak, and then fall by more than its interval?

    A peak that is picked from noisy means is too high, so the drop after it is too deep: intervals
    of `end - k` and `k - start` hold for all k at once. From 20 units they are bootstrapped (the
    distribution of the greatest studentised deviation over k, units redrawn whole); for fewer it is
    Student's t with Bonferroni's correction.

    Args:
        d: (K,) ascending distances.
        gold: (U, K) gold of each unit (prompt or seed) at each distance, paired along a row.
        level: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two units or three distances, or shapes that do not fit.
    """
    x, table = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(x) or len(table) < 2 or len(x) < 3:
        raise DataError(
            f"turnover: expected (U, K) gold with U >= 2 and K = {len(x)} >= 3 distances; got "
            f"{table.shape}."
        )
    means = table.mean(axis=0)
    falls, rises = table[:, -1:] - table[:, :-1], table[:, 1:] - table[:, :1]
    fall_half = _simultaneous(falls, level, resamples, seed)
    rise_half = _simultaneous(rises, level, resamples, seed)
    inner = range(1, len(x) - 1)  # the distance whose rise and fall are the most certain
    peak = max(
        inner,
        key=lambda k: min(
            -falls[:, k].mean() - fall_half[k], rises[:, k - 1].mean() - rise_half[k - 1]
        ),
    )
    if not _certain(falls, fall_half, rises, rise_half, peak):
        peak = int(means.argmax())
    fall = _interval(falls, fall_half, peak, level) if peak < len(x) - 1 else None
    rise = _interval(rises, rise_half, peak - 1, level) if peak > 0 else None
    nothing = Interval(0.0, 0.0, 0.0, len(table), level)
    return Turnover(
        found=bool(fall and rise and fall.high < 0 < rise.low),
        peak_d=float(x[peak]),
        peak=float(means[peak]),
        end_d=float(x[-1]),
        end=float(means[-1]),
        rise=rise or nothing,
        fall=fall or nothing,
    )


def half_widths(table: np.ndarray, level: float = 0.95) -> np.ndarray:
    """(K,) half widths of Student's t-intervals of the columns of (U, K); 0 for a single unit."""
    if len(table) < 2:
        return np.zeros(table.shape[1])
    t = stats.t.ppf(0.5 + check_level(level) / 2, len(table) - 1)
    return np.asarray(t * table.std(axis=0, ddof=1) / math.sqrt(len(table)))


def _simultaneous(table: np.ndarray, level: float, resamples: int, seed: int) -> np.ndarray:
    """(K,) half widths that hold for all columns of (U, K) together."""
    units, columns = table.shape
    error = table.std(axis=0, ddof=1) / math.sqrt(units)
    if units < FEW_UNITS:
        return np.asarray(
            stats.t.ppf(1 - (1 - check_level(level)) / (2 * columns), units - 1) * error
        )
    generator = np.random.default_rng(seed)
    centre = table.mean(axis=0)
    safe = np.where(error > 0, error, np.inf)
    greatest = np.empty(resamples)
    for at in range(resamples):
        drawn = table[generator.integers(0, units, units)]
        greatest[at] = np.abs((drawn.mean(axis=0) - centre) / safe).max()
    return np.asarray(np.quantile(greatest, check_level(level)) * error)


def _certain(
    falls: np.ndarray, fall_half: np.ndarray, rises: np.ndarray, rise_half: np.ndarray, k: int
) -> bool:
    fell = falls[:, k].mean() + fall_half[k] < 0
    return bool(fell and rises[:, k - 1].mean() - rise_half[k - 1] > 0)


def _interval(table: np.ndarray, half: np.ndarray, column: int, level: float) -> Interval:
    value = float(table[:, column].mean())
    width = float(half[column])
    return Interval(value, value - width, value + width, len(table), level)
