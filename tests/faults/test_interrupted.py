"""Ctrl-C and SIGTERM outside a trainer's steps: what was stopped is said, and how to go on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import yaml

from align.errors import Interrupted
from align.interrupts import Terminated, told_when_stopped

JUDGE = """
import os, signal

def waits(prompts, completions, **columns):
    if os.path.exists("stop"):
        os.kill(os.getpid(), signal.{name})
        signal.sigtimedwait([], 60)
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def heard():
    """SIGINT raises KeyboardInterrupt, although a shell's `&` lets its children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("name", "said"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_an_evaluation_says_how_to_go_on(name, said, cli, world, tmp_path):
    (tmp_path / "tiny_rewards.py").write_text(JUDGE.format(name=name))
    (tmp_path / "stop").touch()
    config = {
        "run": {"dir": str(tmp_path / "run")},
        "evaluate": {"models": {"a": str(world.model), "b": str(world.model)}, "prompts": 2},
        "data": {"train": str(world.prompts)},
        "judge": {"function": "tiny_rewards:waits"},
        "rollout": {"max_new_tokens": 2},
    }
    file = tmp_path / "evaluate.yaml"
    file.write_text(yaml.safe_dump(config))
    result = cli("evaluate", file)
    assert result.code == 130, result.text
    assert f"evaluate was stopped by {said}; what it had finished is in" in result.text
    assert "the same command, --resume." in result.text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    (tmp_path / "stop").unlink()
    assert cli("evaluate", file, "--resume").code == 0


@pytest.mark.parametrize(
    ("run", "expected"),
    [(Path("runs/x"), "--resume and run.dir=runs/x."), (None, "nothing was written.")],
)
def test_a_directory_that_was_not_named_is_named(run, expected):
    with pytest.raises(Interrupted) as caught, told_when_stopped("active", run, None):
        raise Terminated
    assert str(caught.value).endswith(expected)


def test_the_record_is_written_before_the_line_that_announces_it(stage, cli, tmp_path, monkeypatch):
    seen = []

    def look(*words, **more):
        record = json.loads((tmp_path / "run-sft" / "run.json").read_text())
        seen.append((words[0], record["status"]))

    monkeypatch.setattr("align.cli.errors.print", look)
    cli(*stage("sft"))
    assert [status for words, status in seen if "sft" in words] == ["completed"]


def test_commands_without_a_run_say_that_they_were_interrupted(cli, tmp_path, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("align.report.build_report", stop)
    result = cli("report", tmp_path)
    assert (result.code, result.text) == (130, "interrupted")
