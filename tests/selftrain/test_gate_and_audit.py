"""What is promoted, when it ends, and what people's checks say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.errors import DataError
from align.evaluate.significance import paired_difference
from align.selftrain.audit import audit, drawn_for_audit
from align.selftrain.gate import Gate, ended, per_prompt
from align.selftrain.policy import in_words

# The first draw of a process reads constants from every module that is loaded.
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_gain_is_promoted_and_none_is_not():
    before = [0.0] * 30 + [1.0] * 30
    better = [1.0] * 20 + [0.0] * 10 + [1.0] * 30
    decision = Gate().decide(better, before)
    assert decision.promoted
    assert decision.difference.interval.value == pytest.approx(1 / 3)
    same = Gate().decide(before, before)
    assert not same.promoted
    assert same.why == "every held-out score is as before"
    worse = Gate().decide(before, better)
    assert not worse.promoted
    assert worse.why == "it got worse"
    assert Gate("not_worse", 0.05).decide(before, before).promoted
    assert not Gate("not_worse", 0.05).decide(before, better).promoted
    with pytest.raises(DataError):
        Gate().decide([1.0], [1.0, 0.0])


def test_scores_that_change_alike_have_no_interval():
    before = [0.25] * 9
    gained = Gate().decide([1.25] * 9, before)
    assert gained.promoted  # 2 of 512 exchanges of signs are as extreme
    assert gained.as_dict()["gain"] | {"p_value": 0} == {
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 9,
        "level": 0.95,
        "p_value": 0,
    }
    few = Gate().decide([1.25] * 5, before[:5])  # 2 of 32
    assert not few.promoted
    assert "few" in few.why
    assert not Gate().decide([0.0] * 9, before).promoted


def test_a_gain_of_shares_is_as_unsure_as_its_prompts_are_few():
    same = Gate(shares=True).decide([1.0] * 9, [1.0] * 9)
    gain = same.as_dict()["gain"]
    assert gain["low"] == pytest.approx(-0.252, abs=1e-3)
    assert gain["high"] == pytest.approx(0.252, abs=1e-3)
    assert not same.promoted
    assert "holds 0" in same.why
    assert not Gate("not_worse", 0.2, shares=True).decide([1.0] * 9, [1.0] * 9).promoted
    assert Gate(shares=True).decide([1.0] * 9, [0.0] * 9).promoted


def test_a_round_s_figures_in_words():
    found = {"round": 1, "value": {"value": 1.0, "low": None, "high": None, "n": 8}, "gain": None}
    assert in_words(found) == "round 1: 1.000 (all alike, so no interval) on 8 held out"
    found["value"] |= {"low": 0.676, "high": 1.0}
    assert in_words(found) == "round 1: 1.000 [0.676, 1.000] on 8 held out"


def test_more_rounds_ask_for_more():
    draw = np.random.default_rng(0)
    before = draw.random(80)
    after = before + draw.normal(0.05, 0.22, 80)
    low = paired_difference(after, before).interval.low
    assert low > 0  # one look sees a gain
    alone, many = (Gate(rounds=n).decide(after, before) for n in (1, 20))
    assert alone.promoted
    assert alone.difference.interval.low == low
    assert not many.promoted
    assert many.as_dict()["gain"]["level"] == pytest.approx(0.9975)


def test_of_models_that_gain_nothing_few_are_promoted():
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        before = draw.random(60) < 0.6
        after = np.where(draw.random(60) < 0.3, draw.random(60) < 0.6, before)
        hits += Gate(rounds=3, resamples=1000).decide(after * 1.0, before * 1.0).promoted
    assert hits <= 10  # 1 - 0.95 / 3, of which half lies above 0: 1.7 expected


@pytest.mark.parametrize(
    ("history", "rules"),
    [
        ([], []),
        ([True, False], []),
        ([False, False], ["gain"]),
        ([True, True, True], ["rounds"]),
        ([True, False, False], ["rounds", "gain"]),
    ],
)
def test_when_it_ends(history, rules):
    assert [why.split(":")[0] for why in ended(history, 3, 2)] == rules


def test_prompts_are_the_units():
    assert per_prompt([1, 0, 1, 1], ["b", "a", "b", "a"]).tolist() == [1.0, 0.5]


@PROPERTY
@given(st.sets(st.integers(0, 999), max_size=60), st.floats(0, 1), st.integers(0, 5))
def test_the_audit_is_a_share_and_repeats_itself(names, share, seed):
    given_names = sorted(map(str, names))
    drawn = drawn_for_audit(given_names, share, seed)
    assert len(drawn) == int(np.ceil(share * len(names) - 1e-9))
    assert drawn == [name for name in given_names if name in drawn]
    assert drawn == drawn_for_audit(given_names, share, seed)


def test_another_seed_draws_others():
    names = [f"pair {n}" for n in range(200)]
    first, second = (drawn_for_audit(names, 0.1, seed) for seed in (0, 1))
    assert len(set(first) & set(second)) < 10


def test_people_s_answers_judge_the_labels():
    labels = {f"p{n}": n % 2 == 0 for n in range(40)}
    agree = {name: float(first) for name, first in labels.items()}
    good = audit(labels, agree)
    assert (good.asked, good.answered, good.precision) == (40, 40, 1.0)
    assert not good.fails(0.95)
    bad = audit(labels, {name: 1 - share for name, share in agree.items()})
    assert bad.precision == 0.0
    assert bad.fails(0.8)
    half = audit(labels, dict.fromkeys(labels, 0.5))
    assert half.precision == 0.5
    assert half.fails(0.8)
    few = audit(labels, {"p0": 0.0, "p1": 0.0})
    assert (few.answered, few.right) == (2, 1.0)
    assert not few.fails(0.8)  # two answers prove nothing
    none = audit(labels, {})
    assert none.precision is None
    assert not none.fails(0.99)
