"""The order of draws: pools, coverage, frequencies, and that it is a function of seed and step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from align.data.curriculum import AdaptiveCompetence, competence, curriculum_order
from align.data.sampling import DrawOrder, OrderSampler

HARD = np.random.default_rng(0).permutation(60).astype(float)  # a difficulty for each of 60 rows


def make(**changes) -> DrawOrder:
    values = {
        "rows": 60,
        "per_step": 4,
        "seed": 1,
        "difficulty": HARD,
        "competence": competence("root", 0.2, 20),
    }
    return DrawOrder(**values | changes)


def test_a_step_draws_from_the_easiest_rows_only_and_the_pool_never_shrinks():
    order = make()
    pools = [order.pool_at(step) for step in range(40)]
    assert pools == sorted(pools)
    assert (pools[0], pools[-1]) == (12, 60)
    assert pools[5] == int(np.ceil(60 * np.sqrt(0.04 + 0.96 * 5 / 20)))
    for step in range(40):
        assert max(HARD[order.rows_at(step)]) < pools[step]


def test_hard_first_is_the_mirror_and_random_has_any_difficulty():
    assert min(HARD[make(order="hard").rows_at(0)]) >= 48
    first = [row for seed in range(8) for row in make(order="random", seed=seed).rows_at(0)]
    assert min(HARD[first]) < 12 < 40 < max(HARD[first])
    assert make(order="random").pool_at(0) == 12  # a control: the pool is as large


def test_a_pool_holds_a_batch_at_least():
    assert make(per_step=32, competence=competence("linear", 0.01, 9)).pool_at(0) == 32
    assert make(per_step=90).pool_at(0) == 60


def test_everything_is_seen_and_no_row_twice_in_a_pass():
    order = make()
    drawn = [row for step in range(20, 50) for row in [order.rows_at(step)]]
    counts = Counter(row for rows in drawn for row in rows)
    assert set(counts) == set(range(60))  # 120 draws: the pass under way and a whole one
    assert max(counts.values()) - min(counts.values()) <= 2
    flat = [row for step in range(15) for row in make(competence=None).rows_at(step)]
    assert sorted(flat) == list(range(60))  # without pacing an epoch is an epoch


def test_rows_let_in_during_a_pass_wait_for_their_place_among_those_left():
    order = make(
        rows=100, difficulty=np.arange(100.0), competence=competence("step", 0.5, 5, stages=1)
    )
    early = [row for step in range(5) for row in order.rows_at(step)]
    late = [row for step in range(5, 25) for row in order.rows_at(step)]
    assert sorted(early + late) == list(range(100))  # one pass deals every row once
    new = [row >= 50 for row in late]
    assert 10 < sum(new[:40]) < 40  # mixed, not all of them first or last


def test_the_order_is_a_function_of_seed_and_step():
    forward = [make().rows_at(step) for step in range(12)]
    order = make()
    assert [order.rows_at(step) for step in range(12)] == forward
    assert order.rows_at(3) == forward[3]  # back again
    assert order.rows_at(11) == forward[11]
    assert make(seed=2).rows_at(0) != forward[0]


@pytest.mark.parametrize("pool", [None, 0.5])
def test_weighted_draws_have_the_frequencies_of_their_weights(pool):
    weights = np.linspace(0.2, 3.0, 60)
    pacing = None if pool is None else (lambda step: pool)
    order = make(per_step=20, weights=weights, competence=pacing)
    counts = Counter(row for step in range(1000) for row in order.rows_at(step))
    inside = 60 * (pool or 1) > HARD
    assert set(counts) == set(np.flatnonzero(inside))
    expected = np.where(inside, weights, 0)
    expected = 20_000 * expected / expected.sum()
    found = np.asarray([counts[row] for row in range(60)])
    assert chisquare(found[inside], expected[inside]).pvalue > 0.01
    # the test sees a wrong weight: the same counts against uniform
    assert chisquare(found[inside]).pvalue < 1e-6


@pytest.mark.parametrize("weights", [[1.0] * 59, [0.0] + [1.0] * 59, [float("nan")] + [1.0] * 59])
def test_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weights: expected 60"):
        make(weights=weights)


def test_metrics_are_means_since_the_last_call_and_survive_a_resume():
    order = make(weights=np.linspace(1, 2, 60))
    rows = [order.rows_at(step) for step in range(8)]  # read ahead of what is trained
    first = order.metrics(3)
    mean = np.mean([HARD[r].mean() for r in rows[:3]])
    assert first["curriculum/difficulty"] == pytest.approx(mean)
    assert first["curriculum/pool_share"] == pytest.approx(
        np.mean([order.pool_at(step) / 60 for step in range(3)])
    )
    again = make(weights=np.linspace(1, 2, 60))
    again.load_state_dict(order.state_dict())
    again.rows_at(7)
    assert again.metrics(6) == order.metrics(6)
    assert order.metrics(6) == {}


def test_adaptive_changes_apply_to_what_is_not_drawn_yet_and_replay():
    def adaptive() -> DrawOrder:
        return make(competence=AdaptiveCompetence(0.2, increment=0.5))

    order = adaptive()
    for step in range(6):
        order.rows_at(step)
    assert [order.observe(1.0), order.observe(1.0)] == [False, True]
    straight = [order.rows_at(step) for step in range(6, 20)]
    assert (order.pool_at(5), order.pool_at(6)) == (12, 42)
    resumed = adaptive()
    resumed.load_state_dict(order.state_dict())
    assert [resumed.rows_at(step) for step in range(20)][6:] == straight


def test_a_state_of_other_rows_is_refused():
    state = make().state_dict()
    for change in ({"difficulty": -HARD}, {"seed": 9}, {"per_step": 5}, {"weights": HARD + 1}):
        with pytest.raises(ValueError, match="is not this one"):
            make(**change).load_state_dict(state)


def test_the_sampler_goes_on_in_the_middle_of_an_epoch():
    straight = OrderSampler(make(per_epoch=58))
    epochs = [list(straight) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [58, 58, 58] == [len(straight)] * 3
    sampler = OrderSampler(make(per_epoch=58))
    list(sampler)
    half = iter(sampler)
    begun = [next(half) for _ in range(21)]
    resumed = OrderSampler(make(per_epoch=58))
    resumed.load_state_dict(sampler.state_dict())
    assert begun + list(resumed) == epochs[1]
    assert list(resumed) == epochs[2]
    jumped = OrderSampler(make(per_epoch=58))
    jumped.set_epoch(2)
    assert list(jumped) == epochs[2]


def test_the_sampler_refuses_an_epoch_that_ends_within_a_step():
    with pytest.raises(ValueError, match="per_epoch"):
        OrderSampler(make(), length=58)


def test_equal_difficulties_stand_in_random_order():
    flat = curriculum_order([0.0] * 50, seed=0).tolist()
    assert sorted(flat) == list(range(50)) != flat
    assert curriculum_order([3, 1, 2], "hard").tolist() == [0, 2, 1]
