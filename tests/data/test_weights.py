"""Weights of rows against numbers computed by hand; all of them positive with the mean 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.mix import temperature_shares
from align.data.sampling import (
    by_difficulty,
    by_uncertainty,
    class_balanced,
    effective_number,
    recency,
    temperature_mix,
)
from align.data.sampling.times import as_times
from align.errors import DataError

CLASSES = ["a"] * 6 + ["b"] * 2


def share(weights: np.ndarray, rows: slice) -> float:
    return float(weights[rows].sum() / weights.sum())


def test_balanced_classes_are_drawn_alike_and_power_goes_between():
    assert share(class_balanced(CLASSES), slice(6)) == pytest.approx(0.5)
    assert share(class_balanced(CLASSES, 0.0), slice(6)) == pytest.approx(0.75)
    half = 6**0.5 / (6**0.5 + 2**0.5)
    assert share(class_balanced(CLASSES, 0.5), slice(6)) == pytest.approx(half)
    assert class_balanced([1, "1", None, 1]) == pytest.approx([2 / 3, 4 / 3, 4 / 3, 2 / 3])


def test_effective_numbers_by_hand():
    beta = 0.9  # E_6 = (1 - 0.531441) / 0.1 = 4.68559, E_2 = (1 - 0.81) / 0.1 = 1.9
    found = effective_number(CLASSES, beta)
    assert found[6] / found[0] == pytest.approx(4.68559 / 1.9)
    assert effective_number(CLASSES, 0.0) == pytest.approx(np.ones(8))
    assert effective_number(CLASSES, 1 - 1e-9) == pytest.approx(class_balanced(CLASSES), rel=1e-5)
    with pytest.raises(ValueError, match="beta"):
        effective_number(CLASSES, 1.0)


def test_a_half_life_halves():
    found = recency([0.0, 10.0, 20.0], half_life=10)
    assert found / found[2] == pytest.approx([0.25, 0.5, 1.0])
    assert (recency([0.0, 1e9], half_life=1) > 0).all()


def test_times_are_iso_texts_in_days_or_numbers():
    days = as_times(["2026-01-01", "2026-01-02T12:00:00+00:00", "2026-01-02T12:00:00+12:00"], "at")
    assert days - days[0] == pytest.approx([0, 1.5, 1.0])
    assert as_times([3, 4.5], "at") == pytest.approx([3, 4.5])
    with pytest.raises(DataError, match="at: training row 2 has 'yesterday'"):
        as_times(["2026-01-01", "yesterday"], "at")


def test_temperature_mixing_is_conneaus_exponent():
    shares = temperature_shares([900, 100, 0], 0.5)
    assert shares == pytest.approx([0.75, 0.25, 0])
    found = temperature_mix([0] * 90 + [1] * 10, 0.5)
    assert share(found, slice(90)) == pytest.approx(0.75)
    assert temperature_mix([0] * 9 + [1], 1.0) == pytest.approx(np.ones(10))
    assert share(temperature_mix([0] * 9 + [1], 0.0), slice(9)) == pytest.approx(0.5)


def test_difficulty_weights_are_ranks():
    found = by_difficulty([10.0, 1000.0, 20.0, 20.0])
    assert found / found[0] == pytest.approx([1, 4, 2.5, 2.5])
    assert by_difficulty([1.0, 2.0], prefer="easy") == pytest.approx([4 / 3, 2 / 3])
    assert by_difficulty([1.0, 2.0], 2.0) == pytest.approx([0.4, 1.6])


def test_uncertainty_of_a_posterior_or_of_members():
    assert by_uncertainty([0.0, 1.0, 3.0], uniform=0.4) == pytest.approx([0.4, 0.85, 1.75])
    members = [[0.5, 0.5], [0.2, 0.4], [0.1, 0.7]]  # standard deviations 0, 0.1 and 0.3
    assert by_uncertainty(members, uniform=0.4) == pytest.approx([0.4, 0.85, 1.75])
    assert by_uncertainty([0.0, 0.0]) == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="0 or more"):
        by_uncertainty([-1.0, 1.0])
    with pytest.raises(ValueError, match="uniform"):
        by_uncertainty([1.0], uniform=0.0)


numbers = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=40)


@given(numbers, st.floats(0.1, 3))
def test_every_weight_is_positive_with_the_mean_one(values, power):
    for found in (
        by_difficulty(values, power),
        by_uncertainty(values, power),
        class_balanced(values, power),
        effective_number(values, min(0.999, power / 4)),
        recency(values, power),
        temperature_mix(values, power / 3),
    ):
        assert found.shape == (len(values),)
        assert (found > 0).all()
        assert found.mean() == pytest.approx(1)
