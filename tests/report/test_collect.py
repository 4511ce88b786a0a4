"""Reading run directories in every state."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from align.errors import DataError, RunError
from align.report.collect import collect, read_run, to_series


def test_reads_a_whole_run(pipeline):
    run = read_run(pipeline(seed=3)["ppo"])
    logged = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert (run.stage, run.status, run.seed, run.problems) == ("ppo", "completed", 3, [])
    expected = [row["reward/mean"] for row in logged if "reward/mean" in row]
    assert run.series["reward/mean"].values == expected
    assert run.series["reward/mean"].steps == list(range(1, 121))
    assert run.seconds == pytest.approx(60 * 2.6 * 1.05, abs=1)


def test_follows_lineage_to_the_ancestors(pipeline):
    paths = pipeline()
    found = collect([paths["evaluate"]])
    assert found[0].path == paths["evaluate"]
    assert {run.stage for run in found} == {"sft", "reward", "dpo", "ppo", "evaluate"}
    assert len(found) == 5


def test_follows_lineage_after_the_tree_was_moved(pipeline, tmp_path: Path):
    pipeline()
    shutil.move(tmp_path / "runs", tmp_path / "archive")
    found = collect([tmp_path / "archive" / "seed1" / "evaluate"])
    assert {run.path.name for run in found} == {"sft", "reward", "dpo", "ppo", "evaluate"}


def test_a_folder_of_runs_stands_for_all_of_them(pipeline, tmp_path: Path):
    pipeline(seed=1)
    pipeline(seed=2)
    assert len(collect([tmp_path / "runs" / "seed1"])) == 5
    assert len(collect([tmp_path / "runs"])) == 10
    assert len(collect([tmp_path / "runs", tmp_path / "runs" / "seed1" / "sft"])) == 10


def test_a_torn_line_is_counted_and_left_out(pipeline):
    file = pipeline()["ppo"] / "metrics.jsonl"
    whole = read_run(file.parent).series["kl/k3"].values
    with file.open("a") as stream:
        stream.write('{"step": 121, "kl/k3": 4.')
    run = read_run(file.parent)
    assert run.series["kl/k3"].values == whole
    assert len(run.problems) == 1
    assert "1 line could not be read" in run.problems[0]
    assert "122" in run.problems[0]


def test_a_line_separator_inside_a_text_tears_nothing(pipeline):
    path = pipeline()["sft"]
    row = {"prompt": "a\u2028b\x85c", "completion": "d"}
    (path / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    run = read_run(path)
    assert run.samples == [row]
    assert run.problems == []


def test_steps_repeated_by_a_resume_count_once_the_later_winning():
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    series = to_series([*rows, {"step": 3, "loss": 1.0}])["loss"]
    assert (series.steps, series.values) == ([1, 2, 3], [3.0, 1.5, 1.0])


def test_values_that_are_not_finite_are_holes_not_points():
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": float("nan")}]
    series = to_series([*rows, {"step": 4, "loss": True}, {"step": 5, "loss": "much"}])["loss"]
    assert (series.steps, series.values, series.holes) == ([1], [3.0], 2)


@pytest.mark.parametrize(
    ("name", "content", "sign"),
    [
        ("run.json", '{"stage": "pp', "run.json cannot be read"),
        ("run.json", "[1]", "holds a list"),
        ("config.yaml", "a: [1", "not valid YAML"),
        ("config.yaml", None, "config.yaml is missing"),
        ("metrics.jsonl", None, "metrics.jsonl is missing"),
        ("metrics.jsonl", "", "no metric yet"),
        ("data_card.json", None, "data_card.json is missing"),
        ("data_card.json", "{", "data_card.json cannot be read"),
        ("samples.jsonl", "3\n", "samples.jsonl: 1 line"),
        ("evaluation.json", "{]", "evaluation.json cannot be read"),
    ],
)
def test_each_torn_or_missing_file_is_a_sentence(pipeline, name, content, sign):
    path = pipeline()["ppo"]
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content)
    assert [problem for problem in read_run(path).problems if sign in problem]


def test_no_runs_is_an_error():
    with pytest.raises(DataError, match="at least one run directory"):
        collect([])


def test_paths_that_are_no_runs_are_errors(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"nowhere does not exist.*Fix"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(RunError, match=r"notes\.txt is a file.*Fix"):
        collect([tmp_path / "notes.txt"])
    with pytest.raises(RunError, match=r"empty is no run directory.*Fix"):
        collect([tmp_path / "empty"])


def test_run_json_itself_may_be_named(pipeline):
    path = pipeline()["sft"]
    assert collect([path / "run.json"])[0].path == path
