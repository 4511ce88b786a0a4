"""Alarms and early stopping in a real `align ppo`, through a crash and a resume as well."""

from __future__ import annotations

import json

REWARDS = """
import os

def equal(prompts, completions, **columns):
    return [1.0] * len(completions)

def breaks(prompts, completions, **columns):
    if len(list(open(os.environ["COUNT"]))) >= int(os.environ["BREAK_AT"]):
        raise RuntimeError("the power is out")
    with open(os.environ["COUNT"], "a") as stream:
        stream.write("call\\n")
    return [1.0] * len(completions)
"""

LONG = {
    "total_episodes": 56,
    "rollout_batch_size": 4,
    "per_device_train_batch_size": 4,
    "ppo_epochs": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def command(stage, tmp_path, function, *overrides, **sections):
    reward = [{"function": f"tiny_rewards:{function}"}]
    arguments = stage("ppo", *overrides, trainer=dict(LONG), reward=reward, **sections)
    (tmp_path / "tiny_rewards.py").write_text(REWARDS)
    return arguments


def test_an_alarm_ends_the_run_and_the_model_is_saved(stage, cli, tmp_path):
    signals = {"stop": {"on": ["degenerate_groups"]}}
    result = cli(*command(stage, tmp_path, "equal", signals=signals))
    assert result.code == 0, result.text
    assert "alarm, degenerate groups (step 8)" in result.err
    folder = tmp_path / "run-ppo"
    found = record(folder)
    assert found["status"] == "completed"
    assert found["results"]["steps"] == 8
    assert found["results"]["stopped"].startswith("stopped at step 8: alarm degenerate_groups")
    assert (folder / "model" / "MANIFEST.json").is_file()
    assert (folder / "checkpoints" / "checkpoint-8" / "MANIFEST.json").is_file()
    assert [line["name"] for line in read(folder / "alarms.jsonl")] == ["degenerate_groups"]

    again = cli(*command(stage, tmp_path, "equal", signals=signals), "--resume")
    assert again.code == 0, again.text
    assert record(folder)["results"]["steps"] == 8  # it does not go on


def test_a_crash_neither_loses_nor_repeats_an_alarm(stage, cli, tmp_path, monkeypatch):
    (tmp_path / "count").touch()
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("BREAK_AT", "11")  # once for the samples before, ten updates
    result = cli(*command(stage, tmp_path, "breaks"))
    assert result.code != 0
    folder = tmp_path / "run-ppo"
    before = read(folder / "alarms.jsonl")
    assert [(line["name"], line["step"]) for line in before] == [("degenerate_groups", 8)]
    monkeypatch.setenv("BREAK_AT", "1000")
    result = cli(*command(stage, tmp_path, "breaks"), "--resume")
    assert result.code == 0, result.text
    assert read(folder / "alarms.jsonl") == before
    assert "degenerate_groups" in record(folder)["signals"]["watched"]


def test_signals_can_be_switched_off(stage, cli, tmp_path):
    result = cli(*command(stage, tmp_path, "equal", "signals.enabled=false"))
    assert result.code == 0, result.text
    assert not (tmp_path / "run-ppo" / "alarms.jsonl").exists()
    assert "signals" not in record(tmp_path / "run-ppo")


def test_a_misspelt_alarm_is_refused(stage, cli, tmp_path):
    result = cli(*command(stage, tmp_path, "equal", "signals.stop.on=[reward_hack]"))
    assert result.code == 2
    assert "reward_hacking" in result.text
