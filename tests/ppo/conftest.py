"""What a PPO trainer needs, small enough to train in a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from trl.trainer.utils import disable_dropout_in_model

from align.engine.models import snapshot
from align.ppo.actor_critic import build_actor_critic
from align.ppo.config import PPOConfig
from align.ppo.rewards import reward_scorer
from align.ppo.trainer import PPOTrainer
from align.rollout.transformers import TransformersSampler

QUESTIONS = ["Where is my order", "I cannot log in", "Thank you", "The parcel is late", "Hello"]


def vowels(prompts, completions, **columns):
    """Reward: vowels in the answer."""
    return [float(sum(text.count(v) for v in "aeiou")) for text in completions]


@pytest.fixture
def make_trainer(tmp_path, tiny_llama, tiny_tokenizer) -> Callable[..., PPOTrainer]:
    """`make_trainer(policy=None, reference=..., reward=vowels, sampler={}, critic={}, **args)`."""

    def make(
        policy: Any = None,
        reference: Any = "snapshot",
        reward: Any = vowels,
        sampler: Any = None,
        critic: dict[str, Any] | None = None,
        guards: tuple[Any, ...] = (),
        value_learning_rate: float | None = None,
        **changes: Any,
    ) -> PPOTrainer:
        policy = tiny_llama(seed=4) if policy is None else policy
        disable_dropout_in_model(policy)
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "rollout_batch_size": 8,
            "per_device_train_batch_size": 4,
            "total_episodes": 8,
            "ppo_epochs": 2,
            "missing_eos_penalty": 0.0,
            "seed": 3,
        }
        model = build_actor_critic(policy, **(critic or {}))
        if sampler is None or isinstance(sampler, dict):
            drawn = {"max_new_tokens": 8, "temperature": 1.0} | (sampler or {})
            sampler = TransformersSampler(policy, tiny_tokenizer, **drawn)
        if isinstance(reference, str):
            reference = snapshot(policy)
        return PPOTrainer(
            model=model,
            reference=reference,
            args=PPOConfig(**settings | changes),
            sampler=sampler,
            score=reward_scorer([("reward", reward, 1.0)]),
            train_dataset=Dataset.from_dict({"prompt": QUESTIONS * 4}),
            processing_class=tiny_tokenizer,
            value_learning_rate=value_learning_rate,
            guards=guards,
        )

    return make


@pytest.fixture
def logged() -> Callable[[PPOTrainer, str], list[float]]:
    """The values of a metric over a run."""

    def values(trainer: PPOTrainer, key: str) -> list[float]:
        return [row[key] for row in trainer.state.log_history if key in row]

    return values


@pytest.fixture
def weights() -> Callable[[Any], dict[str, Any]]:
    """A copy of a module's parameters by name."""

    def copied(module: Any) -> dict[str, Any]:
        return copy.deepcopy({n: p.detach() for n, p in module.named_parameters()})

    return copied
