"""The section on continual runs, from whole and from torn stories."""

from __future__ import annotations

from align.report.collect import RunData
from align.report.continual import continual_evidence


def story(**changes):
    figures = {
        "old": {"value": -2.0, "low": -2.2, "high": -1.8, "n": 3},
        "new": {"value": -1.0, "low": -1.1, "high": -0.9, "n": 3},
        "change of tax": {"value": -0.5, "n": 3},
    }
    arm = {"guards": [], "seeds": [0, 1, 2], "matrix": [[-3, -4], [-1, -3], [-2, -1]]}
    other = {"guards": [{"type": "ewc", "strength": 100}], "seeds": [0], "matrix": [[-3, -4]]}
    found = {
        "columns": [{"name": "a", "task": True}, {"name": "b", "task": True}],
        "arms": {"naive": arm | {"figures": figures}, "ewc": other | {"figures": {}}},
        "points": [
            {"arm": "naive", "old": figures["old"], "new": figures["new"]},
            {"arm": "ewc", "old": {"value": -1.5}, "new": {"value": -1.6}},
        ],
        "front": ["ewc", "naive"],
        "naive": "naive",
    }
    return found | changes


def evidence(tmp_path, given):
    (found,) = continual_evidence([RunData(tmp_path, {"status": "completed"}, continual=given)])
    return found


def test_shades_are_of_a_column_over_all_arms(tmp_path):
    naive, ewc = evidence(tmp_path, story()).arms
    assert [label for label, _ in naive.map] == ["before", "after a", "after b"]
    assert [[cell.shade for cell in cells] for _, cells in naive.map] == [[0, 0], [6, 2], [3, 6]]
    assert [label for label, _ in ewc.map] == ["before"]
    assert ewc.guards == "ewc 100"


def test_figures_that_some_arm_has_are_columns_and_the_front_is_drawn(tmp_path):
    found = evidence(tmp_path, story())
    assert found.figures == {"change of tax": "Change of tax"}
    assert found.scatter is not None
    assert found.scatter.count("<circle") == 2
    assert found.scatter.count('class="bar"') == 2  # the second arm has no interval


def test_a_torn_story_leaves_blanks(tmp_path):
    assert continual_evidence([RunData(tmp_path)]) == []
    found = evidence(tmp_path, {"arms": {"x": {"matrix": [[None, "?"], 3]}}, "columns": [{}, 1]})
    assert found.scatter is None
    assert found.arms[0].figures == {}
    assert evidence(tmp_path, {"arms": 3}).arms == []
