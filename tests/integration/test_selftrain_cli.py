"""`align selftrain` through the command line on a tiny model: every method, kills, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(world, tmp_path):
    """`config(method, **sections)`: the arguments of a command on a configuration of its own."""

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
            given["data"] = {"train": str(world.prefs), "validation_fraction": 0.7}
            given["pseudo"] = {"path": str(tmp_path / "pool.jsonl"), "members": 2}
            given["pseudo"] |= {"tau": 0.55, "tau_last": 0.5, "similarity": None, "balance": []}
            given["normalisation"] = {"prompts": 4, "max_new_tokens": 4}
            pool = [
                {
                    "prompt": f"Where is the {thing}? ",
                    "response_a": f"It is {place}, please look there.",
                    "response_b": f"No {thing} here.",
                }
                for thing in ("cup", "key", "hat", "map", "pen")
                for place in ("in Rome", "at work", "on the table", "by the lake")
            ]
            lines = "".join(json.dumps(row) + "\n" for row in pool)
            (tmp_path / "pool.jsonl").write_text(lines)
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
# A tiny model of random weights seldom ends by itself: the least that is kept is an answer that did.
ENDS = {"max_new_tokens": 40}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_raft(config, cli, tmp_path):
    dry = cli(*config(), "--dry-run")
    assert dry.code == 0, dry.text
    assert "nothing trained" in dry.text
    result = cli(*config(rollout=ENDS))
    assert result.code == 0, result.text
    print(result.text)
