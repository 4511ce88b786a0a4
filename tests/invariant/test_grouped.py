"""GRPO and RLOO: 1 x 8 = 8 x 1, with and without a guard, and N steps = k + (N - k)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file

from align.config.load import load_config
from align.config.stages import STAGES
from align.engine.guards.ewc import EWC
from align.engine.trainers import GRPOTrainer, RLOOTrainer
from align.errors import Interrupted
from align.run import open_run, read_jsonl

TRAINERS = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}
# Schedules, running statistics and a reward that is random but for the state of the generator.
REWARDS = """
import torch

def vowels(prompts, completions, **columns):
    return [float(sum(c[-1]["content"].count(x) for x in "aeiou")) for c in completions]

async def noisy(prompts, completions, **columns):
    return [len(c[-1]["content"]) / 10 for c in completions]
"""


def even(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


@pytest.fixture
def descend(tmp_path, tiny_llama, tiny_tokenizer, preference_rows, policy_dir):
    """Weights after 3 steps of plain gradient descent on 8 completions a step."""

    def run(stage: str, micro: int, strength: float = 0.0) -> dict[str, Any]:
        model = tiny_llama(seed=0)
        model.config._name_or_path = str(policy_dir)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        args = getattr(trl, f"{stage.upper()}Config")(
            output_dir=str(tmp_path / stage),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
            max_steps=3,
            num_generations=4,
            max_completion_length=10,
            beta=0.1,
            learning_rate=0.05,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            seed=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
        )
        # A Fisher that differs from weight to weight, so that a wrong scale cannot hide.
        fisher = {
            n: torch.rand(p.shape, generator=torch.Generator().manual_seed(2))
            for n, p in start.items()
        }
        trainer = TRAINERS[stage](
            model=model,
            reward_funcs=[even],
            args=args,
            processing_class=tiny_tokenizer,
            train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in preference_rows]),
            guards=[EWC(strength, fisher)] if strength else [],
        )
        trainer.train()
        final = {n: p.detach() for n, p in trainer.model.named_parameters()}
        return {"start": start, "final": final, "log": trainer.state.log_history}

    return run


def greatest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[n] - second[n]).abs().max()) for n in first)


@pytest.mark.parametrize("stage", list(TRAINERS))
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_one_batch_of_8_equals_eight_of_1(descend, stage, strength):
    whole, eight = descend(stage, 8, strength), descend(stage, 1, strength)
    assert greatest(whole["final"], eight["final"]) < 1e-6
    assert greatest(whole["start"], whole["final"]) > 1e-4
    if strength:
        penalties = [row["guard/ewc"] for row in eight["log"] if "guard/ewc" in row]
        assert penalties[0] == 0.0
        assert penalties[-1] > 0.0
        assert greatest(whole["final"], descend(stage, 8)["final"]) > 1e-5  # it pulls


@pytest.fixture
def launch(tmp_path, policy_dir, data_files, monkeypatch) -> Callable[..., Path]:
    (tmp_path / "vowel_words.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(stage: str, name: str, *overrides: str, resume: bool = False) -> Path:
        given = [
            f"run.dir={tmp_path / name}",
            f"model.path={policy_dir}",
            f"data.train={data_files['prompts']}",
            "data.validation_fraction=0.2",
            "reward=[{function: 'vowel_words:vowels', normalise: running}, "
            "{function: 'vowel_words:noisy', schedule: {to: 0.0, updates: 6}}]",
            "trainer.num_generations=2",
            "trainer.per_device_train_batch_size=2",
            "trainer.gradient_accumulation_steps=2",
            "trainer.max_completion_length=6",
            "trainer.learning_rate=1e-2",
            "trainer.max_steps=8",
            "trainer.logging_steps=1",
            "tracking.report_to=[none]",
            f"guards=[{{type: ewc, strength: 5.0, samples: 3, data: {data_files['sft']}}}]",
            *[item.replace("FILE", str(data_files["prompts"])) for item in overrides],
        ]
        config = load_config(STAGES[stage], None, given)
        with open_run(config, resume=resume) as opened:
            importlib.import_module(f"align.stages.{stage}").run(config, opened, resume=resume)
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    ("stage", "stop", "overrides"),
    [
        ("grpo", 3, []),
        ("rloo", 3, []),
        # Completions used for 4 steps (2 passes over 4 micro-batches), stopped within the first.
        ("grpo", 3, ["trainer.steps_per_generation=4", "trainer.num_iterations=2"]),
        # 5 prompts make an epoch of 2 steps: the fifth step is in the third order of prompts.
        ("grpo", 5, ["data.train=[{path: FILE, limit: 6}]"]),
    ],
    ids=["grpo", "rloo", "half-used completions", "third epoch"],
)
def test_stopped_and_resumed_is_straight_through(
    launch, signal_at, policy_dir, stage, stop, overrides
):
    straight = launch(stage, "straight", *overrides)
    with signal_at(stop), pytest.raises(Interrupted, match=f"after step {stop}"):
        launch(stage, "stopped", *overrides)
    stopped = launch(stage, "stopped", *overrides, resume=True)
    first = load_file(straight / "model" / "model.safetensors")
    second = load_file(stopped / "model" / "model.safetensors")
    start = load_file(policy_dir / "model.safetensors")
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert any((first[n] - start[n]).abs().max() > 0 for n in start)
    logs = [
        [row for row in read_jsonl(run / "metrics.jsonl") if "reward/mean" in row]
        for run in (straight, stopped)
    ]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for key in ("reward/mean", "reward_weight/noisy", "num_tokens", "guard/ewc"):
        values = [[row.get(key) for row in log] for log in logs]
        assert values[0] == values[1], key
        assert len(set(values[0])) > 1, key
    samples = [read_jsonl(run / "samples.jsonl") for run in (straight, stopped)]
    assert samples[0] == samples[1]
    assert json.loads((stopped / "run.json").read_text())["status"] == "completed"
