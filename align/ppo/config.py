"""PPO's own arguments.

Defaults follow design.md's checklist: gamma 1, lambda 0.95, clip 0.2, value clip 0.2, vf_coef 0.1,
4 epochs, KL 0.05, learning rate 3e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from align.errors import Problem
from align.ppo.advantages import CRITICS, GROUPED, WHITENED, Estimator
from align.ppo.arguments import RolloutArguments
from align.ppo.correction import Correction
from align.ppo.kl import KLEstimator
from align.ppo.objectives import Aggregation


@dataclass
class PPOConfig(RolloutArguments):
    """Arguments of `PPOTrainer`; those of its outer loop are `RolloutArguments`'."""

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
    mask_truncated: bool = field(default=False, metadata={"help": "Unended ones do not train."})
    critic_warmup_updates: int = field(default=0, metadata={"help": "Updates for the critic only."})
    correction: Literal["auto"] | Correction = field(
        default="auto", metadata={"help": "Of the sampler's probabilities; auto: for vLLM."}
    )
    correction_high: float = field(default=3.0, metadata={"help": "Greatest weight."})
    correction_low: float | None = field(default=None, metadata={"help": "Least weight."})
    whole_groups: bool = field(
        default=False,
        metadata={"help": "A prompt's completions share minibatches: prefix sharing."},
    )

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises:
            ConfigError: with every problem found.
        """
        if self.whiten_advantages is None:
            self.whiten_advantages = self.advantage in WHITENED
        super().__post_init__()

    @property
    def has_critic(self) -> bool:
        """Whether the advantage needs a value function."""
        return self.advantage in CRITICS

    @property
    def epochs(self) -> int:
        """Passes over each batch of rollouts."""
        return self.ppo_epochs

    @property
    def bounds(self) -> Mapping[str, str]:
        """What each number must satisfy."""
        return {
            **super().bounds,
            "ppo_epochs": ">= 1",
            "gamma": ">= 0 and <= 1",
            "gae_lambda": ">= 0 and <= 1",
            "clip_range": "> 0",
            "clip_range_high": "> 0",
            "dual_clip": "> 1",
            "clip_range_value": "> 0",
            "vf_coef": ">= 0",
            "entropy_coef": ">= 0",
            "kl_coef": ">= 0",
            "kl_target": "> 0",
            "kl_horizon": ">= 1",
            "critic_warmup_updates": ">= 0",
            "correction_high": "> 0",
            "correction_low": ">= 0",
        }

    def _problems(self) -> list[Problem]:
        found = super()._problems()
        if self.advantage in GROUPED and self.group_size < 2:
            found.append(
                Problem(
                    "trainer.group_size",
                    f"{self.group_size} completion a prompt, but advantage={self.advantage} "
                    "compares those of one prompt.",
                    "use 2 or more, for example 4.",
                )
            )
        if self.whole_groups and self.per_device_train_batch_size % max(1, self.group_size):
            found.append(
                Problem(
                    "trainer.whole_groups",
                    f"per_device_train_batch_size={self.per_device_train_batch_size} holds no "
                    f"whole groups of {self.group_size}.",
                    f"use a multiple of {self.group_size}.",
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
        return found
