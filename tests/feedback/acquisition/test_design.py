"""D-optimal design: the Hessian by hand, exact updates, and streaming that gives the same batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from feedback.acquisition import design
from feedback.errors import DataError


def pool(seed: int, count: int = 60, width: int = 4, copies: int = 0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, width))
    if copies:
        z = np.concatenate([z, z[rng.integers(5, size=copies)]])
        z = z[rng.permutation(len(z))]
    return z, expit(z @ rng.normal(size=width))


def by_determinants(z, p, k, precision):
    """Greedy by computing every determinant anew: the definition."""
    taken: list[int] = []
    gains = []
    h = precision.copy()
    for _ in range(k):
        base = np.linalg.slogdet(h)[1]
        values = [
            -np.inf
            if i in taken
            else np.linalg.slogdet(h + p[i] * (1 - p[i]) * np.outer(z[i], z[i]))[1] - base
            for i in range(len(z))
        ]
        best = int(np.argmax(values))
        taken.append(best)
        gains.append(values[best])
        h = h + p[best] * (1 - p[best]) * np.outer(z[best], z[best])
    return taken, gains


def test_precision_and_gain_by_hand():
    z = np.array([[2.0, 0.0], [0.0, 1.0]])
    h = design.information(z, [0.5, 0.2], prior=1.0)
    assert h == pytest.approx(np.array([[2.0, 0.0], [0.0, 1.16]]))
    gains = design.d_gains([[1.0, 0.0], [0.0, 2.0]], [0.5, 0.5], h)
    assert gains == pytest.approx([math.log(1 + 0.25 / 2), math.log(1 + 0.25 * 4 / 1.16)])
    more = design.information(z[:1], [0.5], prior=0, start=h)
    assert more == pytest.approx(h + np.diag([1.0, 0.0]))


@pytest.mark.parametrize("seed", range(4))
def test_rank_one_updates_are_the_determinants(seed):
    z, p = pool(seed)
    precision = design.information(z[:3], p[:3], 0.5)
    found, gains = design.greedy_d_optimal(z, p, 12, precision)
    places, expected = by_determinants(z, p, 12, precision)
    assert found.tolist() == places
    assert gains == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 15), st.integers(5, 60))
def test_a_stream_gives_the_batch_of_the_whole(seed, rows, k, reserve):
    z, p = pool(seed, count=50, copies=40)
    precision = design.information(z[:2], p[:2], 0.3)
    found, gains = design.greedy_d_optimal(z, p, k, precision)

    def read():
        for start in range(0, len(z), rows):
            yield z[start : start + rows], p[start : start + rows]

    streamed = design.stream_d_optimal(read, k, precision, reserve=max(reserve, k))
    # Copies gain the same: which of them is taken is no matter, what it gains is.
    assert streamed.gains == pytest.approx(gains)
    assert z[streamed.index] == pytest.approx(z[found])
    assert len(set(streamed.index.tolist())) == k
    assert streamed.passes >= 1


def test_a_small_reserve_reads_again_and_a_whole_one_does_not():
    z, p = pool(3, count=200, width=8)
    precision = np.eye(8)
    small = design.stream_d_optimal(lambda: [(z, p)], 40, precision, reserve=40)
    great = design.stream_d_optimal(lambda: [(z, p)], 40, precision, reserve=200)
    assert small.passes > 1
    assert great.passes == 1
    assert small.index.tolist() == great.index.tolist()


def test_near_duplicates_do_not_fill_the_batch():
    rng = np.random.default_rng(0)
    z = np.concatenate([3 * np.eye(5)[:1] + 0.001 * rng.normal(size=(80, 5)), np.eye(5)])
    found, _ = design.greedy_d_optimal(z, np.full(85, 0.5), 6, np.eye(5) * 0.1)
    assert {81, 82, 83, 84} <= set(found.tolist())
    alone = np.argsort(-design.d_gains(z, np.full(85, 0.5), np.eye(5) * 0.1))[:6]
    assert not {81, 82, 83, 84} & set(alone.tolist())


def test_gains_fall_and_all_are_taken_when_few():
    z, p = pool(5, count=6)
    found, gains = design.greedy_d_optimal(z, p, 50, np.eye(4))
    assert sorted(found.tolist()) == list(range(6))
    assert (np.diff(gains) <= 1e-12).all()
    streamed = design.stream_d_optimal(lambda: [(z, p)], 50, np.eye(4))
    assert sorted(streamed.index.tolist()) == list(range(6))


def test_turned_pairs_gain_the_same():
    z, p = pool(6)
    assert design.d_gains(-z, 1 - p, np.eye(4)) == pytest.approx(design.d_gains(z, p, np.eye(4)))


def test_the_posterior_of_reward_laplace_is_the_same():
    """What `reward.laplace` fits and what this package assumes are one Hessian."""
    from reward.laplace import bradley_terry_hessian

    z, _ = pool(7)
    weight = np.random.default_rng(1).normal(size=4)
    theirs = bradley_terry_hessian(torch.tensor(z), torch.tensor(weight)).numpy()
    ours = design.information(z, expit(z @ weight), prior=1.0) - np.eye(4)
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: design.information(np.eye(2), [0.5, 0.5], 0.0), r"prior is 0\.0; a precision > 0"),
        (
            lambda: design.information(np.eye(2), [0.5], 1.0),
            "differences has 2, prob",
        ),
        (lambda: design.d_gains(np.eye(2), [0.5, 0.5], np.eye(3)), r"\(2, 2\) is expected"),
        (lambda: design.d_gains(np.eye(2), [0.5, 0.5], -np.eye(2)), "not positive definite"),
        (lambda: design.d_gains(np.eye(2), [0.5, 2.0], np.eye(2)), r"holds 2; probabilities"),
        (lambda: design.stream_d_optimal(list, 5, np.eye(2), reserve=4), "at least k = 5 rows"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()


def test_an_empty_stream_gives_nothing():
    found = design.stream_d_optimal(list, 3, np.eye(2))
    assert (len(found.index), found.passes) == (0, 1)
