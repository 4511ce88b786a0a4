"""Batches of few groups: every row once, splits only where they must be, random by seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.sampling import GroupSampler, grouped_order, prompt_groups
from align.data.sampling.groups import groups_per_batch, groups_per_random_batch

SIZES = st.lists(st.integers(1, 12), max_size=40)
SEEDS = st.integers(0, 2**32 - 1)


def rows_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Group numbers of rows that stand in any order."""
    groups = np.repeat(np.arange(len(sizes)) * 7 - 3, sizes)
    return np.random.default_rng(seed).permutation(groups)


def batches_of(groups: np.ndarray, batch_size: int, seed: int) -> list[list[int]]:
    """The groups of each batch."""
    order = grouped_order(groups, batch_size, seed)
    assert sorted(order.tolist()) == list(range(len(groups)))  # every row once
    return [groups[order[i : i + batch_size]].tolist() for i in range(0, len(order), batch_size)]


@settings(max_examples=300, deadline=None)
@given(SIZES, st.integers(1, 9), SEEDS)
def test_groups_are_split_only_where_they_must_be(sizes, batch_size, seed):
    groups = rows_of(sizes, seed)
    batches = batches_of(groups, batch_size, seed)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    whole = Counter(groups.tolist())
    parts: dict[int, list[int]] = {}
    for batch in batches:
        for group, count in Counter(batch).items():
            parts.setdefault(group, []).append(count)
    for group, counts in parts.items():
        # What is larger than a batch fills whole ones; only its rest is at anybody's disposal.
        assert counts.count(batch_size) >= whole[group] // batch_size
    # A batch splits one group at most, and the last one takes what is left.
    cuts = sum(len(counts) - -(-whole[group] // batch_size) for group, counts in parts.items())
    filled = sum(len(set(batch)) > 1 for batch in batches[:-1])
    assert cuts <= filled


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 4), SEEDS)
def test_sizes_that_fit_into_each_other_are_never_split(powers, batch_power, seed):
    sizes, batch_size = [2**power for power in powers], 2**batch_power
    groups = rows_of(sizes, seed)
    seen = Counter(group for batch in batches_of(groups, batch_size, seed) for group in set(batch))
    for group, size in Counter(groups.tolist()).items():
        assert seen[group] == max(1, size // batch_size)


def test_the_largest_that_fits_comes_first_and_the_smallest_is_split():
    def shapes(sizes: list[int], batch_size: int) -> list[list[int]]:
        batches = batches_of(rows_of(sizes), batch_size, 0)
        return sorted(sorted(Counter(batch).values()) for batch in batches)

    assert shapes([4, 4, 4, 4], 6) == [[2, 4], [2, 4], [4]]  # one is split, and fills two batches
    assert shapes([5, 3, 4, 4], 8) == [[3, 5], [4, 4]]
    assert shapes([5, 5, 4, 4], 6) == [[1, 5], [1, 5], [2, 4]]  # a 4 is split, not a 5


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 9), SEEDS)
def test_the_same_seed_draws_the_same_and_names_of_groups_do_not_matter(sizes, batch_size, seed):
    groups = rows_of(sizes, seed)
    first = grouped_order(groups, batch_size, seed)
    assert np.array_equal(first, grouped_order(groups.tolist(), batch_size, seed))
    far = groups + 2**60  # a hash: beyond what a float64 tells apart
    assert np.array_equal(first, grouped_order(far, batch_size, seed))


def test_batches_are_random_over_seeds():
    groups = np.repeat(np.arange(12), 2)  # 12 pairs, batches of 4
    firsts, together, places = Counter(), Counter(), Counter()
    for seed in range(1200):
        order = grouped_order(groups, 4, seed)
        firsts[int(groups[order[0]])] += 1
        places[int(np.flatnonzero(order == 0)[0]) // 4] += 1
        for batch in groups[order].reshape(6, 4):
            together[tuple(sorted(set(batch.tolist())))] += 1
    assert len(together) == 66  # every two groups meet, 1200 * 6 / 66 = 109 times
    assert all(60 < count < 170 for count in together.values())
    assert len(firsts) == 12
    assert all(60 < count < 150 for count in firsts.values())  # 100 each
    assert all(140 < places[place] < 270 for place in range(6))  # 200 each


def test_large_groups_come_neither_first_nor_last():
    groups = np.repeat(np.arange(30), [4] * 6 + [1] * 24)  # 6 batches of one group, 6 of four
    firsts = [int(groups[grouped_order(groups, 4, seed)[0]]) < 6 for seed in range(400)]
    assert 150 < sum(firsts) < 250


def test_rows_of_a_large_group_are_dealt_anew_each_time():
    parts = {tuple(sorted(grouped_order([0] * 8, 4, seed)[:4].tolist())) for seed in range(40)}
    assert len(parts) > 20


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_rows_is_refused(batch_size):
    with pytest.raises(ValueError, match="expected 1 or more"):
        grouped_order([0, 1], batch_size)


def test_a_million_rows_take_seconds(monkeypatch):
    groups = np.random.default_rng(0).integers(0, 250_000, 1_000_000)
    order = grouped_order(groups, 8, 0)
    assert np.array_equal(np.sort(order), np.arange(1_000_000))
    assert groups_per_batch(groups[order], 8) < 2.1 < 7.9 < groups_per_random_batch(groups, 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 9))
def test_groups_of_a_random_batch_are_what_shuffling_finds(sizes, batch_size):
    groups, draw = rows_of(sizes), np.random.default_rng(1)
    found = [groups_per_batch(draw.permutation(groups), batch_size) for _ in range(400)]
    expected = groups_per_random_batch(groups, batch_size)
    assert expected == pytest.approx(np.mean(found), abs=5 * np.std(found) / 20 + 1e-9)


def test_groups_of_a_batch_by_hand():
    assert groups_per_batch(np.array([1, 1, 2, 2, 2, 3, 3]), 3) == pytest.approx((2 + 2 + 1) / 3)
    assert groups_per_random_batch(np.array([0, 0, 1]), 2) == pytest.approx((1 + 2 / 3 + 1) / 2)


def test_prompts_are_told_apart_letter_by_letter():
    turn = [{"role": "user", "content": "a"}]
    prompts = ["a", "A", "a ", turn, "a", [*turn], [{"role": "system", "content": "x"}, *turn]]
    assert prompt_groups(prompts).tolist() == [0, 1, 2, 3, 0, 3, 4]


def test_the_sampler_draws_another_order_each_epoch_and_goes_back():
    groups = rows_of([3, 1, 2] * 10)
    sampler = GroupSampler(groups, 4, seed=-5)
    epochs = [list(sampler) for _ in range(3)]
    assert len(sampler) == 60
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    assert list(GroupSampler(groups, 4, seed=6)) != epochs[0]


def test_a_state_is_of_the_same_rows_and_batches():
    groups = rows_of([3, 1, 2])
    sampler = GroupSampler(groups, 4)
    sampler.set_epoch(2)
    other = GroupSampler(groups, 4)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(sampler)
    changed = (GroupSampler(groups, 3), GroupSampler(groups, 4, 1), GroupSampler(groups[1:], 4))
    for another in changed:
        with pytest.raises(ValueError, match="is not this one"):
            another.load_state_dict(sampler.state_dict())
