"""`align kto` as a command: thumbs of a file and of a store, comparisons, guards, the report."""

from __future__ import annotations

import json

import pytest

from align.engine.guards.artefact import load_rows
from feedback.schema import Comparison, Thumb
from feedback.store import FeedbackStore

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_thumbs_train_a_policy_and_the_report_shows_it(stage, cli, world, tmp_path):
    guards = [
        {"type": "distill", "strength": 0.5, "on": "new"},
        {"type": "ewc", "strength": 5.0, "data": str(world.sft), "samples": 3},
        {"type": "replay", "strength": 0.5, "data": str(world.sft), "samples": 3, "remember": True},
    ]
    dry = cli(*stage("kto", guards=guards), "--dry-run")
    assert dry.code == 0, dry.text
    assert "dry run of kto" in dry.text
    result = cli(*stage("kto", "run.overwrite=true", guards=guards))
    assert result.code == 0, result.text
    run = tmp_path / "run-kto"
    found = record(run)
    assert found["results"]["steps"] == 2
    assert "eval_rewards/margins" in found["results"]["validation"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("kl" in row and "guard/ewc" in row for row in rows)
    assert any(row.get("guard/distill") is not None for row in rows)
    kept, _ = load_rows(run / "guards" / "replay-2.safetensors")
    assert kept
    assert all(row["label"] for row in kept)
    page = tmp_path / "report.html"
    shown = cli("report", run, "-o", page)
    assert shown.code == 0, shown.text
    assert "rewards/margins" in page.read_text() or "Margin" in page.read_text()


def test_thumbs_of_a_store_and_comparisons_serve_too(stage, cli, world, tmp_path):
    lines = [json.loads(line) for line in world.thumbs.read_text().splitlines()]
    thumbs = [Thumb(row["prompt"], row["completion"], row["label"], "ann") for row in lines]
    with FeedbackStore(f"sqlite:///{tmp_path}/store.db") as store:
        store.add_judgements(thumbs)
    data = {"train": f"sqlite:///{tmp_path}/store.db", "validation_fraction": 0.0}
    result = cli(*stage("kto", f"run.dir={tmp_path / 'store'}", data=data))
    assert result.code == 0, result.text
    found = record(tmp_path / "store")
    assert (found["desirable"], found["undesirable"]) == (14, 14)

    data = {"train": str(world.prefs), "validation_fraction": 0.0}
    result = cli(*stage("kto", f"run.dir={tmp_path / 'pairs'}", "peft.method=lora", data=data))
    assert result.code == 0, result.text
    found = record(tmp_path / "pairs")
    assert (found["desirable"], found["undesirable"]) == (28, 28)

    pairs = [json.loads(line) for line in world.prefs.read_text().splitlines()]
    with FeedbackStore(f"sqlite:///{tmp_path}/pairs.db") as store:
        for row in pairs:
            said = Comparison(row["prompt"], row["chosen"], row["rejected"], "a", "ann")
            store.add_comparison(said)
    data = {"train": f"sqlite:///{tmp_path}/pairs.db", "validation_fraction": 0.0}
    result = cli(*stage("kto", f"run.dir={tmp_path / 'stored'}", data=data))
    assert result.code == 0, result.text
    assert record(tmp_path / "stored")["desirable"] == 28

    data = {"train": str(world.sft), "validation_fraction": 0.0}
    result = cli(*stage("kto", f"run.dir={tmp_path / 'none'}", data=data))
    assert result.code != 0
    assert "prompt-completion data cannot serve 'unpaired'" in result.text
    assert "an answer marked good or bad" in result.text
