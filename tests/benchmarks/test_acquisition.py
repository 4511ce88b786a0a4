"""The seams of both acquisition benchmarks, on small pools."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import acquisition, acquisition_pool
from feedback.acquisition import STRATEGIES, committee, coverage, design


def test_the_pool_is_mostly_near_duplicates():
    world = acquisition_pool.make_world(0, pairs=500)
    z = world.pool.differences
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    near = (np.abs(unit @ unit.T) >= 0.98).sum(axis=1) > 10
    assert near.mean() == pytest.approx(0.8, abs=0.03)
    again = acquisition_pool.make_world(0, pairs=500)
    assert (again.pool.differences == z).all()
    assert (again.labels == world.labels).all()
    assert (acquisition_pool.make_world(1, pairs=500).labels != world.labels).any()


def test_the_fit_is_where_the_gradient_is_nought():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(60, 5)), rng.random(60) < 0.5
    weights = acquisition_pool.fit(z, labels)
    gradient = weights - z.T @ (labels - 1 / (1 + np.exp(-z @ weights)))
    assert np.abs(gradient).max() < 1e-2


@pytest.mark.parametrize("name", ["bald", "d_optimal"])
def test_asking_actively_beats_chance(name):
    """One seed of the benchmark's world with a coarse goal: half the labels of random."""
    world = acquisition_pool.make_world(0, pairs=1500)
    most = 200
    active = acquisition_pool.curve(STRATEGIES[name](), world, 0, most)
    random = acquisition_pool.curve(STRATEGIES["random"](), world, 0, most)
    assert active[0] == random[0]  # the first batch is common
    assert len(active) == most // acquisition_pool.BATCH
    assert active[-1] > random[-1] + 0.05


def test_labels_needed_and_what_is_summed_up():
    assert acquisition_pool.labels_needed([0.1, 0.9, 0.8], 0.85) == 20
    assert acquisition_pool.labels_needed([0.1], 0.85) == float("inf")
    curves = {"random": [[0.5, 0.6], [0.5, 0.7]], "bald": [[0.6, 0.9], [0.9, 0.9]]}
    found = acquisition_pool.summarise(curves, most=30)
    assert found["random"]["labels"] is None
    assert found["random"]["missed"] == 2
    assert found["bald"]["labels"] == 20
    assert found["bald"]["by_seed"]["value"] == 15
    assert found["bald"]["saved_against_random"]["value"] == 15


def test_the_arms_choose_what_the_functions_do(tmp_path):
    acquisition.make_pool(tmp_path / "pool", 3000)
    z = np.load(tmp_path / "pool" / "pool.npy")
    members = np.load(tmp_path / "pool" / "members.npy")
    p = acquisition.probabilities(z, members)
    found, _ = acquisition.choose("bald", tmp_path / "pool")
    assert found == np.argsort(-committee.bald(p), kind="stable")[:100].tolist()
    assert set(acquisition.choose("mean_kl", tmp_path / "pool")[0]) == set(found)
    places, more = acquisition.choose("d_optimal", tmp_path / "pool")
    labelled = np.load(tmp_path / "pool" / "labelled.npy")
    chances = acquisition.probabilities(labelled.astype(np.float32), members).mean(axis=0)
    precision = design.information(labelled, chances, 1.0)
    assert places == design.greedy_d_optimal(z, p.mean(axis=0), 100, precision)[0].tolist()
    assert more["passes"] >= 1
    centres, _ = acquisition.choose("k_center", tmp_path / "pool")
    assert centres == coverage.k_center(z, 100, z[:1])[0].tolist()


def test_the_peer_is_measured_as_ours():
    ours, theirs = {"places": [1, 2, 3, 4], "seconds": 1.0}, {"places": [4, 3, 9, 8]}
    assert acquisition.overlap(ours, theirs) == 0.5
    assert acquisition.bare(ours) == {"seconds": 1.0}
