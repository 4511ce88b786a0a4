"""Guards through whole commands: runs that protect what earlier ones learnt, and `align guard`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.engine.guards.artefact import load_importance, load_rows, read_about

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def logged(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_a_sequence_of_stages_protects_itself(stage, cli, tmp_path):
    guards = [
        {"type": "ewc", "strength": 50.0, "remember": True, "samples": 4},
        {"type": "si", "strength": 1.0},
    ]
    result = cli(*stage("sft", guards=guards))
    assert result.code == 0, result.text
    first = tmp_path / "run-sft"
    kept = load_importance(first / "guards" / "ewc-0.safetensors")
    weights = load_file(first / "model" / "model.safetensors")
    assert all(torch.allclose(kept.anchor[n], weights[n]) for n in kept.anchor)
    assert max(float(v.max()) for v in kept.importance.values()) > 0
    si = load_importance(first / "guards" / "si-1.safetensors")
    assert max(float(v.max()) for v in si.importance.values()) > 0

    guards = [
        {"type": "ewc", "strength": 50.0, "remember": True, "samples": 4},
        {"type": "si", "strength": 50.0, "proximal": True},
    ]
    result = cli(*stage("dpo", f"model.path={first / 'model'}", guards=guards))
    assert result.code == 0, result.text
    second = tmp_path / "run-dpo"
    parents = [p["path"] for p in record(second)["parents"] if p["role"] == "guard"]
    assert [Path(p).name for p in parents] == ["ewc-0.safetensors", "si-1.safetensors"]
    penalties = logged(second, "guard/ewc")
    assert penalties[0] == pytest.approx(0.0, abs=1e-6)
    assert penalties[-1] > 0
    both = read_about(second / "guards" / "ewc-0.safetensors")
    assert both.tasks[:1] == kept.about.tasks
    assert len(both.tasks) == 2

    bare = cli(
        *stage("dpo", f"run.dir={tmp_path / 'bare'}", guards=[{"type": "mas", "strength": 1}])
    )
    assert bare.code == 2
    assert "mas has neither data nor artefact" in bare.text


def test_ppo_is_held_on_outputs_and_leaves_its_rollouts(stage, cli, tmp_path):
    guards = [
        {"type": "distill", "strength": 0.5, "on": "new", "reverse": True},
        {"type": "clear", "samples": 6, "batch_size": 2},
        {"type": "ema", "decay": 0.9},
    ]
    result = cli(*stage("ppo", guards=guards))
    assert result.code == 0, result.text
    folder = tmp_path / "run-ppo"
    assert logged(folder, "guard/distill")[0] == pytest.approx(0.0, abs=1e-5)
    assert logged(folder, "guard/clear")
    rows, about = load_rows(folder / "guards" / "clear-1.safetensors")
    assert about.kind == "clear"
    assert 1 <= len(rows) <= 6
    again = cli(
        *stage(
            "ppo", f"run.dir={tmp_path / 'next'}", f"model.path={folder / 'model'}", guards=guards
        )
    )
    assert again.code == 0, again.text
    parents = [p["path"] for p in record(tmp_path / "next")["parents"] if p["role"] == "guard"]
    assert [Path(p).name for p in parents] == ["clear-1.safetensors"]


def test_a_reward_model_replays_comparisons_within_a_budget(stage, cli, world, tmp_path):
    guards = [
        {"type": "replay", "strength": 0.5, "data": str(world.prefs), "samples": 4,
         "ratio": 0.5, "remember": True, "budget": {"every": 1, "samples": 4, "enforce": True}},
        {"type": "mas", "strength": 1.0, "data": str(world.prefs), "samples": 3},
    ]  # fmt: skip
    result = cli(*stage("reward", guards=guards))
    assert result.code == 0, result.text
    folder = tmp_path / "run-reward"
    found = record(folder)["results"]["retention"]["guards.0"]
    assert found["guard"] == "replay"
    assert found["used"] <= 1
    assert logged(folder, "guard/budget_used")
    rows, about = load_rows(folder / "guards" / "replay-0.safetensors")
    assert (about.kind, len(rows)) == ("rows", 4)
    assert "chosen" in rows[0]


def test_align_guard_makes_what_a_run_finds(stage, cli, world, tmp_path):
    model = tmp_path / "base"
    shutil.copytree(world.model, model)
    result = cli("guard", "fisher", model, world.sft, "--samples", "3", "--true")
    assert result.code == 0, result.text
    result = cli("guard", "buffer", world.sft, "--model", model, "--samples", "4")
    assert result.code == 0, result.text
    guards = [{"type": "ewc", "strength": 5.0}, {"type": "replay", "strength": 0.1}]
    result = cli(*stage("sft", f"model.path={model}", guards=guards))
    assert result.code == 0, result.text
    folder = tmp_path / "run-sft"
    assert logged(folder, "guard/ewc")[-1] > 0
    assert logged(folder, "guard/replay")[-1] > 0
    merged = tmp_path / "merged"
    half = ["--method", "soup", "--weight", "0.5"]
    result = cli("guard", "merge", merged, model, folder / "model", *half)
    assert result.code == 0, result.text
    start, end = (load_file(p / "model.safetensors") for p in (model, folder / "model"))
    for name, value in load_file(merged / "model.safetensors").items():
        assert torch.allclose(value, 0.5 * (start[name] + end[name]), atol=1e-6)
    result = cli("guard", "fisher", model, "none.jsonl", "--method", "fish", "--draws", "2")
    assert result.code == 2
    assert all(part in result.text for part in ("none.jsonl", "'fish'"))


def test_exemplars_are_herded_for_the_next_run(stage, cli, world, tmp_path):
    """Of the end of one run, and of `align guard buffer`; another model chooses other rows."""
    guards = [{"type": "replay", "strength": 1.0, "data": str(world.sft), "samples": 3}]
    guards[0] |= {"buffer": "herding", "remember": True}
    result = cli(*stage("sft", guards=guards))
    assert result.code == 0, result.text
    folder = tmp_path / "run-sft"
    kept, _ = load_rows(folder / "guards" / "replay-0.safetensors")
    assert len(kept) == 3
    result = cli("guard", "buffer", world.sft, "--model", folder / "model", "--samples", "3",
                 "--kind", "herding", "--out", tmp_path / "rows.safetensors")  # fmt: skip
    assert result.code == 0, result.text
    rows, about = load_rows(tmp_path / "rows.safetensors")
    assert (len(rows), about.details["kind"]) == (3, "herding")
    lines = [json.loads(line) for line in Path(world.sft).read_text().splitlines()]
    assert all(row["completion"] in [line["completion"] for line in lines] for row in rows)
    result = cli("guard", "buffer", world.sft, "--kind", "herding", "--out", tmp_path / "no")
    assert result.code == 2
    assert "give --model" in result.text


def test_a_first_run_keeps_rows_for_the_second(stage, cli, world, tmp_path):
    """`remember` with nothing to replay yet: the same configuration serves every run."""
    guards = [{"type": "replay", "strength": 1.0, "remember": True, "samples": 6}]
    budget = {"data": str(world.sft), "samples": 3}
    result = cli(*stage("sft", guards=[guards[0] | {"budget": budget}]))
    assert result.code == 0, result.text
    assert "has nothing to replay" in str(record(tmp_path / "run-sft")["warnings"])
    first = tmp_path / "run-sft"
    assert set(logged(first, "guard/replay")) <= {0.0}
    assert len(load_rows(first / "guards" / "replay-0.safetensors")[0]) == 6
    second = ["dpo", f"model.path={first / 'model'}"]
    result = cli(*stage(*second, guards=guards))
    assert result.code == 0, result.text
    assert logged(tmp_path / "run-dpo", "guard/replay")[0] > 0
