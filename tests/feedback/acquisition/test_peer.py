"""Where scikit-activeml has the same score, ours is equal to it."""

from __future__ import annotations

import numpy as np
import pytest
from skactiveml import pool as skactiveml

from feedback.acquisition import change, committee, coverage, uncertainty


def softmax(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture
def members():
    return softmax(np.random.default_rng(0).normal(size=(5, 80, 3)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (uncertainty.entropy, "entropy"),
        (uncertainty.least_confidence, "least_confident"),
        # Theirs is |first - second| taken from 1.
        (lambda p: 1 + uncertainty.margin(p), "margin_sampling"),
    ],
)
def test_uncertainty(members, ours, theirs):
    found = skactiveml.uncertainty_scores(members[0].copy(), method=theirs)
    assert ours(members[0]) == pytest.approx(found)


def test_mean_divergence(members):
    found = skactiveml.average_kl_divergence(members.copy())
    assert committee.mean_kl(members) == pytest.approx(found)


def test_vote_entropy(members):
    votes = members.argmax(axis=2).T
    found = skactiveml.vote_entropy(votes, classes=[0, 1, 2])
    assert committee.vote_entropy(members) == pytest.approx(found)


def test_bald(members):
    found = skactiveml.batch_bald(members.copy(), batch_size=1, random_state=0)[0]
    assert committee.bald(members) == pytest.approx(found, abs=1e-6)
    pairs = members[:, :, 0]
    both = np.stack([pairs, 1 - pairs], axis=2)
    found = skactiveml.batch_bald(both.copy(), batch_size=1, random_state=0)[0]
    assert committee.bald(pairs) == pytest.approx(found, abs=1e-6)


def test_k_center():
    points = np.random.default_rng(1).normal(size=(60, 4))
    labels = np.full(60, np.nan)
    labels[:2] = 0
    places, distances = skactiveml.k_greedy_center(points, labels, batch_size=8, random_state=0)
    found, radii = coverage.k_center(points, 8, covered=points[:2])
    assert found.tolist() == places.tolist()
    assert radii == pytest.approx(np.nanmax(distances, axis=1))


def test_typicality():
    from skactiveml.pool import _typi_clust  # it is not exported

    points = np.random.default_rng(2).normal(size=(50, 3))
    found = _typi_clust._typicality(points, np.arange(50), 7)
    assert coverage.typicality(points, 7) == pytest.approx(found, rel=1e-4)


def test_badge_draws_with_the_same_chances():
    """For two classes their embedding is ours beside its negative: squared distances are double."""
    from skactiveml.classifier import SklearnClassifier
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 3))
    labels = np.full(40, np.nan)
    labels[:6] = [0, 1, 0, 1, 1, 0]
    clf = SklearnClassifier(LogisticRegression(), classes=[0, 1]).fit(points, labels)
    badge = skactiveml.Badge(random_state=0)
    places, chances = badge.query(
        points, labels, clf, fit_clf=False, batch_size=2, return_utilities=True
    )
    free = np.arange(6, 40)
    embedded = change.gradient_embeddings(points[free], clf.predict_proba(points[free])[:, 1])
    lengths = np.square(embedded).sum(axis=1)
    assert places[0] == free[lengths.argmax()]
    assert lengths / lengths.sum() == pytest.approx(chances[0][free])
    away = np.square(embedded - embedded[lengths.argmax()]).sum(axis=1)
    # Theirs counts the origin as a centre too; the code of the paper does not, nor does ours.
    away = np.minimum(away, lengths)
    away[lengths.argmax()] = np.nan
    assert away / np.nansum(away) == pytest.approx(chances[1][free], nan_ok=True)
