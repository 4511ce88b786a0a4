"""`align continual` through the command line on a tiny model: matrices, sharing, kills, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.continual import loop

pytestmark = [pytest.mark.integration, pytest.mark.slow]
QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}


@pytest.fixture
def config(world, tmp_path):
    """`config(**sections)`: the arguments of a command on a configuration of its own."""

    def write(folder: str = "run", **sections: Any) -> list[str]:
        held = {"validation_fraction": 0.0, "test_fraction": 0.4}
        given: dict[str, Any] = {
            "run": {"dir": str(tmp_path / folder), "seed": 3},
            "model": {"path": str(world.model)},
            "tasks": [
                {
                    "name": "preferences",
                    "stage": "dpo",
                    "settings": {
                        "data": {"train": str(world.prefs), **held},
                        "trainer": {**QUICK, "learning_rate": 1e-2},
                        "tracking": {"report_to": ["none"]},
                    },
                    "measure": {"kind": "preference"},
                },
                {
                    "name": "answers",
                    "stage": "sft",
                    "settings": {
                        "data": {"train": str(world.sft), **held},
                        "trainer": {**QUICK, "learning_rate": 1e-2},
                        "tracking": {"report_to": ["none"]},
                    },
                },
            ],
            "others": [{"name": "chat", "data": str(world.chat), "rows": 5}],
            "arms": {
                "naive": [],
                "replay": [{"type": "replay", "strength": 1.0, "data": "earlier"}],
            },
            "seeds": [0, 1],
        }
        given |= sections
        file = tmp_path / f"{folder}.yaml"
        file.write_text(yaml.safe_dump(given))
        return ["continual", str(file)]

    return write


def story_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "continual.json").read_text())


def test_two_tasks_two_arms_two_seeds_and_a_report(config, cli, tmp_path):
    dry = cli(*config(), "--dry-run")
    assert dry.code == 0, dry.text
    assert "6 trainings to do" in dry.text  # the first task once a seed
    assert not (tmp_path / "run").exists()
    result = cli(*config())
    assert result.code == 0, result.text
    run = tmp_path / "run"
    story = story_of(run)
    assert [one["name"] for one in story["columns"]] == ["preferences", "answers", "chat"]
    assert [one["n"] for one in story["columns"]][2] == 5
    naive, replay = story["arms"]["naive"], story["arms"]["replay"]
    assert naive["matrix"][:2] == replay["matrix"][:2]  # before, and after what they share
    assert naive["matrix"][2] != replay["matrix"][2]  # the guard did something
    assert len(naive["matrix"]) == 3
    assert naive["matrix"][0][0] == 0.5  # a model has gained nothing on itself
    assert naive["figures"]["forgetting"]["n"] == 2
    assert "low" in replay["figures"]["new less naive"]
    assert story["naive"] == "naive"
    record = json.loads((run / "run.json").read_text())
    assert record["results"]["front"] == story["front"]
    assert not (
        run / "shared/seed-0/01-preferences/model"
    ).exists()  # nobody starts from it any more
    assert (run / "arms/replay/seed-1/02-answers/model").is_dir()

    page = tmp_path / "report.html"
    result = cli("report", run, "-o", page)
    assert result.code == 0, result.text
    html = page.read_text()
    assert "Continual training" in html
    assert "after preferences" in html
    assert "replay 1" in html
    assert "heat-6" in html


def test_a_run_that_was_killed_goes_on_and_ends_alike(config, cli, tmp_path, monkeypatch):
    arms = {"replay": [{"type": "replay", "strength": 1.0, "data": "earlier"}]}
    given = {"arms": arms, "seeds": [0]}
    assert cli(*config("whole", **given)).code == 0
    real, seen = loop.measure_model, []

    def killed(*arguments: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 2:  # the first task is trained, and not measured
            raise KeyboardInterrupt
        return real(*arguments)

    arguments = config("cut", **given)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure_model", killed)
        assert cli(*arguments).code != 0
    trained = tmp_path / "cut/shared/seed-0/01-preferences/run.json"
    before = trained.stat().st_mtime_ns
    again = cli(*arguments, "--resume")
    assert again.code == 0, again.text
    assert trained.stat().st_mtime_ns == before  # not trained again
    whole, cut = story_of(tmp_path / "whole"), story_of(tmp_path / "cut")
    assert cut["arms"]["replay"]["matrix"] == whole["arms"]["replay"]["matrix"]


def test_rewards_of_answers_are_measured_by_functions_and_models(config, cli, world, tmp_path):
    (tmp_path / "tiny_length.py").write_text(
        "def length(prompts, completions, place, **columns):\n"
        "    return [len(text) / 10 for text in completions]\n"
    )
    reward = {"kind": "reward", "data": str(world.prompts), "rows": 6, "max_new_tokens": 4}
    others = [{"name": "length", **reward, "reward": "tiny_length:length"}]
    given = {"others": others, "arms": {"naive": []}, "seeds": [0]}
    result = cli(*config(**given))
    assert result.code == 0, result.text
    found = json.loads((tmp_path / "run/start.json").read_text())["length"]
    assert len(found["raw"]) == 6
    assert found["low"] <= found["value"] <= found["high"]
    story = story_of(tmp_path / "run")
    assert "change of length" in story["arms"]["naive"]["figures"]

    missing = [{"name": "length", "data": str(world.prompts), "kind": "reward"}]
    result = cli(*config("other", others=missing))
    assert result.code == 2
    assert "reward is missing" in result.text


def test_every_fault_at_once_and_by_name(config, cli, world):
    task = {
        "name": "answers",
        "stage": "sft",
        "settings": {
            "model": {"path": "elsewhere"},
            "data": {"train": str(world.sft)},
            "trainer": {"learning_rat": 1.0},
        },
    }
    other = {"name": "more", "stage": "dpo", "settings": {"dat": {}}}
    result = cli(
        *config(
            tasks=[task, task, other],
            others=[{"name": "tax"}],
            arms={"a/b": [{"type": "ewcc", "strength": 1.0, "from": 0}]},
            seeds=[1, 1],
        )
    )
    assert result.code == 2
    for words in (
        "tasks.0.settings.model: is set for all tasks at once",
        "tasks.0.settings.trainer.learning_rat",
        "tasks.1.name: 'answers' is there twice",
        "tasks.2.settings.dat",
        "others.0.data",
        "'a/b' is no name of a folder",
        "arms.a/b.0.from: 0 is no number of a task",
        "seeds: one of them is there twice",
        "ewcc",
    ):
        assert words in result.text, words


def test_a_task_without_held_out_rows_says_what_to_do(config, cli, world):
    task = {
        "name": "answers",
        "settings": {"data": {"train": str(world.sft), "validation_fraction": 0.0}},
    }
    result = cli(*config(tasks=[task], others=[], seeds=[0]))
    assert result.code != 0
    assert "answers: its own data has no held-out rows" in result.text
    assert "data.test_fraction" in result.text
