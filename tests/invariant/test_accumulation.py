"""1 x 8 = 8 x 1 through the real trainers, with and without a guard (PPO: tests/ppo)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForSequenceClassification
from trl import DPOConfig, KTOConfig, RewardConfig, SFTConfig

from align.engine.guards.ewc import EWC
from align.engine.guards.replay import Replay
from align.engine.trainers import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer

STEPS = 3


@pytest.fixture
def train(tmp_path, tiny_llama, tiny_tokenizer, preference_rows) -> Callable[..., dict[str, Any]]:
    """Weights after a few steps of plain gradient descent on 8 rows a step."""

    def run(
        stage: str, micro: int, accumulation: int, strength: float = 0.0, kind: str = "ewc"
    ) -> dict[str, Any]:
        model = tiny_llama(seed=6)
        if stage == "reward":
            config = copy.deepcopy(model.config)
            config.num_labels = 1
            torch.manual_seed(6)
            model = LlamaForSequenceClassification(config)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / stage),
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": accumulation,
            "max_steps": STEPS,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "max_length": 96,
            "seed": 1,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
        }
        # A Fisher that differs from weight to weight, so that a wrong scale cannot hide.
        fisher = {
            n: torch.rand(p.shape, generator=torch.Generator().manual_seed(2))
            for n, p in start.items()
        }
        guards: list[Any] = [EWC(strength, fisher)] if strength else []
        if kind == "replay":  # in the loss, as ewc is not: transformers may divide that
            stored = [{"input_ids": torch.tensor([[7, 8 + n, 9]])} for n in range(4)]
            guards = [Replay(stored, moved, strength, 4, size_fn=lambda batch: torch.tensor(4.0))]
        rows = preference_rows[:24]
        if stage == "sft":
            rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
        common = {
            "model": model,
            "processing_class": tiny_tokenizer,
            "train_dataset": Dataset.from_list(rows),
            "guards": guards,
        }
        if stage == "sft":
            trainer: Any = SFTTrainer(args=SFTConfig(**settings), **common)
        elif stage == "reward":
            trainer = RewardTrainer(args=RewardConfig(**settings), **common)
        elif stage == "kto":  # whose KL term reads a batch as a whole; this loss has none
            settings |= {"loss_type": "apo_zero_unpaired", "train_sampling_strategy": "random"}
            args = KTOConfig(**settings)
            trainer = KTOTrainer(args=args, ref_model=copy.deepcopy(model), **common)
        else:
            reference = copy.deepcopy(model)
            trainer = DPOTrainer(args=DPOConfig(**settings), ref_model=reference, **common)
        trainer.train()
        final = {n: p.detach() for n, p in trainer.model.named_parameters()}
        return {"start": start, "final": final, "log": trainer.state.log_history}

    return run


def moved(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss of any model: its first embeddings' squares."""
    found: torch.Tensor = model.get_input_embeddings()(batch["input_ids"]).square().sum()
    return found


def greatest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[n] - second[n]).abs().max()) for n in first)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_one_batch_of_8_equals_eight_of_1(train, stage, strength):
    whole = train(stage, 8, 1, strength)
    eight = train(stage, 1, 8, strength)
    assert greatest(whole["final"], eight["final"]) < 1e-6
    assert greatest(whole["start"], whole["final"]) > 1e-4
    if strength:
        penalties = [row["guard/ewc"] for row in eight["log"] if "guard/ewc" in row]
        assert penalties[0] == 0.0
        assert penalties[-1] > 0.0


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
def test_a_penalty_in_the_loss_counts_once_a_step(train, stage):
    """Whether the trainer scales its own loss for accumulation or leaves it to transformers."""
    whole = train(stage, 8, 1, 0.5, "replay")
    eight = train(stage, 1, 8, 0.5, "replay")
    assert greatest(whole["final"], eight["final"]) < 1e-6
    assert greatest(whole["final"], train(stage, 8, 1)["final"]) > 1e-4


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
def test_the_guard_changes_the_result_and_a_strong_one_holds(train, stage):
    """Mutation: without the penalty, or with it applied a fraction, these would not differ."""
    free = train(stage, 4, 2)
    held = train(stage, 4, 2, 3.0)
    tighter = train(stage, 4, 2, 15.0)

    def drift(run: dict[str, Any]) -> float:
        return sum(float((run["final"][n] - p).square().sum()) for n, p in run["start"].items())

    assert drift(free) > drift(held) > drift(tighter) > 0
