"""What `data: earlier` and `from` make of an arm's guards."""

from __future__ import annotations

from align.config.continual import TaskSection
from align.continual.plan import guards_for

TASKS = [
    TaskSection(name="a", settings={"data": {"train": "a.jsonl"}}),
    TaskSection(name="b", settings={"data": {"train": ["b.jsonl", {"path": "c.jsonl"}]}}),
    TaskSection(name="d", settings={"data": {"train": "d.jsonl"}}),
]


def test_earlier_is_every_file_of_every_task_before():
    guard = {"type": "replay", "strength": 0.5, "data": "earlier"}
    assert guards_for([guard], TASKS, 1) == []
    assert guards_for([guard], TASKS, 2) == [guard | {"data": "a.jsonl"}]
    found = guards_for([guard], TASKS, 3)
    assert [one["data"] for one in found] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert {one["strength"] for one in found} == {0.5}


def test_a_guard_begins_with_the_task_that_it_names():
    late = {"type": "ewc", "strength": 1.0, "from": 2}
    always = {"type": "l2sp", "strength": 1.0}
    assert guards_for([late, always], TASKS, 1) == [always]
    assert guards_for([late, always], TASKS, 2) == [{"type": "ewc", "strength": 1.0}, always]
