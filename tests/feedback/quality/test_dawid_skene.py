"""Dawid and Skene against crowd-kit, against its own objective and against a known truth."""

import numpy as np
import pandas
import pytest
from crowdkit.aggregation import DawidSkene

from feedback.errors import DataError
from feedback.quality.dawid_skene import MIRROR, dawid_skene, dawid_skene_pairs
from feedback.schema import Comparison

LABELS = ["a", "b", "tie"]

# crowd-kit 1.4.2 on make_votes(0), the eight least certain items:
#   DawidSkene(n_iter=500, tol=-1e9).fit_predict_proba(
#       pandas.DataFrame(votes, columns=["task", "worker", "label"]))
# tol is off because its stop, on a bound that can fall, comes before convergence.
CROWD_KIT = {
    "item4": [0.0, 0.076206, 0.923794],
    "item12": [0.0, 0.562818, 0.437182],
    "item15": [0.950279, 0.049721, 0.0],
    "item17": [0.811744, 0.188256, 0.0],
    "item25": [0.840573, 0.159427, 0.0],
    "item29": [0.875614, 0.102065, 0.022321],
    "item35": [0.0, 0.830865, 0.169135],
    "item43": [0.0, 0.93902, 0.06098],
}


def crowd_kit(votes, labels, items, steps: int) -> np.ndarray:
    frame = pandas.DataFrame(votes, columns=["task", "worker", "label"])
    found = DawidSkene(n_iter=steps, tol=-1e9).fit_predict_proba(frame)
    return found.loc[list(items)][list(labels)].to_numpy()


def test_posteriors_equal_crowd_kits_numbers(make_votes) -> None:
    found = dawid_skene(make_votes(0), labels=LABELS, tolerance=1e-12).posteriors()
    for item, expected in CROWD_KIT.items():
        assert list(found[item].values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_step_equals_crowd_kits(make_votes, seed) -> None:
    votes = make_votes(seed, items=150)
    for steps in (1, 10, 50):
        model = dawid_skene(votes, labels=LABELS, max_iterations=steps)
        assert not model.converged
        expected = crowd_kit(votes, LABELS, model.items, steps)
        np.testing.assert_allclose(model.posterior, expected, atol=1e-6)


@pytest.mark.data
def test_real_annotators_equal_crowd_kit(pandalm_votes) -> None:
    model = dawid_skene(pandalm_votes, labels=LABELS)
    assert model.reliability() == pytest.approx(
        {"annotator1": 0.9503, "annotator2": 0.9379, "annotator3": 0.9590}, abs=1e-3
    )
    assert model.converged
    expected = crowd_kit(pandalm_votes, LABELS, model.items, 50)
    np.testing.assert_allclose(model.posterior, expected, atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("mirror", [None, MIRROR])
@pytest.mark.parametrize("seed", range(6))
def test_the_objective_never_falls(make_votes, seed, mirror, smoothing) -> None:
    votes = make_votes(seed, items=40, missing=0.5)
    model = dawid_skene(votes, labels=LABELS, mirror=mirror, smoothing=smoothing)
    steps = np.diff(model.objective)
    assert len(steps) >= 2
    assert steps.min() > -1e-9
    assert steps.max() > 1e-3  # it does climb


def test_the_objective_is_the_log_likelihood(make_votes) -> None:
    votes = make_votes(7, items=10)
    model = dawid_skene(votes, labels=LABELS)
    said = {name: i for i, name in enumerate(LABELS)}
    person = {name: k for k, name in enumerate(model.annotators)}
    total = 0.0
    for item in model.items:
        shares = model.prior.copy()
        for name, who, label in votes:
            if name == item:
                shares = shares * model.confusion[person[who], :, said[label]]
        total += np.log(shares.sum())
    assert total == pytest.approx(model.objective[-1], abs=1e-6)


def test_reliability_and_truth_are_recovered() -> None:
    rng = np.random.default_rng(0)
    accuracy = [0.95, 0.8, 0.65, 0.5]
    truth = rng.integers(2, size=3000)
    votes = [
        (f"i{i}", f"ann{k}", "ab"[t if rng.random() < p else 1 - t])
        for i, t in enumerate(truth)
        for k, p in enumerate(accuracy)
    ]
    model = dawid_skene(votes)
    assert list(model.reliability().values()) == pytest.approx(accuracy, abs=0.04)
    right = (model.posterior.argmax(axis=1) == truth).mean()
    shares = np.array([vote[2] == "b" for vote in votes]).reshape(-1, 4).mean(axis=1)
    majority = np.where(shares == 0.5, 0.5, (shares > 0.5) == truth).mean()
    assert right > majority + 0.05


def test_an_annotator_who_always_says_the_opposite_is_worth_as_much_as_an_honest_one() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=500)
    votes = []
    for i, t in enumerate(truth):
        for name, p in [("ann", 0.85), ("bob", 0.85), ("cy", 0.85), ("contrary", 0.05)]:
            votes.append((f"i{i}", name, "ab"[t if rng.random() < p else 1 - t]))
    model = dawid_skene(votes)
    assert model.reliability()["contrary"] < 0.15
    with_contrary = (model.posterior.argmax(axis=1) == truth).mean()
    without = dawid_skene([v for v in votes if v[1] != "contrary"])
    assert with_contrary > (without.posterior.argmax(axis=1) == truth).mean()


def test_mirrored_the_storage_order_of_answers_does_not_matter() -> None:
    """Turning some pairs round turns their posteriors round and changes nothing else."""
    rng = np.random.default_rng(2)
    said, turned = [], []
    for i in range(60):
        truth = rng.random() < 0.7
        for k, p in enumerate([0.9, 0.8, 0.6]):
            label = "a" if (rng.random() < p) == truth else "b"
            label = "tie" if rng.random() < 0.1 else label
            said.append(Comparison(f"p{i}", "x", "y", label, f"ann{k}"))
            other = {"a": "b", "b": "a", "tie": "tie"}[label] if i % 3 == 0 else label
            x, y = ("y", "x") if i % 3 == 0 else ("x", "y")
            turned.append(Comparison(f"p{i}", x, y, other, f"ann{k}"))
    one, other = dawid_skene_pairs(said), dawid_skene_pairs(turned)
    expected = one.posterior.copy()
    expected[::3] = expected[::3, ::-1]
    np.testing.assert_allclose(other.posterior, expected, atol=1e-8)
    assert other.reliability() == pytest.approx(one.reliability())


def test_posteriors_are_probabilities_even_where_votes_are_impossible() -> None:
    """Annotators who never used a label leave zeros in their matrices."""
    votes = [(f"i{i}", f"ann{k}", "a" if i % 2 else "b") for i in range(6) for k in range(3)]
    votes += [("last", "ann0", "tie"), ("last", "ann1", "a")]
    model = dawid_skene(votes, labels=LABELS)
    assert np.isfinite(model.posterior).all()
    assert np.isfinite(model.confusion).all()
    np.testing.assert_allclose(model.posterior.sum(axis=1), 1)
    np.testing.assert_allclose(model.confusion.sum(axis=2), 1)


def test_what_cannot_be_known_is_refused() -> None:
    with pytest.raises(DataError, match="no votes"):
        dawid_skene([])
    with pytest.raises(DataError, match="no item was judged by two of the 2 annotators"):
        dawid_skene([("i", "ann", "a"), ("j", "bob", "b")])
    with pytest.raises(DataError, match="1 annotators"):
        dawid_skene([("i", "ann", "a"), ("i", "ann", "b")])  # repeats are no overlap
    with pytest.raises(ValueError, match="mirror must map every label"):
        dawid_skene([("i", "ann", "a"), ("i", "bob", "b")], mirror={"a": "b"})
    with pytest.raises(ValueError, match="own inverse"):
        dawid_skene([("i", "ann", "a"), ("i", "bob", "b")], mirror={"a": "b", "b": "b"})
    with pytest.raises(ValueError, match="smoothing"):
        dawid_skene([("i", "ann", "a"), ("i", "bob", "b")], smoothing=-1)
