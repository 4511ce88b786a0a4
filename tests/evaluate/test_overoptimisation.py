"""Gao et al.'s laws recovered from points made by them, and turnover told from its look-alikes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.overoptimisation import (
    best_of_n_curve,
    fit,
    half_widths,
    training_curve,
    turnover,
)
from align.rollout.best_of import best_of_n_kl

D = np.linspace(0, 4, 9)


@pytest.mark.parametrize(
    ("law", "peak"), [("best_of_n", 0.9 / 0.4), ("rl", math.exp(0.9 / 0.5 - 1))]
)
def test_a_law_is_recovered_from_its_points(law, peak):
    alpha, beta = 0.9, 0.2 if law == "best_of_n" else 0.5
    bent = D if law == "best_of_n" else np.log(np.where(D > 0, D, 1.0))
    found = fit(D, 1.5 + D * (alpha - beta * bent), law)
    assert (found.alpha, found.beta, found.start) == pytest.approx((alpha, beta, 1.5))
    assert found.rmse == pytest.approx(0, abs=1e-12)
    assert found.peak == pytest.approx(peak)
    near = [found(found.peak + step) for step in (-0.01, 0.01)]
    assert found(found.peak) > max(near)
    assert found(0) == 1.5


def test_the_wrong_law_fits_worse():
    points = D * (0.9 - 0.2 * D)
    assert fit(D, points, "rl").rmse > 10 * fit(D, points, "best_of_n").rmse + 1e-3


def test_a_law_that_never_turns_has_no_peak():
    assert fit(D, D * (0.5 + 0.1 * D), "best_of_n").peak is None
    with pytest.raises(DataError, match="two points"):
        fit([0, 1], [0, 1], "rl")
    with pytest.raises(DataError, match="unknown"):
        fit(D, D, "cubic")


def made(curve, units, noise, seed=0):
    generator = np.random.default_rng(seed)
    own = generator.normal(size=(units, 1))  # what a prompt has in common at all distances
    return curve + own + noise * generator.normal(size=(units, len(D)))


RISES = D / 4
TURNS = np.interp(D, [0, 2, 4], [0, 1, 0.2])


@pytest.mark.parametrize(("units", "noise"), [(3, 0.02), (5, 0.1), (200, 1.0)])
def test_a_turn_is_found_where_it_is(units, noise):
    found = turnover(D, made(TURNS, units, noise))
    assert found.found
    assert found.peak_d == pytest.approx(2.0, abs=0.5)
    assert found.fall.high < 0 < found.rise.low
    assert found.end < found.peak
    assert found.fall.value == pytest.approx(-0.8, abs=0.35)


@pytest.mark.parametrize("curve", [RISES, 0 * D, -RISES, np.minimum(RISES, 0.5)])
@pytest.mark.parametrize("units", [4, 60])
def test_no_turn_where_gold_rises_falls_or_levels_off(curve, units):
    assert sum(turnover(D, made(curve, units, 0.1, s), resamples=400).found for s in range(20)) <= 1


def test_a_peak_picked_from_noise_is_rarely_a_turn():
    """At 95%, picking the highest of noisy means must not make more than one in twenty."""
    hits = sum(turnover(D, made(0 * D, 40, 1.0, s), resamples=300).found for s in range(120))
    assert hits <= 6


def test_turnover_is_json():
    found = turnover(D, made(TURNS, 30, 0.1)).as_dict()
    assert found["found"] is True
    assert set(found["fall"]) == {"value", "low", "high", "n"}


@pytest.mark.parametrize("gold", [np.zeros((1, 9)), np.zeros((3, 8)), np.zeros(9)])
def test_too_little_is_refused(gold):
    with pytest.raises(DataError, match="U >= 2"):
        turnover(D, gold)


def test_the_curve_of_best_of_n():
    """Gold that agrees with the proxy but at its extremes: the laws' own example."""
    generator = np.random.default_rng(3)
    quality = generator.normal(size=(100, 128))
    trick = generator.exponential(size=(100, 128)) ** 2  # heavy-tailed error wins for large n
    curve = best_of_n_curve(quality + trick, quality - 0.3 * trick, [1, 2, 4, 8, 16, 64, 128])
    assert curve.d[0] == 0
    assert curve.d[3] == pytest.approx(math.sqrt(best_of_n_kl(8)))
    assert (np.diff(curve.proxy.mean(axis=0)) > 0).all()
    shown = curve.as_dict()
    assert len(shown["gold"]) == len(shown["gold_half_width"]) == 7
    assert shown["units"] == 100
    assert shown["gold_half_width"] == pytest.approx(half_widths(curve.gold).tolist())


def rows(seed, count=40):
    generator = np.random.default_rng(seed)
    return [
        row
        for update in range(count)
        for row in (
            {
                "step": 2 * update,
                "kl/reference": 0.01 * update**2,
                "reward/mean": update / 10,
                "gold/a": 1.0 if update < 20 else 0.0 + 0.01 * generator.normal(),
            },
            {"step": 2 * update + 1, "loss": 0.1},  # an optimizer step without new rollouts
        )
    ]


def test_the_curve_of_training_runs_is_blocks_of_updates():
    curve = training_curve([rows(0), rows(1)], "gold/a", blocks=4)
    first = np.arange(10)
    assert curve.d[0] == pytest.approx(math.sqrt((0.01 * first**2).mean()))
    assert curve.proxy[0].tolist() == pytest.approx([0.45, 1.45, 2.45, 3.45])
    assert curve.gold.shape == (2, 4)
    assert curve.gold[0].tolist() == pytest.approx([1, 1, 0, 0], abs=0.02)
    parts = training_curve([rows(0)], "gold/a", blocks=4, interleave=5)
    assert parts.proxy.shape == (5, 4)
    assert parts.proxy[1].tolist() == pytest.approx([0.35, 1.35, 2.35, 3.35])  # updates 1 and 6
    assert parts.d == pytest.approx(curve.d)
    with pytest.raises(DataError, match="run 1 logged gold/a at 3 updates; 4 blocks"):
        training_curve([rows(0), rows(1, count=3)], "gold/a", blocks=4)
