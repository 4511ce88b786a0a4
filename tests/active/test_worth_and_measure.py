"""Information per minute, the curve's figures and the rules, against values known beforehand."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy.special import expit

from align.active.measure import against_random, holdout_accuracy, random_rows
from align.active.said import credit
from align.active.stop import Rules
from align.active.worth import better_kind, ranking_information, seconds_of
from align.errors import DataError
from feedback.acquisition import Holdout
from feedback.acquisition.committee import bald


def test_a_ranking_of_two_is_bald():
    rewards = np.random.default_rng(0).normal(size=(5, 2)) * 3
    pair = bald(expit(rewards[:, :1] - rewards[:, 1:]))[0]
    assert ranking_information(rewards) == pytest.approx(pair, abs=1e-12)


def test_a_ranking_by_hand():
    """Two members of opposite opinion about three answers; orders enumerated one by one."""
    rewards = np.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    tables = []
    for r in rewards:
        table = []
        for order in permutations(range(3)):
            chance, left = 1.0, list(order)
            for place in order:
                chance *= math.exp(r[place]) / sum(math.exp(r[j]) for j in left)
                left.remove(place)
            table.append(chance)
        tables.append(table)
    mean = [(a + b) / 2 for a, b in zip(*tables, strict=True)]
    entropy = lambda p: -sum(x * math.log(x) for x in p)  # noqa: E731
    wanted = entropy(mean) - (entropy(tables[0]) + entropy(tables[1])) / 2
    assert ranking_information(rewards) == pytest.approx(wanted)
    assert ranking_information(np.ones((3, 4))) == pytest.approx(0, abs=1e-12)
    huge = np.array([[1e3, 0.0, -1e3], [-1e3, 0.0, 1e3]])
    assert ranking_information(huge) == pytest.approx(math.log(2))
    for bad in (np.ones((1, 3)), np.ones((2, 1)), np.ones((2, 7))):
        with pytest.raises(DataError, match="2 to 6 answers"):
            ranking_information(bad)


def test_times_are_measured_or_assumed_and_say_so():
    assert seconds_of("pair", {}, 4) == (1.0, "not timed yet")
    pairs = {"pair": (8.0, 10.0, 12.0, 9.0, 50.0)}
    assert seconds_of("pair", pairs, 4) == (10.0, "median time of 5")
    seconds, why = seconds_of("ranking", pairs, 4)
    assert seconds == pytest.approx(10 * math.log2(24))
    assert "assumed" in why
    timed = pairs | {"ranking 4": (20.0,) * 5, "ranking 3": (1.0,) * 5}
    assert seconds_of("ranking", timed, 4) == (20.0, "median time of 5")


def test_the_kind_that_tells_more_a_minute():
    times = {"pair": (10.0,) * 5, "ranking 4": (30.0,) * 5}
    nats = [0.1] * 30
    even = better_kind(nats, [0.3] * 30, 4, 12, times)
    assert (even.kind, even.pair_rate) == ("pair", pytest.approx(0.6))  # not by a tenth more
    assert even.ranking_rate == pytest.approx(0.6)
    assert better_kind(nats, [0.34] * 30, 4, 12, times).kind == "ranking"
    assert better_kind(nats, [0.34] * 30, 4, 2, times).kind == "pair"  # no time for one
    slow = times | {"ranking 4": (60.0,) * 5}
    assert better_kind(nats, [0.34] * 30, 4, 12, slow).kind == "pair"
    # The best ones count, and only as many as the time allows: four rankings.
    few = better_kind(nats, [0.9] + [0.0] * 29, 4, 12, times)
    assert few.ranking_rate == pytest.approx(60 * 0.9 / 120)


def test_credit_of_ties():
    said, believed = np.array([1.0, 0.0, 0.5, 1.0]), np.array([0.7, 0.7, 0.9, 0.5])
    assert credit(said, believed).tolist() == [1.0, 0.0, 0.5, 0.5]


def test_accuracy_is_of_the_drawn_and_answered(make_pool):
    pool = make_pool(50)
    holdout = Holdout(0.3)
    candidates = pool.acquisition(range(50), None)
    held = [pool.pairs[i].id for i in np.flatnonzero(holdout.held(candidates))]
    drawn = held[:6]
    shares = dict.fromkeys(held, 1.0)
    p = dict.fromkeys(held, 0.9) | {drawn[0]: 0.1}
    found = holdout_accuracy(pool, p, shares, drawn, holdout)
    assert found["n"] == 6
    assert found["value"] == pytest.approx(5 / 6)
    assert found["low"] < 5 / 6 < found["high"]
    assert holdout_accuracy(pool, p, {}, drawn, holdout) is None


def test_both_curves_answer_the_same_pairs(make_pool):
    pool = make_pool(4)
    names = list(pool.place)
    truth = dict(zip(names, [1.0, 1.0, 0.0, 0.0], strict=True))
    chosen = dict(zip(names, [0.9, 0.9, 0.1, 0.9], strict=True))
    arm = dict(zip(names, [0.9, 0.1, 0.9, 0.9], strict=True))
    found = against_random(pool, truth, chosen, [arm])
    assert (found["chosen"], found["random"], found["n"]) == (0.75, [0.25], 4)
    assert found["difference"]["value"] == pytest.approx(0.5)
    assert "difference" not in against_random(pool, truth, chosen, [])


def test_models_that_never_differ_are_not_known_to_be_alike(make_pool):
    pool = make_pool(9)
    names = list(pool.place)
    truth, same = dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.9)
    found = against_random(pool, truth, same, [same])["difference"]
    assert found["value"] == 0
    assert found["low"] < -0.2
    assert found["high"] > 0.2
    of_three = make_pool(9, answers=3)  # three pairs a prompt: prompts are the units
    names = list(of_three.place)
    truth, same = dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.9)
    assert against_random(of_three, truth, same, [same])["difference"] == pytest.approx(found)


def test_random_rows_are_nested():
    names = [str(i) for i in range(50)]
    assert random_rows(names, 20, 0, 0)[:9] == random_rows(names, 9, 0, 0)
    assert random_rows(names, 9, 0, 0) != random_rows(names, 9, 0, 1)
    assert random_rows(names, 9, 0, 0) != names[:9]


def test_rules_look_at_held_out_pairs_of_all_models():
    given = {"rounds": 1, "labels": 5, "minutes": 0.0, "told": [0.2], "answered": {}}
    before = {"x": 0.9, "y": 0.1, "z": 0.2}
    settled = Rules(rounds=9, kappa=0.99, window=1)
    after = before | {"new": 0.5}  # a pair that the older model never saw
    assert settled.holding(beliefs=[before, after], **given)[0].startswith("kappa: answers have")
    turned = {"x": 0.1, "y": 0.9, "z": 0.8}
    assert settled.holding(beliefs=[before, turned], **given) == []
    assert settled.holding(beliefs=[after], **given) == []
    assert Rules(rounds=9, tau=0.3).holding(beliefs=[], **given)[0].startswith("tau: no pair")
    assert Rules(rounds=9, tau=0.1).holding(beliefs=[], **given) == []
    assert Rules(rounds=9, tau=0.3).holding(beliefs=[], **given | {"told": None}) == []
    both = Rules(rounds=1, labels=5).holding(beliefs=[], **given)
    assert [why.split(":")[0] for why in both] == ["rounds", "labels"]
