"""The whole-command fixtures of tests/faults/conftest.py, here too."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).resolve().parents[1] / "faults" / "conftest.py"
spec = importlib.util.spec_from_file_location("command_fixtures", FILE)
assert spec is not None
assert spec.loader is not None
fixtures = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = fixtures  # dataclasses look their module up
spec.loader.exec_module(fixtures)

world, reward_model, hollow_model = fixtures.world, fixtures.reward_model, fixtures.hollow_model
cli, stage, copy_model = fixtures.cli, fixtures.stage, fixtures.copy_model
forget_rewards = fixtures.forget_rewards

THINGS = ["a lamp", "a chair", "the door", "my order", "a parcel", "the bill", "an account"]
PLACES = ["in Oslo", "at home", "on the roof", "by the sea"]
QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}


@pytest.fixture
def continual(world, tmp_path):
    """`continual(**sections)`: the arguments of a command on a configuration of its own."""

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


@pytest.fixture
def selftrain(world, tmp_path):
    """`selftrain(method, **sections)`: the arguments of a command on a configuration of its own."""

    def write(method: str = "raft", **sections: Any) -> list[str]:
        given: dict[str, Any] = {
            "run": {"dir": str(tmp_path / "run"), "seed": 3},
            "model": {"path": str(world.model)},
            "loop": {"method": method, "rounds": 2},
            "data": {"train": str(world.prompts), "validation_fraction": 0.4},
            "trainer": {
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "logging_steps": 1,
                "learning_rate": 1e-3,
            },
            "tracking": {"report_to": ["none"]},
        }
        if method == "preferences":
            pairs = [pair(number) for number in range(90)]
            people = [label(row, wrong=number % 4 == 0) for number, row in enumerate(pairs[:60])]
            write_jsonl(tmp_path / "people.jsonl", people)
            write_jsonl(tmp_path / "pool.jsonl", pairs[60:])
            given["data"] = {"train": str(tmp_path / "people.jsonl"), "validation_fraction": 0.6}
            given["pseudo"] = {"path": str(tmp_path / "pool.jsonl"), "members": 2, "tau": 0.55}
            given["pseudo"] |= {"tau_last": 0.5, "similarity": None, "balance": ["position"]}
            given["normalisation"] = {"prompts": 4, "max_new_tokens": 4}
            given["trainer"] |= {"max_steps": 16, "per_device_train_batch_size": 8}
        else:
            given["reward"] = [{"function": "tiny_rewards:length"}]
            given["harvest"] = {"samples": 3}
            given["rollout"] = {"max_new_tokens": 6}
        for name, section in sections.items():
            both = isinstance(section, dict) and isinstance(given.get(name), dict)
            given[name] = given[name] | section if both else section
        (tmp_path / "tiny_rewards.py").write_text(REWARDS)
        file = tmp_path / "selftrain.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}))
        return ["selftrain", str(file)]

    return write


REWARDS = """
def length(prompts, completions, **columns):
    return [len(text) / 10 for text in completions]

def even(prompts, completions, **columns):
    return [1.0 if len(text) % 2 == 0 else 0.0 for text in completions]
"""


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pair(number: int) -> dict[str, Any]:
    """A helpful answer and one that is none, in either order."""
    thing, place = THINGS[number % 7], PLACES[number % 4]
    texts = [f"It is {place}, please look there.", f"No {thing} here."]
    first, second = texts if number % 2 else reversed(texts)
    prompt = f"Where is {thing} of {number}?\n"
    return {"prompt": prompt, "response_a": first, "response_b": second}


def label(row: dict[str, Any], wrong: bool) -> dict[str, Any]:
    """What a person says of a pair: the helpful answer, unless they err."""
    texts = sorted([row["response_a"], row["response_b"]], key=lambda text: text[0] == "N")
    better, worse = reversed(texts) if wrong else texts
    return {"prompt": row["prompt"], "chosen": better, "rejected": worse}
