"""`data.augment` and `data.balance` in every kind of stage, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def data(world, tmp_path) -> dict[str, dict[str, Any]]:
    """Each stage's rows in two files, the second much smaller, with noise and balance."""
    found = {}
    files = {"sft": world.sft, "reward": world.prefs, "dpo": world.prefs, "ppo": world.prompts}
    for name, file in files.items():
        lines = Path(file).read_text().splitlines(keepends=True)
        cut = 3 * len(lines) // 4
        parts = {"many": lines[:cut], "few": lines[cut:]}
        for part, rows in parts.items():
            (tmp_path / f"{name}-{part}.jsonl").write_text("".join(rows))
        found[name] = {
            "train": [str(tmp_path / f"{name}-{part}.jsonl") for part in parts],
            "validation_fraction": 0.2,
            "augment": [
                {"kind": "typos", "rate": 0.2, "share": 0.5, "seed": 1},
                {"kind": "ocr", "rate": 0.5, "share": 0.5, "mode": "replace"},
            ],
            "balance": {"method": "weights" if name == "reward" else "over"},
        }
    return found


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo"])
def test_a_run_on_made_rows_and_its_resumption(name, stage, cli, data, tmp_path):
    result = cli(*stage(name, data=data[name]))
    assert result.code == 0, result.text
    assert "Augmentation (training rows)" in result.text
    folder = tmp_path / f"run-{name}"
    card = json.loads((folder / "data_card.json").read_text())
    typos, ocr = card["augmented"]
    assert typos["made"] > 0 < ocr["made"]
    made = [json.loads(line) for line in (folder / "augmented.jsonl").read_text().splitlines()]
    assert len(made) == typos["made"] + ocr["made"]
    before, after = card["balanced"]["before"], card["balanced"]["after"]
    assert sum(after.values()) == card["splits"]["train"]
    if name == "reward":
        assert before == after
        assert len(card["balanced"]["weights"]) == 2
    else:
        assert len(set(after.values())) == 1 < len(set(before.values()))
    again = cli(*stage(name, data=data[name]), "--resume")
    assert again.code == 0, again.text
    assert json.loads((folder / "data_card.json").read_text()) == card


def test_everything_wrong_is_said_before_a_model_loads(stage, cli, data, tmp_path):
    data = data["dpo"] | {
        "augment": [
            {"kind": "deletion", "fields": "answers"},
            {"kind": "contextual", "model": "./nowhere"},
        ]
    }
    result = cli(*stage("dpo", data=data))
    assert result.code == 2
    text = " ".join(result.text.split())
    assert "data.augment.0.deletion.fields: answers: damage may hit the better answer" in text
    assert "data.augment.1.contextual.model: ./nowhere is no directory." in text
    assert not (tmp_path / "run-dpo" / "model").exists()
