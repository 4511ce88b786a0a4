"""The PPO trainer: the on-policy trainer with PPO's experience and loss, guards and checks.

The outer loop is in `align.ppo.on_policy` and `align.ppo.loader`; mathematics in `advantages`,
`objectives` and `kl`. Policy and critic are one module.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from align.engine.finite import FiniteMixin
from align.engine.guards.base import GuardMixin
from align.engine.throughput import SpeedMixin
from align.ppo.actor_critic import ActorCritic
from align.ppo.checks import check_ratio
from align.ppo.config import PPOConfig
from align.ppo.correction import Correction
from align.ppo.experience import make_experience, shaping_of
from align.ppo.kl import AdaptiveKL, FixedKL
from align.ppo.objectives import (
    entropy_bonus,
    kl_loss,
    policy_loss,
    ratio_statistics,
    value_loss,
)
from align.ppo.on_policy import OnPolicyTrainer
from align.ppo.rewards import ScoreFn
from align.types import Experience, Rollout, Sampler


class PPOLossTrainer(OnPolicyTrainer):
    """The experience and the loss; `PPOTrainer` adds guards and checks."""

    args: PPOConfig
    model: ActorCritic

    def __init__(
        self,
        model: ActorCritic,
        reference: nn.Module | None,
        args: PPOConfig,
        sampler: Sampler,
        score: ScoreFn,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        value_learning_rate: float | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        """Set up.

        Args:
            model: policy and critic.
            reference: see `OnPolicyTrainer`, as all that follow but one.
            args: PPO's and transformers' arguments.
            sampler: draws completions.
            score: rewards of a rollout.
            train_dataset: prompts.
            processing_class: the tokenizer.
            value_learning_rate: of the critic; None for the policy's.
            callbacks: further callbacks.

        Raises:
            ConfigError: under ZeRO-3 or FSDP, or rollouts cannot be drawn ahead.
        """
        self.together = args.group_size if args.whole_groups else 1
        super().__init__(
            model, reference, args, sampler, score, train_dataset, processing_class, callbacks
        )
        self.value_learning_rate = value_learning_rate
        self.kl: FixedKL = FixedKL(args.kl_coef)
        if args.kl_controller == "adaptive":
            self.kl = AdaptiveKL(args.kl_coef, args.kl_target, args.kl_horizon)
        self.shaping = shaping_of(args, self.longest)
        if args.correction == "auto":
            found: Correction = "token_truncate" if self.synced else "none"
            self.shaping = replace(self.shaping, correction=found)

    @property
    def policy(self) -> nn.Module:
        """The language model of the pair."""
        return self.model.policy

    @property
    def corrected(self) -> bool:
        """Whether tokens are weighed by the ratio of policy and sampler."""
        return self.shaping.correction != "none"

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The configured optimizer, with the critic's learning rate on the critic."""
        optimizer = super().create_optimizer(model)
        if self.value_learning_rate is None:
            return optimizer
        critic = {id(parameter) for parameter in self.model.value_parameters()}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in critic]
            if not own:
                continue
            group["params"] = [p for p in group["params"] if id(p) not in critic]
            rest = {k: v for k, v in group.items() if k not in ("params", "lr")}
            optimizer.add_param_group({**rest, "params": own, "lr": self.value_learning_rate})
        return optimizer

    def experience_of(
        self, rollout: Rollout, scores: list[float]
    ) -> tuple[Experience, dict[str, float]]:
        """Rewards, KL and advantages; moves the KL coefficient."""
        experience, metrics = make_experience(
            rollout,
            scores,
            self.model,
            self.reference,
            kl_coef=self.kl.value,
            shaping=self.shaping,
            batch_size=self.args.per_device_train_batch_size,
            reduce=self._sum_over_ranks,
        )
        episodes = len(rollout) * self.args.world_size
        self.kl.update(self._mean_over_ranks(metrics["kl/reference"]), episodes)
        return experience, metrics

    @property
    def warming(self) -> bool:
        """Whether only the critic learns in this update."""
        return self.loader.update <= self.args.critic_warmup_updates

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward; while the critic warms up, nothing reaches the policy.

        Without a gradient the optimizer passes it over: no weight decay, no guard's penalty.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.warming:
            for parameter in self.policy.parameters():
                parameter.grad = None
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Clipped surrogate + vf_coef * value loss - entropy_coef * entropy."""
        args = self.args
        warming = self.warming
        mask, tokens, weights = inputs["mask"], inputs["tokens"], inputs["weights"]
        judged = model(
            inputs["input_ids"],
            inputs["attention_mask"],
            mask,
            temperature=getattr(self.sampler, "temperature", 1.0) or 1.0,
            with_entropy=args.entropy_coef > 0,
            detach_values=warming,
        )
        if not self.checked:
            self.checked = True
            check_ratio(judged.logprobs, inputs["logprobs"], mask, self._tolerance())
        actor = policy_loss(
            judged.logprobs,
            inputs["logprobs"],
            inputs["advantages"],
            mask,
            args.clip_range,
            args.dual_clip,
            tokens,
            args.clip_range_high,
            weights,
        )
        if not args.kl_in_reward:
            kl = kl_loss(
                judged.logprobs, inputs["ref_logprobs"], mask, args.kl_estimator, tokens, weights
            )
            actor = actor + self.kl.value * kl
        if args.entropy_coef > 0:
            bonus = entropy_bonus(judged.entropy, mask, tokens, weights)
            actor = actor - args.entropy_coef * bonus
        loss = actor * 0.0 if warming else actor
        if args.has_critic:
            critic = value_loss(
                judged.values,
                inputs["values"],
                inputs["returns"],
                mask,
                args.clip_range_value,
                tokens,
                weights,
            )
            loss = loss + args.vf_coef * critic
        share = float(tokens) / max(1e-8, float(inputs["shares"].sum()))  # undo the step's divisor
        self._record("policy/loss", actor, share)
        if args.has_critic:
            self._record("value/loss", critic, share)
        moved = ratio_statistics(judged.logprobs, inputs["logprobs"], mask, args.clip_range)
        for key, value in moved.items():
            self.metrics[key].append(value)
        return (loss, judged) if return_outputs else loss

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside transformers' own files."""
        return super().extra_state() | {"kl": self.kl.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        super().load_extra_state(state)
        self.kl.load_state_dict(state["kl"])


class PPOTrainer(SpeedMixin, FiniteMixin, GuardMixin, PPOLossTrainer):
    """PPO with guards and finite checks."""
