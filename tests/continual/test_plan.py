"""What `data: earlier` and `from` make of an arm's guards, and which rows guards get to see."""

from __future__ import annotations

import json
from pathlib import Path

from align.config.continual import MeasureSection, TaskSection
from align.continual.earlier import earlier_file, write_earlier
from align.continual.measure import open_column
from align.continual.plan import guards_for

TASKS = [TaskSection(name=name, settings={"data": {"train": f"{name}.jsonl"}}) for name in "abc"]


def test_earlier_is_every_task_before(tmp_path):
    guard = {"type": "replay", "strength": 0.5, "data": "earlier"}
    assert guards_for([guard], TASKS, 1, tmp_path) == []
    first, second = (str(earlier_file(tmp_path, name)) for name in "ab")
    assert guards_for([guard], TASKS, 2, tmp_path) == [guard | {"data": first}]
    found = guards_for([guard], TASKS, 3, tmp_path)
    assert [one["data"] for one in found] == [first, second]
    assert {one["strength"] for one in found} == {0.5}


def test_a_guard_begins_with_the_task_that_it_names(tmp_path):
    late = {"type": "ewc", "strength": 1.0, "from": 2}
    always = {"type": "l2sp", "strength": 1.0}
    assert guards_for([late, always], TASKS, 1, tmp_path) == [always]
    both = [{"type": "ewc", "strength": 1.0}, always]
    assert guards_for([late, always], TASKS, 2, tmp_path) == both


def test_guards_see_no_row_that_a_score_is_measured_on(tmp_path, tiny_tokenizer):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Where is {n}?", "completion": f"At {n}."} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSection(name="a", settings={"data": {"train": str(file), "test_fraction": 0.3}})
    write_earlier([task], tmp_path)
    written = {row["prompt"] for row in map(json.loads, _lines(earlier_file(tmp_path, "a")))}
    column = open_column("a", MeasureSection(), task, tiny_tokenizer, None)
    measured = {row["prompt"] for row in column.rows}
    assert len(written) > 30
    assert len(measured) > 8
    assert not written & measured


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()
