"""PPO's own arguments, beside everything transformers' TrainingArguments has.

Defaults follow design.md's checklist: gamma 1, lambda 0.95, clip 0.2, value clip 0.2, vf_coef 0.1,
4 epochs, KL 0.05, learning rate 3e-6.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from align.errors import ConfigError, Problem
from align.ppo.advantages import CRITICS, GROUPED, WHITENED, Estimator
from align.ppo.correction import Correction
from align.ppo.kl import KLEstimator
from align.ppo.objectives import Aggregation


@dataclass
class PPOConfig(TrainingArguments):
    """Arguments of `PPOTrainer`.

    One update samples `rollout_batch_size` completions per process and takes
    ppo_epochs * rollout_batch_size / (per_device_train_batch_size * gradient_accumulation_steps)
    optimizer steps on them. `max_steps` follows from `total_episodes`.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Of policy and, unset, critic."})
    logging_steps: float = field(default=1, metadata={"help": "In optimizer steps."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "Schedule."})
    total_episodes: int = field(default=10_000, metadata={"help": "Completions over all updates."})
    rollout_batch_size: int = field(default=64, metadata={"help": "Completions per update, rank."})
    group_size: int = field(default=1, metadata={"help": "Completions per prompt."})
    ppo_epochs: int = field(default=4, metadata={"help": "Passes over each batch of rollouts."})
    advantage: Estimator = field(default="gae", metadata={"help": "Only gae has a critic."})
    loss_aggregation: Aggregation = field(default="token", metadata={"help": "Mean over what."})
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    gae_lambda: float = field(default=0.95, metadata={"help": "Of GAE."})
    clip_range: float = field(default=0.2, metadata={"help": "Of the probability ratio."})
    clip_range_high: float | None = field(default=None, metadata={"help": "Null: clip_range."})
    dual_clip: float | None = field(default=None, metadata={"help": "Bound for A < 0, above 1."})
    clip_range_value: float | None = field(default=0.2, metadata={"help": "Null: no clipping."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    kl_coef: float = field(default=0.05, metadata={"help": "Of the per-token KL in the reward."})
    kl_estimator: KLEstimator = field(default="k1", metadata={"help": "In the loss: k2 or k3."})
    kl_in_reward: bool = field(default=True, metadata={"help": "False: the KL is in the loss."})
    kl_controller: Literal["fixed", "adaptive"] = field(default="fixed", metadata={"help": ""})
    kl_target: float = field(default=6.0, metadata={"help": "Nats per sequence, adaptive only."})
    kl_horizon: int = field(default=10_000, metadata={"help": "Episodes, adaptive only."})
    whiten_advantages: bool | None = field(
        default=None, metadata={"help": "Over all ranks; null: for gae and reinforce++."}
    )
    whiten_rewards: bool = field(default=False, metadata={"help": "Keeps their mean."})
    reward_clip: float | None = field(default=None, metadata={"help": "Bound on |score|."})
    missing_eos_penalty: float = field(default=1.0, metadata={"help": "Off the score, if unended."})
    overlong_buffer: int = field(default=0, metadata={"help": "Last tokens; 0: no penalty."})
    overlong_penalty: float = field(default=1.0, metadata={"help": "At the length limit."})
    length_penalty: float = field(default=0.0, metadata={"help": "Off the score, per token."})
    mask_truncated: bool = field(default=False, metadata={"help": "Unended ones do not train."})
    critic_warmup_updates: int = field(default=0, metadata={"help": "Updates for the critic only."})
    correction: Literal["auto"] | Correction = field(
        default="auto", metadata={"help": "Of the sampler's probabilities; auto: for vLLM."}
    )
    correction_high: float = field(default=3.0, metadata={"help": "Greatest weight."})
    correction_low: float | None = field(default=None, metadata={"help": "Least weight."})
    rollouts_ahead: bool = field(default=False, metadata={"help": "Draw while training."})
    self_check: bool = field(default=True, metadata={"help": "Ratio 1 and KL 0 at step 0."})

    def __post_init__(self) -> None:
        """Check what belongs together and derive `max_steps`.

        Raises:
            ConfigError: with every problem found.
        """
        problems = self._problems()
        if problems:
            raise ConfigError(problems)
        if self.whiten_advantages is None:
            self.whiten_advantages = self.advantage in WHITENED
        if self.max_steps < 0:
            self.max_steps = self.updates * self.steps_per_update
        self.ignore_data_skip = True  # the loader restores its own position
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        super().__post_init__()

    @property
    def has_critic(self) -> bool:
        """Whether the advantage needs a value function."""
        return self.advantage in CRITICS

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps on one batch of rollouts."""
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return self.ppo_epochs * (self.rollout_batch_size // step)

    @property
    def updates(self) -> int:
        """Batches of rollouts; `total_episodes` counts over all processes."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        return max(1, self.total_episodes // (self.rollout_batch_size * world))

    def _problems(self) -> list[Problem]:
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        found = []
        if self.rollout_batch_size % step:
            found.append(
                Problem(
                    "trainer.rollout_batch_size",
                    f"{self.rollout_batch_size} is no multiple of per_device_train_batch_size * "
                    f"gradient_accumulation_steps = {step}.",
                    f"use {max(step, self.rollout_batch_size // step * step)}.",
                )
            )
        if self.group_size < 1 or self.rollout_batch_size % self.group_size:
            found.append(
                Problem(
                    "trainer.group_size",
                    f"{self.group_size} does not divide rollout_batch_size = "
                    f"{self.rollout_batch_size}.",
                )
            )
        if self.advantage in GROUPED and self.group_size < 2:
            found.append(
                Problem(
                    "trainer.group_size",
                    f"{self.group_size} completion a prompt, but advantage={self.advantage} "
                    "compares those of one prompt.",
                    "use 2 or more, for example 4.",
                )
            )
        if not self.kl_in_reward and self.kl_estimator == "k1" and self.kl_coef > 0:
            found.append(
                Problem(
                    "trainer.kl_estimator",
                    "k1 in the loss (kl_in_reward=false) has a gradient of 0 in expectation.",
                    "use k2 or k3.",
                )
            )
        if self.correction_low is not None and self.correction_low > self.correction_high:
            found.append(
                Problem(
                    "trainer.correction_low",
                    f"{self.correction_low} is above correction_high={self.correction_high}.",
                )
            )
        for name in ("overlong_buffer", "overlong_penalty", "length_penalty"):
            if getattr(self, name) < 0:
                found.append(Problem(f"trainer.{name}", f"{getattr(self, name)} is negative."))
        for name, low, high in (("gamma", 0.0, 1.0), ("gae_lambda", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                found.append(Problem(f"trainer.{name}", f"{value} is not within [{low}, {high}]."))
        if self.clip_range <= 0:
            found.append(Problem("trainer.clip_range", f"{self.clip_range} is not above 0."))
        if self.dual_clip is not None and self.dual_clip <= 1:
            found.append(Problem("trainer.dual_clip", f"{self.dual_clip} is not above 1."))
        if self.ppo_epochs < 1:
            found.append(Problem("trainer.ppo_epochs", f"{self.ppo_epochs} is not at least 1."))
        if self.kl_coef < 0:
            found.append(Problem("trainer.kl_coef", f"{self.kl_coef} is negative."))
        if self.eval_strategy != "no":
            found.append(
                Problem(
                    "trainer.eval_strategy",
                    "PPO evaluates nothing while it trains.",
                    "remove it and run `align evaluate` on the result.",
                )
            )
        return found
