"""A continual run that was stopped, between its tasks or inside one, goes on and ends alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from align.continual import loop

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def story_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "continual.json").read_text())


def test_a_run_that_was_killed_goes_on_and_ends_alike(continual, cli, tmp_path, monkeypatch):
    arms = {"replay": [{"type": "replay", "strength": 1.0, "data": "earlier"}]}
    given = {"arms": arms, "seeds": [0]}
    assert cli(*continual("whole", **given)).code == 0
    real, seen = loop.measure_models, []

    def killed(*arguments: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 2:  # the first task is trained, and not measured
            raise KeyboardInterrupt
        return real(*arguments)

    arguments = continual("cut", **given)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure_models", killed)
        assert cli(*arguments).code != 0
    trained = tmp_path / "cut/shared/seed-0/01-preferences/run.json"
    before = trained.stat().st_mtime_ns
    again = cli(*arguments, "--resume")
    assert again.code == 0, again.text
    assert trained.stat().st_mtime_ns == before  # not trained again
    whole, cut = story_of(tmp_path / "whole"), story_of(tmp_path / "cut")
    assert cut["arms"]["replay"]["matrix"] == whole["arms"]["replay"]["matrix"]


def test_a_run_that_was_stopped_inside_a_task_goes_on_inside_it(
    continual, cli, tmp_path, monkeypatch
):
    def given(folder: str) -> list[str]:
        arguments = continual(folder, arms={"naive": []}, seeds=[0])
        file = Path(arguments[1])
        made = yaml.safe_load(file.read_text())
        made["tasks"][0]["settings"]["trainer"] |= {"save_steps": 1, "max_steps": 3}
        file.write_text(yaml.safe_dump(made))
        return arguments

    steps: list[int] = []
    real = transformers.Trainer.training_step

    def counted(trainer: Any, *arguments: Any, **more: Any) -> Any:
        steps.append(trainer.state.global_step)
        if len(steps) == stop:
            raise KeyboardInterrupt
        return real(trainer, *arguments, **more)

    monkeypatch.setattr(transformers.Trainer, "training_step", counted)
    stop = 0  # never
    assert cli(*given("whole")).code == 0
    assert steps == [0, 1, 2, 0, 1]
    steps.clear()
    stop = 3
    assert cli(*given("cut")).code != 0
    steps.clear()
    stop = 0
    again = cli(*given("cut"), "--resume")
    assert again.code == 0, again.text
    assert steps == [2, 0, 1]  # two steps of the first task are not made again
    whole, cut = story_of(tmp_path / "whole"), story_of(tmp_path / "cut")
    assert cut["arms"]["naive"]["matrix"] == whole["arms"]["naive"]["matrix"]
