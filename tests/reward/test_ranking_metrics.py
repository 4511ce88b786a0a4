"""Measures of order against scikit-learn and scipy, and weighted shares against plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import ndcg_score

from feedback.errors import DataError
from reward.ranking_metrics import (
    best_of,
    expected_ndcg,
    graded_pairs,
    kendall_tau,
    mean_interval,
    ndcg,
    weighted_share,
)
from reward.statistics import share_interval


def drawn(seed: int, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Grades and scores with many ties in both."""
    generator = np.random.default_rng(seed)
    grades = generator.integers(0, 4, size).astype(float)
    grades[0] = 3.0
    grades[1] = 0.0
    return grades, generator.integers(0, 3, size).astype(float)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [None, 1, 3])
def test_ndcg_equals_sklearn(seed, k):
    grades, scores = drawn(seed, 2 + seed % 6)
    assert ndcg(grades, scores, k) == pytest.approx(ndcg_score([grades], [scores], k=k))


def test_ndcg_of_a_drawn_order_is_the_mean_over_orders():
    grades, _ = drawn(3)
    generator = np.random.default_rng(0)
    orders = [ndcg(grades, generator.permutation(5)) for _ in range(4000)]
    assert expected_ndcg(grades) == pytest.approx(np.mean(orders), abs=0.01)
    assert min(orders) < expected_ndcg(grades) - 0.05


def test_ndcg_shifts_negative_grades_and_refuses_nothing_to_gain():
    assert ndcg([-1, -3, -2], [5, 1, 2]) == 1.0
    assert ndcg([-1, -3, -2], [1, 5, 2]) == pytest.approx(ndcg([2, 0, 1], [1, 5, 2]))
    with pytest.raises(DataError, match="above 0"):
        ndcg([0, 0, 0], [1, 2, 3])


@pytest.mark.parametrize("seed", range(10))
def test_kendall_equals_scipy(seed):
    grades, scores = drawn(seed, 6)
    if len(set(scores)) > 1:
        assert kendall_tau(grades, scores) == pytest.approx(stats.kendalltau(grades, scores)[0])
    assert kendall_tau(grades, np.zeros(6)) == 0.0


def test_best_of_shares_ties():
    assert best_of([1, 0, 0, 0], [0.2, 0.1, 0.0, -1]) == 1.0
    assert best_of([1, 0, 0, 0], [0.1, 0.2, 0.0, -1]) == 0.0
    assert best_of([1, 0, 1, 0], [2, 2, 2, 1]) == pytest.approx(2 / 3)


def test_graded_pairs_leave_equal_grades_out():
    assert sorted(graded_pairs([2, 0, 2, 1])) == [(0, 1), (0, 3), (2, 1), (2, 3), (3, 1)]
    assert graded_pairs([1, 1]) == []


def test_equal_weights_are_no_weights():
    generator = np.random.default_rng(0)
    values = generator.choice([0.0, 0.5, 1.0], 60)
    clusters = list(generator.integers(0, 20, 60))
    plain = share_interval(values, clusters)
    weighted = weighted_share(values, np.full(60, 0.25), clusters)
    assert weighted.value == pytest.approx(plain.value)
    assert (weighted.low, weighted.high) == pytest.approx((plain.low, plain.high))
    assert weighted.n == pytest.approx(plain.n)


def test_rows_without_weight_tell_nothing():
    generator = np.random.default_rng(1)
    values = (generator.random(400) < 0.7).astype(float)
    weights = np.repeat([1.0, 0.0], 200)
    found, alone = weighted_share(values, weights), share_interval(values[:200])
    assert found.value == pytest.approx(alone.value)
    assert found.n == pytest.approx(200, rel=0.05)  # Kish: (sum w)^2 / sum w^2
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_weighted_intervals_cover():
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        weights = generator.exponential(size=80)
        found = weighted_share((generator.random(80) < 0.8).astype(float), weights)
        hits += found.low <= 0.8 <= found.high
    assert hits > 360  # 95% of 400 is 380, with a standard deviation of 4.4


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [1]])
def test_weights_that_are_none(weights):
    with pytest.raises(DataError, match="weights"):
        weighted_share([1.0, 0.0], weights)


def test_mean_interval_equals_scipy_and_widens_with_clusters():
    values = np.random.default_rng(3).normal(1, 2, 50)
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 49, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    twice = mean_interval(np.repeat(values, 2), list(np.repeat(np.arange(50), 2)))
    assert (twice.low, twice.high) == pytest.approx((low, high))  # copies tell nothing new
    assert mean_interval([1.0, 2.0], ["a", "a"]).high == np.inf
