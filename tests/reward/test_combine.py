"""Weights that move, scales made alike, and sums: against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reward.combine import (
    RewardTerm,
    RunningStatistics,
    Schedule,
    clipped,
    group_zscore,
    groups_of,
    weighted_sum,
)
from reward.errors import RewardError


@pytest.mark.parametrize(
    ("kind", "update", "expected"),
    [
        ("linear", 0, 1.0),
        ("linear", 2, 1.0),  # it begins to move at 2
        ("linear", 3, 0.75),
        ("linear", 6, 0.0),
        ("linear", 99, 0.0),
        ("cosine", 2, 1.0),
        ("cosine", 3, (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 4, 0.5),
        ("cosine", 99, 0.0),
    ],
)
def test_a_weight_moves_and_stays(kind, update, expected):
    schedule = Schedule(kind, to=0.0, updates=4, start=2)
    assert schedule.at(1.0, update) == pytest.approx(expected, abs=1e-12)


def test_a_weight_without_schedule_stays():
    term = RewardTerm("r", len, weight=0.3)
    assert [term.weight_at(u) for u in (0, 5, 500)] == [0.3] * 3


def test_running_statistics_are_those_of_all_values():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double() * 3 + 1e4
    seen = RunningStatistics()
    for part in values.split([7, 1, 30, 12]):
        seen.update([*part.tolist(), None])
    assert seen.count == 50
    assert seen.mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert seen.std == pytest.approx(values.std(unbiased=False).item(), rel=1e-9)
    scaled = torch.tensor(seen.apply(values.tolist()))
    assert scaled.mean().abs() < 1e-5
    assert scaled.std(unbiased=False) == pytest.approx(1.0, abs=1e-5)


def test_running_statistics_of_ranks_are_those_of_the_whole_batch():
    one, two = [1.0, 2.0, 9.0], [4.0, None, -3.0]
    whole = RunningStatistics(count=4, mean=2.0, m2=8.0)
    ranks = [RunningStatistics(count=4, mean=2.0, m2=8.0) for _ in range(2)]
    whole.update(one + two)
    # What all-reduce does: each rank's sums are added up.
    sums: list[torch.Tensor] = []
    for rank, values in zip(ranks, (one, two), strict=True):
        probe = RunningStatistics(rank.count, rank.mean, rank.m2)
        probe.update(values, lambda tensor: sums.append(tensor) or tensor)
    for rank, values in zip(ranks, (one, two), strict=True):
        rank.update(values, lambda tensor: sums[0] + sums[1])
        assert rank.state_dict() == pytest.approx(whole.state_dict())


def test_running_statistics_survive_saving():
    seen, again = RunningStatistics(), RunningStatistics()
    seen.update([1.0, 2.0, 4.0])
    again.load_state_dict(seen.state_dict())
    for each in (seen, again):
        each.update([7.0, 1.5])
    assert seen.apply([3.0]) == again.apply([3.0])  # to the last bit


def test_values_all_alike_are_centred_and_not_blown_up():
    seen = RunningStatistics()
    seen.update([2.0, 2.0])
    assert seen.apply([2.0, 5.0, None]) == [0.0, 3.0, None]
    seen.update([None, None])
    assert seen.count == 2


def test_group_zscores():
    values = [1.0, 3.0, 5.0, 5.0, None, 2.0]
    found = group_zscore(values, [range(0, 2), range(2, 4), range(4, 6)])
    assert found == [-1.0, 1.0, 0.0, 0.0, None, 0.0]


def test_groups():
    assert groups_of(["a", "a", "b", "a"]) == [range(0, 2), range(2, 3), range(3, 4)]
    assert groups_of(["a"] * 4, 2) == [range(0, 2), range(2, 4)]
    with pytest.raises(RewardError, match="3 completions are not groups of 2"):
        groups_of(["a"] * 3, 2)


def test_sums_leave_out_what_does_not_apply():
    parts = [("a", [1.0, None, 2.0], 2.0), ("b", [10.0, 10.0, None], 0.5)]
    assert weighted_sum(parts) == [7.0, 5.0, 4.0]
    with pytest.raises(RewardError, match=r"no reward applies to completion 1: 'a', 'b'"):
        weighted_sum([("a", [1.0, None], 1.0), ("b", [1.0, None], 1.0)])


def test_clipping():
    assert clipped([-9.0, 0.5, None, 3.0], 1.0) == [-1.0, 0.5, None, 1.0]
    assert clipped([-9.0, None], None) == [-9.0, None]
