"""Items that stand for the rest, embeddings of text, and BAL-PM's term."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from feedback.acquisition import coverage, prompts
from feedback.acquisition.geometry import neighbour_distances
from feedback.errors import DataError

LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])


def test_k_center_by_hand():
    places, radii = coverage.k_center(LINE, 3, covered=[[0.0]])
    assert places.tolist() == [4, 2, 1]  # after 11: 2 is 2 from 0; then 1 and 10 are 1 away
    assert radii == pytest.approx([11.0, 2.0, 1.0])
    first, radius = coverage.k_center(LINE, 1)
    assert first.tolist() == [2]  # nearest the mean, 4.8
    assert np.isinf(radius[0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_k_center_takes_places_once_and_radii_fall(seed, k):
    points = np.random.default_rng(seed).integers(0, 3, size=(12, 2)).astype(float)  # copies
    places, radii = coverage.k_center(points, k, covered=points[:1])
    assert len(set(places.tolist())) == k
    assert (np.diff(radii) <= 1e-12).all()


def test_k_means_takes_one_of_each_cluster():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.01, size=(n, 2)) for c, n in ((0, 9), (5, 6), (9, 3))])
    places = coverage.k_means(points, 3, np.random.default_rng(1))
    assert [int(p > 8) + int(p > 14) for p in places] == [0, 1, 2]  # the largest first
    members = points[:9]
    middle = int(np.square(members - members.mean(axis=0)).sum(axis=1).argmin())
    assert places[0] == middle


def test_k_means_of_copies_gives_as_many_as_asked():
    points = np.repeat(np.eye(2), 4, axis=0)
    places = coverage.k_means(points, 5, np.random.default_rng(0))
    assert len(set(places.tolist())) == 5


def test_typicality_by_hand():
    found = coverage.typicality(LINE, neighbours=2)
    assert found == pytest.approx([1 / 1.5, 1.0, 1 / 1.5, 1 / 4.5, 1 / 5], rel=1e-5)


def test_typical_starts_with_the_largest_cluster_that_has_no_label():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(c, 0.05, size=(n, 2)) for c, n in ((0, 9), (5, 6), (9, 3))])
    places, _ = coverage.typical(points, 2, np.random.default_rng(0), covered=[[0.0, 0.0]])
    assert [9 <= places[0] < 15, places[1] >= 15] == [True, True]
    cluster = points[9:15]
    assert places[0] - 9 == coverage.typicality(cluster).argmax()


def test_typical_fills_the_batch_and_takes_none_twice():
    points = np.random.default_rng(0).normal(size=(7, 2))
    places, _ = coverage.typical(points, 7, np.random.default_rng(0), covered=points[:3])
    assert sorted(places.tolist()) == list(range(7))


def test_density_is_the_mean_cosine():
    points = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert coverage.density(points) == pytest.approx([0.5, 0.25, 0.5, 0.0])


def test_neighbours_in_chunks_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3))
    whole = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)
    assert neighbour_distances(points, points, 4, itself=True) == pytest.approx(whole[:, 1:5])


def test_embedded_texts_are_near_where_words_are_shared():
    texts = ["How do I bake bread?", "how do I bake BREAD", "Name a river in Peru", ""]
    found = prompts.embed_texts(texts)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 0])
    assert found[0] @ found[1] == pytest.approx(1)
    assert abs(found[0] @ found[2]) < 0.3
    assert (prompts.embed_texts(texts) == found).all()
    assert prompts.embed_texts(["a"], 8).shape == (1, 8)


def test_prompt_entropy_by_hand():
    found = prompts.prompt_entropy(LINE, [[0.5], [1.2]], neighbours=2)
    # The second neighbours among all: of 0 at 1, of 1 at 0.5, of 2 at 1, of 10 at 8, of 11 at 9.
    radius = np.array([1.0, 0.5, 1.0, 8.0, 9.0])
    near = np.array([1, 2, 1, 0, 0])
    assert found[:3] == pytest.approx(np.log(radius[:3]) - digamma(near[:3] + 1))
    assert found[4] == pytest.approx(np.log(9.0) - digamma(1))


def test_bal_pm_spreads_prompts_and_beta_zero_does_not():
    rng = np.random.default_rng(0)
    where = np.concatenate([rng.normal(0, 0.1, (30, 2)), rng.normal(8, 0.1, (30, 2))])
    scores = np.concatenate([np.full(30, 0.5), np.full(30, 0.45)]) + 1e-4 * rng.random(60)
    alone, _ = prompts.bal_pm(scores, where, 10, beta=0.0)
    assert (alone < 30).all()
    assert alone.tolist() == np.argsort(-scores)[:10].tolist()
    how = {"beta": 0.05, "neighbours": 25, "dimension": 1}
    both, values = prompts.bal_pm(scores, where, 10, **how)
    assert 3 <= (both < 30).sum() <= 7
    first = scores + 0.05 * prompts.prompt_entropy(where, neighbours=25, dimension=1)
    assert (both[0], values[0]) == (first.argmax(), pytest.approx(first.max()))
    done, _ = prompts.bal_pm(scores, where, 10, asked=where[:30], **how)
    assert (done >= 30).sum() > (both >= 30).sum()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: coverage.k_center(LINE, 0), "k is 0"),
        (lambda: coverage.k_center(LINE, 1, [[0.0, 1.0]]), "covered is of width 2, points of 1"),
        (lambda: coverage.typicality([[1.0]]), "1 point has no neighbours"),
        (lambda: prompts.bal_pm([1.0] * 5, LINE, 1, beta=-1), "beta is -1"),
        (lambda: prompts.bal_pm([1.0], LINE, 1, beta=1), "scores has 1, prompts has 5"),
        (lambda: prompts.prompt_entropy([[1.0]]), "1 prompt has no neighbours"),
        (lambda: prompts.prompt_entropy(LINE, [[1.0, 2.0]]), "asked is of width 2, prompts of 1"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()
