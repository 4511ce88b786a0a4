"""What a reader is told before the numbers."""

from __future__ import annotations

import pytest

from align.report.collect import collect
from align.report.evidence import evaluate_family
from align.report.families import make_families, trace
from align.report.notices import find_notices


@pytest.fixture
def notices(tmp_path):
    def find(*paths):
        runs = collect(paths or [tmp_path / "runs"])
        families = make_families(runs)
        found = [evaluate_family(family) for family in families]
        return find_notices(runs, families, trace(families), [one for one in found if one])

    return find


def said(notices, level, *words):
    return [n for n in notices if n.level == level and all(w in n.where + n.message for w in words)]


def test_three_clean_seeds_leave_only_what_the_runs_themselves_warned_of(pipeline, notices):
    for seed in (1, 2, 3):
        pipeline(seed=seed)
    (only,) = notices()
    assert (only.level, only.message) == ("warning", "3 of 2000 rows were quarantined.")
    stages = {"SFT (3 seeds)", "Reward model (3 seeds)", "DPO (3 seeds)", "PPO (3 seeds)"}
    assert set(only.where.split("; ")) == stages


def test_a_single_seed_is_said(pipeline, notices):
    pipeline()
    assert said(notices(), "warning", "One training seed only")


def test_two_seeds_are_said(pipeline, notices):
    pipeline(seed=1)
    pipeline(seed=2)
    found = notices()
    assert said(found, "note", "Two seeds only")
    assert not said(found, "warning", "One training seed")


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"status": "failed", "error": "ValueError: no"}, "error", ("failed", "ValueError: no")),
        ({"status": "interrupted", "error": "SIGTERM"}, "error", ("interrupted", "SIGTERM")),
        ({"status": "running"}, "warning", ("had not finished", "last logged at 2026-03-02")),
        ({"results": {"dry_run": True}}, "warning", ("dry run",)),
        ({"status": None}, "error", ("does not say how",)),
        ({"warnings": ["KL is negative"]}, "warning", ("KL is negative",)),
        ({"git": {"commit": "abc", "dirty": True}}, "note", ("uncommitted changes",)),
        ({"git": {"commit": "fff", "dirty": False}}, "note", ("different commits", "fff")),
        ({"versions": {"torch": "2.12.0"}}, "note", ("different versions", "torch (2.12.0")),
    ],
)
def test_what_run_json_says_is_passed_on(pipeline, edit, notices, change, level, words):
    edit(pipeline()["ppo"] / "run.json", **change)
    assert said(notices(), level, *words)


def test_no_evaluation_is_said(pipeline, notices):
    path = pipeline()["sft"]
    assert said(notices(path), "warning", "No evaluation is among these runs")


def test_missing_and_impossible_intervals_are_said(pipeline, read, edit, notices):
    file = pipeline()["evaluate"] / "evaluation.json"
    rows = read(file)["win_rates"]
    del rows[0]["low"]
    rows[1]["high"] = rows[1]["rate"] - 0.01
    rows[2]["wins"] += 7
    edit(file, win_rates=rows)
    found = notices()
    assert said(found, "warning", "DPO against SFT, gold judge", "without an interval")
    assert said(found, "error", "PPO against SFT, gold judge", "outside its own interval")
    assert said(found, "note", "DPO against SFT, reward model judge", "add up to 207")


def test_a_start_that_beats_the_baseline_is_said(pipeline, read, edit, notices):
    file = pipeline()["evaluate"] / "evaluation.json"
    rows = read(file)["win_rates"]
    rows[0] |= {"a": "base", "rate": 0.6, "low": 0.53, "high": 0.66}
    edit(file, win_rates=rows)
    assert said(notices(), "warning", "Base against SFT", "before training beats the baseline")
    rows[0]["low"] = 0.49
    edit(file, win_rates=rows)
    assert not said(notices(), "warning", "before training beats")


def test_a_judge_that_trained_the_policy_is_said(pipeline, notices):
    paths = pipeline()
    config = paths["evaluate"] / "config.yaml"
    model = paths["reward"] / "model"
    config.write_text(config.read_text().replace("path: null", f"path: {model}", 1))
    assert f"path: {model}" in config.read_text()
    assert said(notices(), "warning", "PPO was trained against", "flatters")


def test_a_lost_parent_is_said(pipeline, edit, notices):
    path = pipeline()["sft"]
    edit(path / "run.json", parents=[{"role": "model", "path": "x/y/model", "run": "x/y"}])
    assert said(notices(path), "warning", "y, was not found")


def test_values_that_were_not_finite_are_said(pipeline, notices):
    path = pipeline()["ppo"]
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 130, "value/loss": null}\n')
    assert said(notices(), "warning", "value/loss was logged once as NaN")


def test_shared_seeds_are_said(pipeline, notices):
    pipeline(seed=1)
    pipeline(seed=1, folder="again")
    assert said(notices(), "warning", "2 runs share 1 seed and are not independent")


def test_the_gravest_come_first(pipeline, edit, notices):
    paths = pipeline()
    edit(paths["evaluate"] / "run.json", status="failed")
    edit(paths["sft"] / "run.json", git={"commit": "fff", "dirty": False})
    levels = [notice.level for notice in notices()]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert set(levels) == {"error", "warning", "note"}
