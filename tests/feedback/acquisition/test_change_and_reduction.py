"""Expected model change and expected error reduction, against plain refits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from feedback.acquisition import change, design, reduction
from feedback.errors import DataError

Z = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])


def test_gradient_length_by_hand():
    found = change.expected_gradient_length(Z, [0.5, 0.9, 1.0])
    assert found == pytest.approx([2 * 0.25 * 5, 2 * 0.09, 0.0])


def test_gradient_length_is_the_expectation_of_the_gradient():
    rng = np.random.default_rng(0)
    z, p = rng.normal(size=(20, 3)), rng.random(20)
    length = np.linalg.norm(z, axis=1)
    expected = p * np.abs(p - 1) * length + (1 - p) * np.abs(p) * length
    assert change.expected_gradient_length(z, p) == pytest.approx(expected)


def test_embeddings_by_hand_and_turning_a_pair_leaves_them():
    p = np.array([0.75, 0.25, 0.5])
    found = change.gradient_embeddings(Z, p)
    assert found == pytest.approx(np.array([[-0.75, -1.0], [0.25, 0.0], [0.0, -1.0]]))
    uneven = np.array([0.75, 0.25, 0.6])
    there = change.gradient_embeddings(-Z, 1 - uneven)
    assert there == pytest.approx(change.gradient_embeddings(Z, uneven))


def test_badge_starts_at_the_longest_and_draws_by_squared_distance():
    points = np.array([[5.0, 0.0], [5.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    rng = np.random.default_rng(0)
    seconds = []
    for _ in range(600):
        places, distances = change.k_means_plus_plus(points, 2, rng)
        assert places[0] == 0
        assert distances[0] == pytest.approx(25)
        assert distances[1] == pytest.approx({2: 25, 3: 50}[int(places[1])])
        seconds.append(int(places[1]))
    # Chances 25 : 50; four standard errors of the share.
    assert seconds.count(3) / 600 == pytest.approx(2 / 3, abs=4 * (2 / 9 / 600) ** 0.5)
    assert 1 not in seconds


def test_badge_takes_copies_only_when_nothing_else_is_left():
    points = np.ones((5, 2))
    places, _ = change.k_means_plus_plus(points, 9, np.random.default_rng(0))
    assert sorted(places.tolist()) == [0, 1, 2, 3, 4]


def plain_step(z, label, weights, precision):
    """One Newton step on the posterior with one more label, by inverting its Hessian."""
    p = expit(z @ weights)
    h = precision + p * (1 - p) * np.outer(z, z)
    return weights + np.linalg.inv(h) @ (z * (label - p))


def test_reduction_is_that_of_a_newton_step():
    rng = np.random.default_rng(3)
    z, others, weights = rng.normal(size=(7, 3)), rng.normal(size=(9, 3)), rng.normal(size=3)
    precision = design.information(z[:4], expit(z[:4] @ weights), 0.7)

    def risks(kind, w):
        p = expit(others @ w)
        if kind == "entropy":
            return float(np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p)))
        return float(np.minimum(p, 1 - p).mean())

    for kind in ("entropy", "error"):
        expected = []
        for one in z:
            p = expit(one @ weights)
            after = p * risks(kind, plain_step(one, 1, weights, precision))
            after += (1 - p) * risks(kind, plain_step(one, 0, weights, precision))
            expected.append(risks(kind, weights) - after)
        found = reduction.expected_error_reduction(
            z, z @ weights, precision, others, others @ weights, risk=kind
        )
        assert found == pytest.approx(expected)


def test_what_the_others_do_not_share_reduces_nothing():
    others = np.array([[1.0, 0.0]] * 3)
    found = reduction.expected_error_reduction(
        [[0.0, 5.0], [5.0, 0.0]], [0.0, 0.0], np.eye(2), others, np.zeros(3)
    )
    assert found[0] == pytest.approx(0)
    assert found[1] > 0.01


@pytest.mark.parametrize(
    ("change_", "said"),
    [
        ({"risk": "loss"}, "risk is 'loss'; 'entropy' or 'error'"),
        ({"others": np.zeros((0, 2)), "other_margins": []}, "others is empty"),
        ({"others": np.ones((1, 3)), "other_margins": [0.0]}, "width 3, differences of 2"),
        ({"margins": [0.0]}, "differences has 3, margins has 1"),
    ],
)
def test_bad_input_is_named(change_, said):
    given = {
        "differences": Z,
        "margins": np.zeros(3),
        "precision": np.eye(2),
        "others": Z,
        "other_margins": np.zeros(3),
    } | change_
    with pytest.raises(DataError, match=said):
        reduction.expected_error_reduction(**given)
