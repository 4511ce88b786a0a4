"""Curricula and samplers in real runs: a stopped and resumed run is the same run, bit for bit."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.errors import CheckpointError, Interrupted
from align.run import open_run, read_jsonl

REWARD = """
def vowels(prompts, completions, **columns):
    return [float(sum(c[-1]["content"].count(x) for x in "aeiou")) for c in completions]
"""
COMMON = [
    "trainer.learning_rate=1e-3",
    "tracking.report_to=[none]",
    "trainer.logging_steps=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
    "data.validation_fraction=0.1",
]
REWARDS = ["reward=[{function: 'order_vowels:vowels'}]"]
SAMPLER = (
    "data.sampler=[{by: class, column: topic, power: 0.5}, "
    "{by: recency, column: day, half_life: 9}]"
)
SETTINGS = {
    "sft": [
        "trainer.max_steps=9",  # 22 rows, 6 steps: a second epoch begins on the way
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=2",
        # every validation is a plateau, so the pool grows while batches are read ahead
        "data.curriculum={difficulty: perplexity, pacing: adaptive, start: 0.2, increment: 0.3, "
        "min_delta: 100}",
    ],
    "dpo": ["trainer.max_steps=6", "data.curriculum={start: 0.3, pacing: linear}", SAMPLER],
    "reward": [
        "trainer.max_steps=6",
        "normalisation.prompts=4",
        "normalisation.max_new_tokens=4",
        "data.curriculum={difficulty: reward_margin, pacing: step, stages: 2, order: hard}",
    ],
    "ppo": [
        *REWARDS,
        "trainer.total_episodes=24",
        "trainer.rollout_batch_size=8",
        "trainer.ppo_epochs=1",
        "rollout.max_new_tokens=6",
        "data.curriculum={start: 0.4, pacing: sigmoid}",
    ],
    "grpo": [
        *REWARDS,
        "trainer.max_steps=7",
        "trainer.num_generations=2",
        "trainer.max_completion_length=6",
        "trainer.steps_per_generation=4",
        "data.curriculum={start: 0.4, pacing: exponential}",
    ],
}


@pytest.fixture
def launch(tmp_path, policy_dir, preference_rows, monkeypatch):
    (tmp_path / "order_vowels.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    further = [{"topic": "ab"[i % 5 == 0], "day": i, "margin": i % 7 / 2} for i in range(24)]
    rows = [row | more for row, more in zip(preference_rows, further, strict=True)]
    prompts = [{"prompt": row["prompt"]} | more for row, more in zip(rows, further, strict=True)]
    for name, lines in {"pairs": rows, "prompts": prompts}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))

    def run(stage: str, name: str, *overrides: str, resume: bool = False) -> Path:
        file = "prompts.jsonl" if stage in ("ppo", "grpo") else "pairs.jsonl"
        given = [f"run.dir={tmp_path / name}", f"model.path={policy_dir}", f"data.train={file}"]
        given += [*COMMON, *SETTINGS[stage], *overrides]
        config = load_config(STAGES[stage], None, given)
        with open_run(config, resume=resume) as opened:
            importlib.import_module(f"align.stages.{stage}").run(config, opened, resume=resume)
        return tmp_path / name

    return run


def logged(run: Path) -> dict[int, dict[str, float]]:
    """What the order logged, by step: every line but the sums at the end."""
    keys = ("curriculum/", "sampler/")
    found = {}
    for row in read_jsonl(run / "metrics.jsonl"):
        values = {k: v for k, v in row.items() if k.startswith(keys)}
        if values:
            found[row["step"]] = values
    return found


@pytest.mark.parametrize(
    ("stage", "stop"), [("sft", 7), ("dpo", 3), ("reward", 5), ("ppo", 3), ("grpo", 3)]
)
def test_a_stopped_and_resumed_order_is_the_same_order(launch, signal_at, stage, stop):
    straight = launch(stage, "straight")
    with signal_at(stop), pytest.raises(Interrupted):
        launch(stage, "stopped")
    stopped = launch(stage, "stopped", resume=True)
    first, second = (load_file(run / "model" / "model.safetensors") for run in (straight, stopped))
    assert all(torch.equal(first[name], second[name]) for name in first)
    figures = logged(straight)
    assert figures == logged(stopped)
    shares = [row["curriculum/pool_share"] for _, row in sorted(figures.items())]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    card = json.loads((straight / "data_card.json").read_text())
    assert card["order"]["curriculum"]["quartiles"]
    if stage == "sft":  # the negative control: the order matters
        plain = launch(stage, "plain", "data.curriculum=null")
        other = load_file(plain / "model" / "model.safetensors")
        assert not all(torch.equal(first[name], other[name]) for name in first)
        assert logged(plain) == {}
        changes = {row["curriculum/competence"] for row in figures.values()}
        assert len(changes) >= 3  # adaptive pacing grew, before the stop and after it
        assert not list((straight / "checkpoints").glob("**/difficulty*"))
        assert len(list((straight / "difficulty").glob("*.npy"))) == 1
    if stage == "dpo":
        by = {entry["by"]: entry for entry in card["order"]["samplers"]}
        shares = by["class"]["shares"]
        assert shares["b"]["draws"] > shares["b"]["rows"]
        assert sum(share["draws"] for share in shares.values()) == pytest.approx(1, abs=1e-3)
        assert all("sampler/weight" in row for row in figures.values())


def test_a_checkpoint_of_another_order_is_refused(launch, signal_at, tmp_path):
    with signal_at(3), pytest.raises(Interrupted):
        launch("dpo", "stopped")
    file = tmp_path / "pairs.jsonl"
    file.write_text(file.read_text().replace('"topic": "b"', '"topic": "a"'))
    with pytest.raises(CheckpointError, match=r"data\.sampler.*is not this one"):
        launch("dpo", "stopped", resume=True)


def test_a_curriculum_that_never_ends_is_told(launch):
    run = launch("dpo", "short", "data.curriculum.steps=1000")
    record = json.loads((run / "run.json").read_text())
    assert any("were never drawn" in warning for warning in record["warnings"])
    assert 0.3 <= record["results"]["curriculum"]["competence"] < 0.32
