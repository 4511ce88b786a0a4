"""Bradley-Terry with annotators: against choix, finite differences and simulated people."""

import choix
import numpy as np
import pytest

from feedback.errors import DataError
from feedback.quality.bradley_terry import _collect, _log_likelihood, fit_bradley_terry
from feedback.records import new_pair
from feedback.schema import Comparison
from feedback.simulate import SimulatedAnnotator


def say(source_a, source_b, label, annotator="ann", swapped=False) -> Comparison:
    return Comparison(
        "p", "x", "y", label, annotator, swapped=swapped, source_a=source_a, source_b=source_b
    )


def simulated(people, strengths, n=4000, seed=0) -> list[Comparison]:
    rng = np.random.default_rng(seed)
    names = sorted(strengths)
    said = []
    for i in range(n):
        one, other = rng.choice(names, 2, replace=False)
        pair = new_pair(f"p{i}", "x", "y", str(one), str(other), {}, seed=seed)
        person = people[i % len(people)]
        said.append(person.judge(pair, strengths[one], strengths[other]))
    return said


def test_the_plain_case_equals_choix() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 0.3, 0.0, -0.5, -1.2])
    games, said = [], []
    for _ in range(300):
        i, j = rng.choice(5, 2, replace=False)
        won = rng.random() < 1 / (1 + np.exp(truth[j] - truth[i]))
        games.append((i, j) if won else (j, i))
        said.append(say(f"m{i}", f"m{j}", "a" if won else "b", swapped=rng.random() < 0.5))
    found = fit_bradley_terry(said, reliability=False, position=False, l2=0.05)
    expected = choix.opt_pairwise(5, games, alpha=0.05, tol=1e-12)
    expected = expected - expected.mean()
    ours = [found.strengths[f"m{i}"] for i in range(5)]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert list(found.strengths) == [f"m{i}" for i in np.argsort(-expected)]


def test_two_policies_by_hand() -> None:
    """75 of 100 wins is log 3 apart, with standard error 1/sqrt(100 * 0.75 * 0.25)."""
    said = [say("m", "n", "a")] * 75 + [say("m", "n", "b")] * 25
    found = fit_bradley_terry(said, reliability=False, position=False, l2=1e-9)
    assert found.strengths["m"] - found.strengths["n"] == pytest.approx(np.log(3), abs=1e-4)
    assert found.probability("m", "n") == pytest.approx(0.75, abs=1e-5)
    assert 2 * found.errors["m"] == pytest.approx(1 / np.sqrt(100 * 0.75 * 0.25), rel=1e-3)
    assert found.log_likelihood == pytest.approx(75 * np.log(0.75) + 25 * np.log(0.25), abs=1e-6)


def test_the_three_outcomes_are_probabilities() -> None:
    """The log-likelihoods of first, second and tie in one state sum to one, for any parameters."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        s, b, gamma = rng.normal(size=2), rng.normal(size=1), rng.normal(size=1)
        tau = np.exp(rng.normal(size=1) - 1)
        total = 0.0
        for label in ("a", "b", "tie"):
            data = _collect([say("m", "n", label, swapped=True)], ["m", "n"], ["ann"])
            total += np.exp(_log_likelihood((s, b, gamma, tau), data)[0])
        assert total == pytest.approx(1.0, abs=1e-12)


def test_the_gradient_is_that_of_the_likelihood() -> None:
    rng = np.random.default_rng(2)
    people = [SimulatedAnnotator(f"ann{k}", tie_band=0.5, position_bias=0.3) for k in range(3)]
    said = simulated(people, {"m": 0.5, "n": 0.0, "o": -0.4}, n=90)
    data = _collect(said, ["m", "n", "o"], ["ann0", "ann1", "ann2"])
    at = [rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), np.exp(rng.normal(size=3))]
    _, slopes = _log_likelihood(tuple(at), data)
    for block in range(4):
        for i in range(3):
            move = np.zeros(3)
            move[i] = 1e-6
            up, down = list(at), list(at)
            up[block], down[block] = at[block] + move, at[block] - move
            rise = _log_likelihood(tuple(up), data)[0] - _log_likelihood(tuple(down), data)[0]
            assert slopes[block][i] == pytest.approx(rise / 2e-6, rel=1e-4, abs=1e-4)


def test_simulated_people_are_recovered() -> None:
    people = [
        SimulatedAnnotator("blunt", temperature=2.0, seed=1),
        SimulatedAnnotator("lefty", temperature=1.0, position_bias=0.8, seed=2),
        SimulatedAnnotator("sharp", temperature=0.5, seed=3),
        SimulatedAnnotator("tied", temperature=1.0, tie_band=0.7, seed=4),
    ]
    truth = {"best": 1.0, "good": 0.4, "poor": -0.4, "worst": -1.0}
    found = fit_bradley_terry(simulated(people, truth, n=16000))
    assert found.converged
    assert list(found.strengths) == ["best", "good", "poor", "worst"]
    by_name = {fit.annotator: fit for fit in found.annotators}
    betas = [by_name[p.name].reliability for p in people]
    expected = np.array([1 / p.temperature for p in people])
    scale = np.exp(np.log(expected).mean())
    np.testing.assert_allclose(betas, expected / scale, rtol=0.15)
    assert np.log(betas).sum() == pytest.approx(0.0, abs=1e-9)
    for name, value in truth.items():
        assert found.strengths[name] == pytest.approx(value * scale, abs=0.1)
        assert 0.005 < found.errors[name] < 0.1
    assert by_name["lefty"].position_bias == pytest.approx(0.8, abs=0.15)
    for name in ("blunt", "sharp", "tied"):
        assert by_name[name].position_bias == pytest.approx(0.0, abs=0.15)
    assert by_name["tied"].tie_band == pytest.approx(0.7, abs=0.1)
    assert [by_name[n].tie_band for n in ("blunt", "sharp")] == [0, 0]


def test_position_bias_does_not_leak_into_the_policies() -> None:
    """`m` is always stored and shown first, to one who likes the first place."""
    people = [SimulatedAnnotator("lefty", position_bias=1.5)]
    pairs = [new_pair(f"p{i}", "x", "y", "m", "n", {}) for i in range(2000)]
    said = [people[0].judge(p, 0.0, 0.0, swapped=i % 10 == 0) for i, p in enumerate(pairs)]
    naive = fit_bradley_terry(said, position=False)
    aware = fit_bradley_terry(said)
    assert naive.strengths["m"] > 0.4
    assert abs(aware.strengths["m"]) < 0.15


def test_a_policy_that_always_wins_stays_finite() -> None:
    found = fit_bradley_terry([say("m", "n", "a")] * 50)
    assert 1 < found.strengths["m"] < 10
    assert all(np.isfinite(list(found.errors.values())))


def test_only_ties_say_that_policies_are_equal() -> None:
    found = fit_bradley_terry([say("m", "n", "tie")] * 30)
    assert found.strengths == pytest.approx({"m": 0.0, "n": 0.0}, abs=1e-4)
    assert np.isfinite(found.log_likelihood)


def test_storage_order_and_swapping_change_nothing() -> None:
    people = [SimulatedAnnotator("ann", tie_band=0.3, position_bias=0.5)]
    said = simulated(people, {"m": 0.5, "n": 0.0, "o": -0.5}, n=300)
    flipped = {"a": "b", "b": "a", "tie": "tie"}
    turned = [
        say(c.source_b, c.source_a, flipped[c.label], c.annotator, not c.swapped) for c in said
    ]
    one, other = fit_bradley_terry(said), fit_bradley_terry(turned)
    assert other.strengths == pytest.approx(one.strengths, abs=1e-6)
    assert other.annotators[0].position_bias == pytest.approx(
        one.annotators[0].position_bias, abs=1e-6
    )


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 0 judgements"):
        fit_bradley_terry([])
    with pytest.raises(DataError, match="none of the 1 judgements names the policies"):
        fit_bradley_terry([Comparison("p", "x", "y", "a", "ann")])
    with pytest.raises(DataError, match=r"\{m, n\}, \{o, q\}"):
        fit_bradley_terry([say("m", "n", "a"), say("o", "q", "b")])
    with pytest.raises(ValueError, match="l2 must be > 0"):
        fit_bradley_terry([say("m", "n", "a")], l2=0)
    with pytest.raises(DataError, match="'zed'"):
        fit_bradley_terry([say("m", "n", "a")]).probability("m", "zed")


def test_judgements_without_policies_are_counted() -> None:
    found = fit_bradley_terry([say("m", "n", "a"), Comparison("p", "x", "y", "a", "ann")])
    assert (found.n, found.left_out) == (1, 1)
