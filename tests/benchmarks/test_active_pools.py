"""Learning curves on real pools: the prior, a curve, and what is made of curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from benchmarks import active_pools
from benchmarks.active_pools import PRIORS, curve, evidence, labels_for, likeliest, summarise
from feedback.acquisition import STRATEGIES, Pool


def pool_of(weights: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, len(weights)))
    return z, rng.random(count) < 1 / (1 + np.exp(-z @ weights))


def test_weak_weights_get_a_narrow_prior_and_strong_ones_a_wide_one():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=8)
    found = [likeliest(*pool_of(scale * direction, 400, 1))[1] for scale in (0.05, 3.0)]
    assert found[0] > 10 >= found[1]
    assert set(found) <= set(PRIORS)


def test_the_evidence_is_laplace_s_integral():
    """One weight, by quadrature: differences between priors agree."""
    z, labels = pool_of(np.array([0.8]), 60, 2)
    grid = np.linspace(-20, 20, 40001)[:, None]
    signs = np.where(labels, 1.0, -1.0)
    loglik = -np.logaddexp(0, -(grid @ z.T) * signs).sum(1)
    exact = []
    for prior in (0.1, 1.0, 10.0):
        density = multivariate_normal.pdf(grid, 0, 1 / prior)
        exact.append(np.log(np.trapezoid(np.exp(loglik) * density, grid[:, 0])))
    ours = [
        evidence(z, labels, active_pools.fit(z, labels, prior), prior) for prior in (0.1, 1.0, 10.0)
    ]
    assert np.diff(ours) == pytest.approx(np.diff(exact), abs=0.02)


def test_a_curve_rises_to_what_all_labels_give(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(active_pools, "MOST", 100)
    weights = np.random.default_rng(0).normal(size=8)
    z, labels = pool_of(weights, 300, 3)
    test = np.random.default_rng(1).normal(size=(500, 8))
    test *= np.sign(test @ weights)[:, None]
    pool = Pool(ids=[str(i) for i in range(300)], differences=z)
    for name in ("random", "bald"):
        found = curve(STRATEGIES[name], pool, labels, test, [0, 0])
        assert len(found) == 5
        assert found[-1] > max(0.8, found[0])
        assert found == curve(STRATEGIES[name], pool, labels, test, [0, 0])


def test_figures_of_made_up_curves():
    runs = [
        {
            "set": "s",
            "seed": seed,
            "pairs": 10,
            "held_out": 5,
            "all": 0.9,
            "curves": {
                "random": [[0.5, 0.6, 0.7, 0.7 + seed / 100]],
                "bald": [[0.5, 0.75, 0.8, 0.8]],
            },
        }
        for seed in range(2)
    ]
    found = summarise(runs)["s"]
    bald = found["strategies"]["bald"]
    assert bald["mean_less_random"]["value"] == pytest.approx((0.0875 + 0.085) / 2)
    assert bald["labels_for_random_s_end"] == 60
    assert found["strategies"]["random"]["labels_for_random_s_end"] == 80
    assert labels_for(np.array([0.1, 0.2, 0.3]), 0.9) is None
