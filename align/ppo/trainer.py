"""The PPO trainer: transformers' Trainer with our loader, our loss, guards and checks.

The outer loop (prompts, rollouts, experience) is in `align.ppo.loader`; mathematics in
`advantages`, `objectives` and `kl`. Policy and critic are one module. Leaves out sharded
generation: under ZeRO-3 and FSDP the trainer refuses to start.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import fields
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from align.engine.guards.base import GuardMixin
from align.engine.monitor import FiniteMixin
from align.errors import ConfigError, Problem
from align.ppo.actor_critic import ActorCritic
from align.ppo.checks import check_ratio, check_start, refuse_sharding, tolerance_of
from align.ppo.config import PPOConfig
from align.ppo.experience import Shaping, make_experience
from align.ppo.kl import AdaptiveKL, FixedKL
from align.ppo.loader import OnPolicyLoader, PromptStream
from align.ppo.objectives import (
    entropy_bonus,
    kl_loss,
    policy_loss,
    ratio_statistics,
    value_loss,
)
from align.ppo.rewards import RewardScorer, ScoreFn
from align.types import Experience, Rollout, Sampler, SyncedSampler, Text


class PPOLossTrainer(transformers.Trainer):
    """The loss and the loader; `PPOTrainer` adds guards and checks."""

    # compute_loss divides by the tokens of the whole optimizer step itself.
    loss_is_scaled_for_ga = True
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
            reference: frozen start policy; None when the policy's adapters are switched off
                instead.
            args: PPO's and transformers' arguments.
            sampler: draws completions with the same policy object.
            score: rewards of a rollout and what to log about them (`reward_scorer`).
            train_dataset: rows with a `prompt` and any columns rewards want.
            processing_class: the tokenizer, saved with checkpoints.
            value_learning_rate: of the critic; None for the policy's.
            callbacks: further callbacks.

        Raises:
            ConfigError: under ZeRO-3 or FSDP.
        """
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        refuse_sharding(self)
        self.reference = reference
        if reference is not None:
            reference.to(args.device)
        self.sampler, self.score = sampler, score
        self.value_learning_rate = value_learning_rate
        self.kl: FixedKL = FixedKL(args.kl_coef)
        if args.kl_controller == "adaptive":
            self.kl = AdaptiveKL(args.kl_coef, args.kl_target, args.kl_horizon)
        synced = isinstance(sampler, SyncedSampler)
        longest = getattr(sampler, "max_new_tokens", 1) * getattr(sampler, "max_turns", 1)
        self.shaping = shaping_of(args, longest, synced)
        refuse_ahead(args, synced)
        if isinstance(score, RewardScorer):
            score.group_size, score.reduce = args.group_size, self._sum_over_ranks
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.tokens_seen = 0
        self.started = False
        self.checked = not args.self_check
        self.loader = OnPolicyLoader(
            PromptStream(
                train_dataset,
                args.rollout_batch_size // args.group_size,
                args.seed,
                args.process_index,
                args.world_size,
            ),
            self._sample,
            self._prepare,
            epochs=args.ppo_epochs,
            micro_batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed,
            sum_over_ranks=self._sum_over_ranks,
            world=args.world_size,
            refresh=self._refresh,
            ahead=args.rollouts_ahead,
            updates=args.updates,
        )

    def get_train_dataloader(self) -> OnPolicyLoader:  # type: ignore[override]
        """Our loader, unprepared (see `align.ppo.loader`)."""
        if not self.started and self.state.global_step == 0 and self.args.world_size > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # ranks differ
        self.started = True
        return self.loader

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

    def _refresh(self) -> None:
        """Bring a sampler with weights of its own the policy's of now."""
        if isinstance(self.sampler, SyncedSampler):
            found = self.sampler.sync(self.model.policy, self.loader.update)
            for key, value in found.items():
                self.metrics[key].append(value)

    def _sample(self, prompts: list[Text], columns: dict[str, list[Any]]) -> Rollout:
        return self.sampler(prompts, group_size=self.args.group_size, **columns)

    def _prepare(self, rollout: Rollout) -> Experience:
        """Score a batch of rollouts and turn it into an experience."""
        args = self.args
        if isinstance(self.score, RewardScorer):
            self.score.update, self.score.trainer_state = self.loader.update, self.state
        scores, reward_metrics = self.score(rollout)
        experience, metrics = make_experience(
            rollout,
            scores,
            self.model,
            self.reference,
            kl_coef=self.kl.value,
            shaping=self.shaping,
            batch_size=args.per_device_train_batch_size,
            reduce=self._sum_over_ranks,
        )
        if isinstance(self.sampler, SyncedSampler):
            metrics["rollout/age"] = float(self.loader.update - rollout.version)
        if not self.checked:
            corrected = self.shaping.correction != "none"
            sampler_gap = 0.0 if corrected else metrics["rollout/sampler_gap"]
            check_start(experience, sampler_gap, self._tolerance())
        episodes = len(rollout) * args.world_size
        self.kl.update(self._mean_over_ranks(metrics["kl/reference"]), episodes)
        self.tokens_seen += int(self._sum_over_ranks(experience.attention_mask.sum()))
        for key, value in (metrics | reward_metrics).items():
            self.metrics[key].append(value)
        return experience

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Clipped surrogate + vf_coef * value loss - entropy_coef * entropy."""
        args = self.args
        warming = self.loader.update <= args.critic_warmup_updates  # only the critic learns
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

    def _tolerance(self) -> float:
        return tolerance_of(self.model, self.args.bf16 or self.args.fp16)

    def _record(self, key: str, value: Tensor, scale: float) -> None:
        self.metrics[key].append(float(value.detach()) * scale)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of what was gathered since the last log."""
        if self.metrics and "loss" in logs:
            extremes = {"policy/ratio_max": max, "policy/ratio_min": min}
            for key, values in self.metrics.items():
                reduce = extremes.get(key)
                logs[key] = reduce(values) if reduce else math.fsum(values) / len(values)
            logs["num_tokens"] = self.tokens_seen
            logs["episodes"] = self.loader.prompts.cursor * self.args.group_size
            self.metrics.clear()
        super().log(logs, *args, **kwargs)

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside transformers' own files."""
        return {
            "loader": self.loader.state_dict(),
            "kl": self.kl.state_dict(),
            "tokens_seen": self.tokens_seen,
            "checked": self.checked,
            "metrics": {key: list(values) for key, values in self.metrics.items()},
            "score": self.score.state_dict() if isinstance(self.score, RewardScorer) else {},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        self.loader.load_state_dict(state["loader"], self.args.device)
        self.kl.load_state_dict(state["kl"])
        self.tokens_seen, self.checked = state["tokens_seen"], state["checked"]
        self.metrics = defaultdict(list, state["metrics"])
        if isinstance(self.score, RewardScorer):
            self.score.load_state_dict(state["score"])

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return value
        return self.accelerator.reduce(value.to(self.args.device), reduction="sum")

    def _mean_over_ranks(self, value: float) -> float:
        total = self._sum_over_ranks(torch.tensor(value, dtype=torch.float64))
        return float(total) / self.args.world_size


class PPOTrainer(FiniteMixin, GuardMixin, PPOLossTrainer):
    """PPO with guards and finite checks."""


def shaping_of(args: PPOConfig, longest: int, synced: bool) -> Shaping:
    """What the arguments say of rewards and advantages.

    Args:
        args: PPO's arguments.
        longest: the length limit of completions.
        synced: the sampler computes with weights of its own, so `correction=auto` corrects.
    """
    own = {f.name: getattr(args, f.name) for f in fields(Shaping) if hasattr(args, f.name)}
    if args.correction == "auto":
        own["correction"] = "token_truncate" if synced else "none"
    return Shaping(**own | {"longest": longest})


def refuse_ahead(args: PPOConfig, synced: bool) -> None:
    """Rollouts can be drawn ahead only by weights that training leaves alone.

    Raises:
        ConfigError: the sampler decodes with the policy that is being trained.
    """
    if args.rollouts_ahead and not synced:
        raise ConfigError(
            [
                Problem(
                    "trainer.rollouts_ahead",
                    "the transformers sampler decodes with the weights that are being trained.",
                    "set rollout.engine=vllm-server, or rollouts_ahead=false.",
                )
            ]
        )
