"""Mahalanobis distances against scikit-learn and scipy; AUROC against counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from feedback.errors import DataError
from reward.errors import ModelError, RewardError
from reward.model import RewardModel
from reward.outliers import FILE, Gaussian, OutlierScore, auroc, ledoit_wolf


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(rows: int, width: int, seed: int) -> torch.Tensor:
    return draw(rows, width, seed=seed) @ draw(width, width, seed=77) + 3.0


@pytest.mark.parametrize("shape", [(200, 6), (12, 30), (2, 5), (40, 1)])
def test_the_covariance_is_scikit_learns(shape):
    rows = correlated(*shape, seed=1)
    theirs = LedoitWolf().fit(rows.numpy())
    covariance, shrinkage = ledoit_wolf(rows)
    assert covariance.numpy() == pytest.approx(theirs.covariance_, rel=1e-9, abs=1e-9)
    if shape[1] > 1:
        assert shrinkage == pytest.approx(theirs.shrinkage_, abs=1e-12)


@pytest.mark.parametrize("shape", [(200, 6), (12, 30)])
def test_distances_are_scikit_learns(shape):
    rows, new = correlated(*shape, seed=1), correlated(9, shape[1], seed=2)
    theirs = LedoitWolf().fit(rows.numpy())
    found = Gaussian.fit(rows).distance(new)
    assert found.numpy() == pytest.approx(theirs.mahalanobis(new.numpy()), rel=1e-8)


def test_what_lies_far_scores_high():
    score = OutlierScore.fit(correlated(500, 8, seed=1))
    near, far = correlated(200, 8, seed=2), correlated(200, 8, seed=3) + 4.0
    found = auroc(torch.cat([score(near), score(far)]), [False] * 200 + [True] * 200)
    assert found.value > 0.9


def test_the_relative_distance_forgives_what_is_odd_everywhere():
    """Ren et al.: one feature varies as widely in any text; only the other tells them apart."""
    training, background = draw(1000, 2, seed=1), draw(1000, 2, seed=2)
    training[:, 0] *= 0.1
    background[:, 0] *= 3.0  # what sets the training data apart
    inside, odd = draw(400, 2, seed=3), draw(400, 2, seed=4)
    inside[:, 0] *= 0.1
    inside[:, 1] += 3.0  # unusual, and as unusual in the background
    odd[:, 0] *= 3.0
    marked = [False] * 400 + [True] * 400
    both = torch.cat([inside, odd])
    relative = OutlierScore.fit(training, background)
    plain = OutlierScore.fit(training)
    assert torch.allclose(
        relative(both), plain(both) - Gaussian.fit(background).distance(both), atol=1e-9
    )
    assert auroc(relative(both), marked).value > auroc(plain(both), marked).value + 0.02


def test_texts_from_elsewhere_are_marked(folder, make_pairs, words):
    model = RewardModel.load(folder)

    def features(seed: int, vocabulary: dict[str, float]) -> torch.Tensor:
        pairs = make_pairs(150, seed=seed, words=vocabulary)
        return model.features([p.prompt for p in pairs], [p.chosen for p in pairs])

    common, rare = words
    score = OutlierScore.fit(features(1, common))
    found = torch.cat([score(features(2, common)), score(features(3, rare))])
    assert auroc(found, [False] * 150 + [True] * 150).low > 0.7


@pytest.mark.parametrize("relative", [False, True])
def test_saved_and_loaded(relative, tmp_path):
    rows = correlated(50, 4, seed=1)
    score = OutlierScore.fit(rows, rows * 2 if relative else None)
    assert score.save(tmp_path / "new").name == FILE
    again = OutlierScore.load(tmp_path / "new")
    assert torch.allclose(again(rows), score(rows), rtol=1e-9)
    assert (again.background is None) != relative
    with pytest.raises(ModelError, match="no outlier score"):
        OutlierScore.load(tmp_path)
    (tmp_path / "new" / FILE).write_bytes(b"0")
    with pytest.raises(ModelError, match="damaged"):
        OutlierScore.load(tmp_path / "new")


def test_what_cannot_be_fitted():
    with pytest.raises(DataError, match="at least 2 rows of features; got 1"):
        OutlierScore.fit(draw(1, 3))
    with pytest.raises(DataError, match="all rows of features are the same"):
        OutlierScore.fit(torch.ones(5, 3))
    with pytest.raises(RewardError, match=r"\(B, 3\) is expected"):
        OutlierScore.fit(draw(9, 3))(draw(9, 4))


def test_auroc_is_scikit_learns_and_its_interval_that_of_resampling():
    draws = np.random.default_rng(0)
    positive = draws.random(300) < 0.3
    scores = np.round(draws.normal(size=300) + positive, 1)  # with ties
    found = auroc(scores, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    resampled = []
    for _ in range(300):
        rows = draws.integers(300, size=300)
        resampled.append(roc_auc_score(positive[rows], scores[rows]))
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_auroc_at_the_ends():
    apart = auroc([1.0, 2.0, 3.0, 4.0] * 10, [False, False, True, True] * 10)
    assert (apart.value, apart.low, apart.high) == (1.0, pytest.approx(0.85), 1.0)
    turned = auroc([1.0, 2.0, 3.0, 4.0] * 10, [True, True, False, False] * 10)
    assert (turned.value, turned.low, turned.high) == (0.0, 0.0, pytest.approx(0.15))
    with pytest.raises(DataError, match="got 0 and 2"):
        auroc([1.0, 2.0], [False, False])
