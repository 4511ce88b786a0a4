"""Chance in the choice, and the two answers of one prompt to compare."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from feedback.acquisition import committee, duels, explore
from feedback.errors import DataError

RNG = np.random.default_rng
SURE = np.array([[3.0, 2.0, 0.0, -1.0]] * 4)  # all members agree


def test_epsilon_zero_is_the_best_and_one_is_even():
    scores = np.arange(20.0)
    best, lucky = explore.epsilon_mix(scores, 5, 0.0, RNG(0))
    assert best.tolist() == [19, 18, 17, 16, 15]
    assert not lucky.any()
    drawn = [explore.epsilon_mix(scores, 5, 1.0, RNG(seed))[0] for seed in range(400)]
    share = np.bincount(np.concatenate(drawn), minlength=20) / 400
    assert share == pytest.approx(np.full(20, 0.25), abs=4 * (0.25 * 0.75 / 400) ** 0.5)


def test_epsilon_draws_its_share_and_nothing_twice():
    scores = np.arange(50.0)
    counts = []
    for seed in range(300):
        places, lucky = explore.epsilon_mix(scores, 10, 0.3, RNG(seed))
        assert len(set(places.tolist())) == 10
        kept = 10 - int(lucky.sum())
        assert places[:kept].tolist() == list(range(49, 49 - kept, -1))
        counts.append(int(lucky.sum()))
    assert np.mean(counts) == pytest.approx(3, abs=4 * (10 * 0.21 / 300) ** 0.5)


def test_power_sampling_draws_in_proportion():
    scores = np.array([0.1, 0.3, 0.6, 0.0])
    firsts = [int(explore.power_sample(scores, 1, RNG(seed))[0][0]) for seed in range(1000)]
    share = np.bincount(firsts, minlength=4) / 1000
    assert share[:3] == pytest.approx(scores[:3], abs=4 * 0.25**0.5 / 1000**0.5)
    assert share[3] == 0
    places, noisy = explore.power_sample(scores, 4, RNG(0))
    assert places[-1] == 3
    assert (np.diff(noisy) <= 0).all()


def test_power_zero_is_even_and_great_power_is_the_best():
    scores = np.array([0.1, 0.3, 0.6])
    firsts = [int(explore.power_sample(scores, 1, RNG(s), 0.0)[0][0]) for s in range(600)]
    assert np.bincount(firsts) / 600 == pytest.approx(np.full(3, 1 / 3), abs=0.08)
    assert {int(explore.power_sample(scores, 1, RNG(s), 200.0)[0][0]) for s in range(50)} == {2}


def test_all_rules_agree_where_members_do():
    for seed in range(20):
        assert duels.drts(SURE, RNG(seed)) == (0, 3)
        assert duels.double_thompson(SURE, RNG(seed))[0] == 0
    assert duels.delta_ucb(SURE) == (0, 3)
    assert duels.information_directed(SURE) == (0, 1)
    seconds = {duels.double_thompson(SURE, RNG(seed))[1] for seed in range(60)}
    assert seconds == {1, 2, 3}  # any other where all agree


def test_thompson_takes_members_as_often_as_they_are():
    rewards = np.array([[1.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 1.0]])
    found = [duels.double_thompson(rewards, RNG(seed)) for seed in range(400)]
    assert set(found) == {(0, 2), (2, 0)}
    assert found.count((0, 2)) / 400 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 400) ** 0.5)


def test_drts_takes_best_of_one_and_worst_of_another():
    rewards = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    found = [duels.drts(rewards, RNG(seed)) for seed in range(200)]
    # The same answer twice is never asked, so a best of 0 goes with a worst of 2.
    assert set(found) == {(0, 2), (2, 0)}


def test_delta_ucb_by_hand():
    rewards = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, -1.5]])
    # Means 1, 0, -0.5; deviations 0, 0, 1: gaps + width: (0,2) 2.5, (0,1) 1, (1,2) 1.5, (2,1) 0.5.
    assert duels.delta_ucb(rewards) == (0, 2)
    shared = np.array([[1.0, 0.0, 0.6], [11.0, 10.0, 10.6]])  # members differ by a constant only
    assert duels.delta_ucb(shared, joint=True) == (0, 1)
    # Each deviates by 5, 5, 0, and so do the differences from the third: (0,1) 11 or 1, (0,2) 10.4.
    half = np.array([[1.0, 0.0, 0.6], [11.0, 10.0, 0.6]])
    assert duels.delta_ucb(half) == (0, 1)
    assert duels.delta_ucb(half, joint=True) == (0, 2)
    doubtful = np.array([[1.0, 0.0, 0.3, 2.0], [1.0, 0.0, 0.3, -2.2]])
    assert duels.delta_ucb(doubtful, width=0.0) == (0, 3)  # means 1 and -0.1
    assert duels.delta_ucb(doubtful, width=2.0) == (0, 3)
    assert duels.delta_ucb(np.array([[1.0, 0.0, 0.4], [1.0, 0.0, -0.2]]), 0.0) == (0, 1)
    assert duels.delta_ucb(np.array([[1.0, 0.0, 0.4], [1.0, 0.0, -0.2]]), 1.0) == (0, 2)


def test_information_directed_by_definition():
    rewards = RNG(5).normal(size=(6, 4))
    best, ratios = None, {}
    for i in range(4):
        for j in range(i + 1, 4):
            regret = np.mean([max(r) - (r[i] + r[j]) / 2 for r in rewards])
            told = committee.bald(expit(rewards[:, [i]] - rewards[:, [j]]))[0]
            ratios[i, j] = regret**2 / told
    best = min(ratios, key=ratios.get)
    assert duels.information_directed(rewards) == best


@pytest.mark.parametrize("rule", sorted(duels.RULES))
def test_every_rule_gives_two_answers_of_each_prompt(rule):
    rewards = [RNG(i).normal(size=(3, 2 + i % 4)) for i in range(12)]
    found = duels.build_pairs(rewards, rule, RNG(0))
    assert len(found) == 12
    for (i, j), one in zip(found, rewards, strict=True):
        assert i != j
        assert {i, j} <= set(range(one.shape[1]))
    assert found == duels.build_pairs(rewards, rule, RNG(0))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: explore.epsilon_mix([1.0], 1, 1.5, RNG(0)), r"epsilon is 1\.5; a chance"),
        (lambda: explore.power_sample([-1.0], 1, RNG(0)), r"scores\[0\] is -1; power sampling"),
        (lambda: explore.power_sample([1.0], 1, RNG(0), np.inf), "power is inf"),
        (lambda: duels.build_pairs([SURE], "best", RNG(0)), "no rule 'best'. Fix: one of double"),
        (lambda: duels.build_pairs([SURE, SURE[:, :1]], "drts", RNG(0)), "prompt 1: rewards has"),
        (lambda: duels.delta_ucb(SURE, -1.0), r"width is -1\.0"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()
