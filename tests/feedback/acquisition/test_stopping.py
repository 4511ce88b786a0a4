"""Stopping rules: each speaks when it should, and not before."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa, to_table

from feedback.acquisition import stopping
from feedback.errors import DataError

RNG = np.random.default_rng


def test_budget():
    assert stopping.budget_spent(99, 100) is None
    assert stopping.budget_spent(100, 100) == "the budget is spent: 100 of 100"


def test_little_left():
    assert stopping.little_left([0.01, 0.2], 0.1) is None
    assert stopping.little_left([0.01, 0.02], 0.1).startswith("no pair would tell more than 0.0200")
    assert stopping.little_left([0.1], 0.1) is None  # at tau it goes on
    assert stopping.little_left([], 0.1) == "every pair of the pool is labelled"


def test_kappa_is_cohens():
    rng = RNG(0)
    before = rng.random(300)
    after = np.where(rng.random(300) < 0.2, 1 - before, before)
    table = to_table(np.stack([before >= 0.5, after >= 0.5], axis=1).astype(int))[0]
    assert stopping.agreement(before, after) == pytest.approx(cohens_kappa(table).kappa)
    assert stopping.agreement([0.9, 0.1], [0.8, 0.2]) == 1
    assert stopping.agreement([0.9, 0.1], [0.1, 0.9]) == -1
    assert stopping.agreement([0.9, 0.9], [0.8, 0.7]) == 1  # both say the same one thing


def test_predictions_settle():
    p = RNG(0).random(400)
    moved = np.where(np.arange(400) < 40, 1 - p, p)
    assert stopping.predictions_settled([p, p, p]) is None  # two steps are too few
    assert "kappa 1.0000 over the last 3" in stopping.predictions_settled([moved, p, p, p, p])
    assert stopping.predictions_settled([moved, p, p, p]) is None
    assert stopping.predictions_settled([moved, p, p, p], kappa=0.9) is not None


def test_a_gain_outside_its_interval_goes_on():
    before = np.zeros(400)
    after = (np.arange(400) < 60).astype(float)
    assert stopping.gain_gone(before, after) is None


def test_no_gain_on_a_great_holdout_stops():
    before = np.tile([1.0, 0.0], 2500)
    after = before.copy()
    after[:100] = 1 - after[:100]  # fifty better, fifty worse
    assert "+0.000 [-0.004, +0.004] on 5000" in stopping.gain_gone(before, after)
    assert stopping.gain_gone(before, after, resolution=0.003) is None


def test_a_small_holdout_cannot_stop_a_run():
    same = np.ones(20)
    assert stopping.gain_gone(same, same) is None  # 3 / 20 is left possible
    assert stopping.gain_gone(np.ones(400), np.ones(400)) is not None
    noisy = RNG(0).integers(0, 2, size=(2, 60)).astype(float)
    assert stopping.gain_gone(noisy[0], noisy[1]) is None


def test_a_loss_stops():
    before, after = np.ones(300), np.ones(300)
    after[:40] = 0
    assert stopping.gain_gone(before, after).startswith("the holdout's gain of -0.133")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: stopping.little_left([0.1], 0.0), r"tau is 0\.0"),
        (lambda: stopping.agreement([], []), "before is empty"),
        (lambda: stopping.agreement([0.5], [0.5, 0.5]), "before has 1, after has 2"),
        (lambda: stopping.predictions_settled([], kappa=0.0), r"kappa is 0\.0"),
        (lambda: stopping.predictions_settled([], window=0), "window is 0"),
        (lambda: stopping.gain_gone([1.0], [1.0]), "1 items in the holdout"),
        (lambda: stopping.gain_gone([1.0, 1], [1.0, 1], resolution=0), "resolution is 0"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()
