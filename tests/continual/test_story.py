"""What a continual run tells: means only over scores of one unit."""

from __future__ import annotations

import pytest

from align.continual.measure import Column
from align.continual.story import tell_story

# Three tasks: rows are before, after the first, the second and the third.
MATRIX = [
    [0.10, 0.20, 0.30],
    [0.90, 0.25, 0.30],
    [0.70, 0.80, 0.45],
    [0.60, 0.85, 0.75],
]


def figures(*kinds: str) -> dict[str, float]:
    columns = [Column(f"t{place}", kind, ()) for place, kind in enumerate(kinds)]
    rows = [{f"t{i}": {"value": row[i]} for i in range(len(kinds))} for row in MATRIX]
    story = tell_story({"naive": {0: rows[: len(kinds) + 1]}}, columns, len(kinds), {"naive": []})
    found = story["arms"]["naive"]["figures"]
    assert bool(story["points"]) == ("old" in found)
    return {name: one["value"] for name, one in found.items()}


def test_alike_tasks_have_all_means():
    found = figures("preference", "preference", "preference")
    assert found["average"] == pytest.approx((0.6 + 0.85 + 0.75) / 3)
    assert found["old"] == pytest.approx((0.6 + 0.85) / 2)
    assert {"learned", "backward", "forward", "forgetting", "new"} <= found.keys()
    assert not any(name.startswith("forgetting of") for name in found)


def test_two_tasks_of_unlike_measures_have_no_mean_of_both():
    found = figures("likelihood", "preference")
    assert found.keys() == {"backward", "forward", "forgetting", "old", "new"}
    assert found["forgetting"] == pytest.approx(0.9 - 0.7)


def test_of_more_each_tells_its_own_forgetting():
    found = figures("likelihood", "preference", "preference")
    assert found.keys() == {"forward", "new", "forgetting of t0", "forgetting of t1"}
    assert found["forgetting of t0"] == pytest.approx(0.9 - 0.6)
    assert found["forgetting of t1"] == pytest.approx(0.8 - 0.85)
