"""Pacing functions against numbers computed by hand, and what all of them have in common."""

from __future__ import annotations

import itertools
import math

import pytest

from align.data.curriculum import AdaptiveCompetence, competence
from align.data.curriculum.pacing import PACINGS, exponential, linear, root, sigmoid, stairs

FIXED = [name for name in PACINGS if name != "adaptive"]


def test_linear_by_hand():
    values = [linear(t, 0.2, 10) for t in (0, 5, 10, 99)]
    assert values == pytest.approx([0.2, 0.6, 1.0, 1.0])


def test_root_by_hand():
    assert root(5, 0.2, 10) == pytest.approx(math.sqrt(0.04 + 0.96 / 2))
    assert root(5, 0.2, 10, power=3) == pytest.approx((0.008 + 0.992 / 2) ** (1 / 3))
    assert root(3, 0.2, 10, power=1) == pytest.approx(linear(3, 0.2, 10))


def test_exponential_by_hand():
    assert [exponential(t, 0.25, 2) for t in (0, 1, 2)] == pytest.approx([0.25, 0.5, 1.0])


def test_sigmoid_by_hand():
    assert sigmoid(2.5, 0.2, 10, steepness=10) == pytest.approx(0.256083, abs=1e-6)
    assert sigmoid(5, 0.2, 10) == pytest.approx(0.6)
    assert sigmoid(3, 0.2, 10, steepness=1e-3) == pytest.approx(linear(3, 0.2, 10), abs=1e-6)


def test_stairs_by_hand():
    values = [stairs(t, 0.2, 8, stages=4) for t in (0, 1, 2, 4, 7, 8)]
    assert values == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [stairs(t, 0.3, 8, stages=1) for t in (7, 8)] == pytest.approx([0.3, 1.0])


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("start", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_competence_never_falls_and_ends_with_everything(name, start, steps):
    pacing = competence(name, start, steps)
    values = [pacing(t) for t in range(steps + 3)]
    assert values[0] == pytest.approx(start)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert values[steps:] == pytest.approx([1.0] * 3)
    assert max(values) <= 1 + 1e-12


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "cosine"}, "cosine"),
        ({"start": 0.0}, "start"),
        ({"steps": 0}, "steps"),
        ({"power": 0}, "power"),
        ({"stages": 0}, "stages"),
        ({"steepness": -1}, "steepness"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(change, word):
    with pytest.raises(ValueError, match=word):
        competence(**{"name": "root", "start": 0.2, "steps": 10} | change)


def test_adaptive_grows_when_the_loss_stands_still():
    pacing = AdaptiveCompetence(0.2, increment=0.3, patience=2, min_delta=0.01)
    rose = [pacing.observe(loss, step) for step, loss in enumerate([3.0, 2.0, 1.995, 1.999], 1)]
    assert rose == [False, False, False, True]  # 1.995 falls by less than min_delta
    assert [pacing(t) for t in (0, 3, 4, 50)] == pytest.approx([0.2, 0.2, 0.5, 0.5])
    # a new plateau, from the last loss on; NaN is no improvement
    assert [pacing.observe(loss, 10) for loss in (5.0, math.nan, 5.0)] == [False, True, False]
    assert pacing(10) == pytest.approx(0.8)
    assert [pacing.observe(9.0, 20) for _ in range(9)].count(True) == 1
    assert pacing(20) == 1.0  # and no further


def test_adaptive_shows_everything_at_its_deadline_and_resumes():
    pacing = AdaptiveCompetence(0.5, steps=9)
    pacing.observe(1.0, 2)
    pacing.observe(1.0, 4)
    again = AdaptiveCompetence(0.5, steps=9)
    again.load_state_dict(pacing.state_dict())
    assert [again(t) for t in range(11)] == [pacing(t) for t in range(11)]
    assert [again(t) for t in (3, 4, 8, 9)] == pytest.approx([0.5, 0.6, 0.6, 1.0])
    assert again.observe(1.0, 5) is pacing.observe(1.0, 5)


@pytest.mark.parametrize("change", [{"start": 0}, {"increment": 0}, {"patience": 0}, {"steps": 0}])
def test_adaptive_refuses_numbers_out_of_range(change):
    (name,) = change
    with pytest.raises(ValueError, match=name):
        AdaptiveCompetence(**{"start": 0.2} | change)
