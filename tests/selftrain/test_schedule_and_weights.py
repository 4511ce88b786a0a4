"""Thresholds over rounds, ReST's steps, and how much pseudo-labels may weigh."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.selftrain.schedule import improve_step, quantile_threshold, tau_at
from align.selftrain.weights import capped_weights

# The first draw of a process reads constants from every module that is loaded.
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHARES = st.floats(0.5, 0.999)


def test_tau_falls_in_equal_steps():
    assert [tau_at(0.95, 0.8, n, 4) for n in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.95, 0.9, 0.85, 0.8, 0.8]
    )
    assert tau_at(0.95, 0.8, 1, 1) == 0.95
    with pytest.raises(ValueError, match="counted from 1"):
        tau_at(0.95, 0.8, 0, 3)


@PROPERTY
@given(SHARES, SHARES, st.integers(1, 9), st.integers(1, 9))
def test_tau_stays_between_its_ends_and_never_turns(a, b, number, rounds):
    first, last = max(a, b), min(a, b)
    now, later = (tau_at(first, last, n, rounds) for n in (number, number + 1))
    assert last - 1e-12 <= later <= now <= first + 1e-12


@PROPERTY
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_a_score_and_keeps_about_its_share(scores, quantile):
    threshold = quantile_threshold(scores, quantile)
    assert threshold in scores
    kept = sum(score >= threshold for score in scores)
    assert kept >= 1
    above = sum(score > threshold for score in scores)
    assert above <= (1 - quantile) * (len(scores) - 1) + 1e-6


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 scores"):
        quantile_threshold([], 0.5)


@pytest.mark.parametrize(
    ("history", "step"),
    [
        ([], 0),
        ([True], 1),
        ([True, True], 2),
        ([True, True, True], 0),
        ([False], 0),  # a first step that brought nothing: draw anew
        ([True, False], 0),
        ([True, False, True], 1),
        ([True, True, True, True], 1),
    ],
)
def test_improve_steps_rise_until_one_fails(history, step):
    assert improve_step(history, 3) == step
    assert improve_step(history, 1) == 0


@PROPERTY
@given(
    st.floats(0, 1000),
    st.lists(st.floats(0.5, 1.0), max_size=50),
    st.floats(0.001, 5),
)
def test_pseudo_labels_never_outweigh_their_cap(human, confidence, most):
    weights = capped_weights(human, confidence, most)
    assert weights.sum() <= most * human + 1e-6
    assert ((weights >= 0) & (weights <= 1)).all()
    order = np.argsort(confidence, kind="stable")
    assert (np.diff(weights[order]) >= -1e-12).all()  # the surer, the heavier


def test_weights_are_certainties_until_the_cap_binds():
    assert capped_weights(100, [0.9, 0.75], 0.5) == pytest.approx([0.8, 0.5])
    assert capped_weights(1, [0.9, 0.75], 0.5) == pytest.approx([0.8 / 2.6, 0.5 / 2.6])
    assert capped_weights(10, [0.5], 0.5).tolist() == [0.0]
    with pytest.raises(ValueError, match="confidences lie"):
        capped_weights(1, [0.4], 1)
