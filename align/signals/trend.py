"""Trends, bends and means of a noisy series, each with an interval.

Least squares. Noise is what a curve of higher order than the fit leaves, for learning is smooth and
rarely straight. The updates of one run are correlated, so errors are inflated by what the lag-1
autocorrelation of the noise says (Wilks 1997, Journal of Climate 10, "Resampling hypothesis
tests for autocorrelated fields", eq. 10: n' = n (1 - r) / (1 + r)), after r is corrected for the
bias that fitting a curve gives it (Kendall 1954, Biometrika 41).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

MOST_CORRELATION = 0.9  # above it a window this short says nothing about a trend
LEAST_POINTS = 8


@dataclass(frozen=True)
class Trend:
    """A straight line through a window of points."""

    since: int  # first step of the window
    start: float  # the line at the first step
    end: float  # the line at the last step
    low: float  # interval of end - start
    high: float

    @property
    def change(self) -> float:
        """What the line rises by over the window."""
        return self.end - self.start


@dataclass(frozen=True)
class Bend:
    """A parabola through a window of points."""

    since: int
    start: float
    end: float
    slope_start: float  # per step, a sixth of the window after its start
    slope_end: float  # a sixth before its end
    low: float  # interval of the second-order coefficient, in units of the window's length
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean with its interval."""

    value: float
    low: float
    high: float


def trend(
    steps: Sequence[int],
    values: Sequence[float],
    level: float = 0.99,
    before: Sequence[float] = (),
) -> Trend:
    """The line through N >= 8 points and the interval of its rise; noise is what a parabola leaves.

    Args:
        steps: (N,) ascending.
        values: (N,) finite.
        level: confidence level of the interval.
        before: what came before the window, if anything; a short window by itself tells little
            about how correlated its points are.

    Raises:
        ValueError: fewer than 8 points.
    """
    fitted, design, half = _fit(steps, values, 1, level, before, smooth=2)
    line = design @ fitted
    change = float(fitted[1])  # the coordinate runs over 1
    low, high = change - float(half[1]), change + float(half[1])
    return Trend(int(steps[0]), float(line[0]), float(line[-1]), low, high)


def bend(steps: Sequence[int], values: Sequence[float], level: float = 0.99) -> Bend:
    """The parabola through N >= 8 points and the interval of its bend.

    Noise is what a curve of the fourth order leaves: a smooth growth that is no parabola (an
    exponential) would count as correlated noise otherwise.

    Raises:
        ValueError: fewer than 8 points.
    """
    fitted, design, half = _fit(steps, values, 2, level, smooth=4)
    curve = design @ fitted
    span = steps[-1] - steps[0]
    slopes = [(fitted[1] + 2 * fitted[2] * at) / span for at in (-1 / 3, 1 / 3)]
    square = float(fitted[2])
    return Bend(
        int(steps[0]),
        float(curve[0]),
        float(curve[-1]),
        float(slopes[0]),
        float(slopes[1]),
        square - half[2],
        square + half[2],
    )


def mean(values: Sequence[float], level: float = 0.99) -> Mean:
    """The mean of N >= 2 points with Student's t-interval.

    Raises:
        ValueError: fewer than 2 points.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 points; got {len(values)}.")
    y = np.asarray(values, dtype=np.float64)
    half = float(stdtrit(len(y) - 1, 0.5 + level / 2) * y.std(ddof=1) / math.sqrt(len(y)))
    return Mean(float(y.mean()), float(y.mean()) - half, float(y.mean()) + half)


def _fit(
    steps: Sequence[int],
    values: Sequence[float],
    degree: int,
    level: float,
    before: Sequence[float] = (),
    smooth: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, design (N, degree + 1) and half intervals; steps run from -1/2 to 1/2.

    `smooth` is the order of the curve that noise is measured from; default: the fit's own.
    """
    count = len(values)
    if count < LEAST_POINTS:
        raise ValueError(f"a trend needs at least {LEAST_POINTS} points; got {count}.")
    x = np.asarray(steps, dtype=np.float64)
    y = np.asarray(values, dtype=np.float64)
    x = (x - (x[0] + x[-1]) / 2) / (x[-1] - x[0])
    fitted, design, inverse = _solve(x, y, degree)
    order = degree if smooth is None else smooth
    curve, powers, _ = (fitted, design, inverse) if order == degree else _solve(x, y, order)
    residuals = y - powers @ curve
    correlation = _autocorrelation(residuals, order)
    if len(before) >= LEAST_POINTS:
        longer = np.concatenate([before, y])
        length = min(count, len(longer) // 2)
        correlation = max(correlation, _earlier_correlation(longer, length, order))
    inflation = (1 + correlation) / (1 - correlation)
    variance = float(residuals @ residuals) / (count - order - 1) * inflation
    effective = max(2.0, count / inflation - order - 1)
    half = stdtrit(effective, 0.5 + level / 2) * np.sqrt(variance * np.diag(inverse))
    return fitted, design, half


def _solve(x: np.ndarray, y: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares: coefficients, design and the inverse of its square."""
    design = np.stack([x**power for power in range(degree + 1)], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    return inverse @ (design.T @ y), design, inverse


def _earlier_correlation(values: np.ndarray, length: int, order: int) -> float:
    """Autocorrelation around curves of their own through all stretches of `length` points.

    One curve through all of them would leave whatever it does not follow, a rise that turns, as
    correlated noise, and no later fall would be told from a random walk.
    """
    stretches = values[len(values) % length :].reshape(-1, length)
    design = _solve(np.linspace(-0.5, 0.5, length), stretches[0], order)[1]
    around = stretches - stretches @ design @ np.linalg.pinv(design)
    return _autocorrelation(around, order)


def _autocorrelation(residuals: np.ndarray, degree: int) -> float:
    """Lag-1 autocorrelation of a fit's residuals, corrected for the fit; 0 to 0.9.

    Args:
        residuals: (N,), or (M, N) of M fits to N points each.
        degree: of each fit.
    """
    count, total = residuals.shape[-1], float((residuals**2).sum())
    if total <= 0:
        return 0.0
    r = float((residuals[..., 1:] * residuals[..., :-1]).sum()) / total
    r = (count * r + degree + 1) / (count - 2 * (degree + 1))  # Kendall's correction
    return min(max(r, 0.0), MOST_CORRELATION)
