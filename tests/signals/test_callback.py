"""Alarms in a trainer's callbacks: written, printed, counted, kept; and the clean early end."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from align.engine.monitor import MetricsCallback
from align.run import Run
from align.signals import Limits, StopRules, Watch
from align.signals.callback import SignalsCallback


@pytest.fixture
def make(tmp_path):
    """A callback in a run of its own, and the text it prints to."""

    def made(rules=None, watch=None):
        run = Run(tmp_path, "ppo")
        text = io.StringIO()
        console = Console(file=text, width=400)
        return SignalsCallback(run, watch or Watch(), rules, console), text

    return made


def begin(callback, first=True):
    state = TrainerState(is_world_process_zero=first, max_steps=100)
    callback.on_train_begin(None, state, TrainerControl())


def log(callback, step, metrics, first=True, last=100):
    control = TrainerControl()
    state = TrainerState(global_step=step, max_steps=last, is_world_process_zero=first)
    callback.on_log(None, state, control, logs=dict(metrics))
    return control


def lines(callback):
    file = callback.run.path / "alarms.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


STALE = {"rollout/age": 9.0}


def test_an_alarm_is_written_printed_and_counted_once(make):
    callback, text = make()
    begin(callback)
    for step in range(6):
        control = log(callback, step, STALE)
    assert not control.should_training_stop
    (line,) = lines(callback)
    assert (line["name"], line["step"], line["since"]) == ("stale_rollouts", 2, 0)
    assert line["evidence"][0]["metric"] == "rollout/age"
    assert text.getvalue().count("alarm, stale rollouts (step 2): The policy that is trained") == 1
    assert callback.note() == "1 alarm: stale rollouts"
    assert callback.run.record["signals"]["watched"] == {"stale_rollouts": ["rollout/age"]}
    assert json.loads((callback.run.path / "run.json").read_text())["signals"]["stopped"] is None


def test_the_progress_display_shows_the_count(make, tmp_path):
    callback, _ = make()
    text = io.StringIO()
    display = MetricsCallback(Run(tmp_path, "ppo"), Console(file=text, width=200), callback.note)
    for step in range(4):
        state = TrainerState(global_step=step, max_steps=4, is_world_process_zero=True)
        for one in (callback, display):
            one.on_log(None, state, TrainerControl(), logs={"loss": 1.0, **STALE})
    shown = text.getvalue().splitlines()
    assert "alarm" not in shown[1]
    assert shown[2].endswith("1 alarm: stale rollouts")


def test_a_resumed_run_neither_loses_nor_repeats_an_alarm(make):
    callback, _ = make()
    begin(callback)
    for step in range(4):
        log(callback, step, STALE)
    kept = json.loads(json.dumps(callback.state_dict()))
    for step in range(4, 8):  # after the checkpoint: lost, and done again
        log(callback, step, {"rollout/age": 9.0, "correction/clipped": 1.0})
    for step in range(8, 14):
        log(callback, step, {"rollout/age": 0.0, "reward/std": 0.0})
    assert len(lines(callback)) == 1
    resumed, text = make()
    resumed.load_state_dict(kept)
    begin(resumed)
    assert [line["step"] for line in lines(resumed)] == [2]
    for step in range(4, 12):
        log(resumed, step, {"rollout/age": 9.0, "reward/std": 0.0})
    assert [(line["name"], line["step"]) for line in lines(resumed)] == [
        ("stale_rollouts", 2),
        ("degenerate_groups", 11),
    ]
    assert "stale" not in text.getvalue()


def test_alarms_after_the_checkpoint_are_raised_anew(make):
    callback, _ = make()
    begin(callback)
    log(callback, 0, STALE)
    kept = callback.state_dict()
    for step in range(1, 4):
        log(callback, step, STALE)
    assert len(lines(callback)) == 1
    resumed, _ = make()
    resumed.load_state_dict(kept)
    begin(resumed)
    assert lines(resumed) == []
    for step in range(1, 4):
        log(resumed, step, STALE)
    assert len(lines(resumed)) == 1


def test_a_rule_ends_the_run_with_a_checkpoint(make):
    callback, text = make(StopRules(kl_budget=5.0))
    begin(callback)
    for step in range(3):
        assert not log(callback, step, {"kl/reference": 9.0}).should_training_stop
    control = log(callback, 3, {"kl/reference": 9.0})
    assert control.should_training_stop
    assert control.should_save
    assert callback.stopped.startswith("stopped at step 3: the KL to the reference is 9 nats")
    assert callback.run.record["signals"]["stopped"] == callback.stopped
    assert callback.stopped in text.getvalue()
    assert callback.state_dict()["stopped"] == callback.stopped


def test_the_last_step_needs_no_early_end(make):
    callback, _ = make(StopRules(kl_budget=5.0))
    for step in range(4):
        control = log(callback, step, {"kl/reference": 9.0}, last=3)
    assert not control.should_training_stop
    assert callback.stopped is None


def test_only_the_first_process_judges(make):
    callback, text = make()
    begin(callback, first=False)
    for step in range(6):
        log(callback, step, STALE, first=False)
    assert not (callback.run.path / "alarms.jsonl").exists()
    assert text.getvalue() == ""


def test_limits_are_the_watchs(make):
    callback, _ = make(watch=Watch(Limits(max_age=10.0)))
    for step in range(6):
        log(callback, step, STALE)
    assert lines(callback) == []
