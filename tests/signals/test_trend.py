"""Trends against textbook least squares, and their intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from align.signals.trend import bend, mean, trend


def ar1(generator, count, correlation):
    found = generator.normal(size=count)
    for at in range(1, count):
        found[at] = correlation * found[at - 1] + (1 - correlation**2) ** 0.5 * found[at]
    return found


def test_a_line_without_noise_is_found_exactly():
    line = trend(range(10, 30, 2), [3 + 0.5 * step for step in range(10, 30, 2)])
    assert line.since == 10
    assert (line.start, line.end, line.low, line.high) == pytest.approx((8.0, 17.0, 9.0, 9.0))
    assert line.change == pytest.approx(9.0)


def test_white_noise_has_textbook_intervals():
    """Alternating residuals are not positively correlated, so nothing is inflated."""
    steps = np.arange(12.0)
    values = 0.3 * steps + np.tile([1.0, -1.0], 6)
    fit = stats.linregress(steps, values)
    noise = values - np.polyval(np.polyfit(steps, values, 2), steps)
    deviation = np.sqrt(np.sum(noise**2) / 9)  # what a parabola of three numbers leaves
    half = stats.t.ppf(0.975, 9) * deviation / np.sqrt(np.sum((steps - 5.5) ** 2)) * 11
    line = trend(list(range(12)), values.tolist(), 0.95)
    assert line.change == pytest.approx(fit.slope * 11)
    assert line.high - line.change == pytest.approx(half)


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.05), (0.5, 0.07), (0.8, 0.10)])
def test_intervals_cover_under_correlated_noise(correlation, most):
    """Textbook intervals would miss the truth in 26% and 51% of these, for 0.5 and 0.8."""
    generator = np.random.default_rng(1)
    misses = 0
    for _ in range(400):
        line = trend(range(64), ar1(generator, 64, correlation).tolist(), 0.95)
        misses += not line.low <= 0 <= line.high
    assert misses / 400 <= most + 0.02


def test_what_came_before_widens_a_short_window():
    wobble = [0.5 * (-1) ** step for step in range(16)]
    waves = np.sin(np.arange(96) / 1.5).tolist()  # too short for a window to take them for a course
    alone = trend(range(16), wobble, 0.99)
    known = trend(range(16), wobble, 0.99, before=waves)
    assert known.high - known.low > 2 * (alone.high - alone.low)


def test_a_rise_that_turned_hides_no_later_fall():
    """What one curve does not follow is no random walk: each stretch has a line of its own."""
    noise = np.random.default_rng(0).normal(0, 0.1, 128)
    course = np.interp(range(128), [0, 40, 96, 127], [0.0, 2.0, 1.8, -0.5]) + noise
    line = trend(range(96, 128), course[96:].tolist(), 0.9999, before=course[:96].tolist())
    assert -2.7 < line.low < -2.3 < line.high < -1.8


def test_a_bend_is_told_from_a_line():
    steps = list(range(40))
    wobble = [0.01 * (-1) ** step for step in steps]
    straight = bend(steps, [step + w for step, w in zip(steps, wobble, strict=True)], 0.99)
    curved = bend(steps, [step**2 / 40 + w for step, w in zip(steps, wobble, strict=True)], 0.99)
    assert straight.low < 0 < straight.high
    assert curved.low > 0
    # the slope of x^2 / 40 a sixth of the window from either end, at x = 6.5 and 32.5
    assert (curved.slope_start, curved.slope_end) == pytest.approx((0.325, 1.625), abs=0.01)


def test_smooth_growth_is_no_noise():
    """An exponential is no parabola; what it leaves must not drown the bend."""
    steps = list(range(40))
    growing = [math.exp(step / 12) + 0.05 * (-1) ** (step // 2) for step in steps]
    assert bend(steps, growing, 0.9999).low > 0


def test_a_mean_has_students_interval():
    found = mean([1.0, 2.0, 3.0, 4.0], 0.95)
    half = stats.t.ppf(0.975, 3) * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))


@pytest.mark.parametrize("call", [lambda: trend(range(7), [0.0] * 7), lambda: mean([1.0])])
def test_too_few_points_are_refused(call):
    with pytest.raises(ValueError, match="at least"):
        call()
