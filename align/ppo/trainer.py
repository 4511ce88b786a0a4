"""The PPO trainer: transformers' Trainer with our loader, our loss, guards and checks.

The outer loop (prompts, rollouts, experience) is in `align.ppo.loader`; mathematics in
`advantages`, `objectives` and `kl`. Policy and critic are one module. Leaves out sharded
generation: under ZeRO-3 and FSDP the trainer refuses to start.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from align.engine.guards.base import GuardMixin
from align.engine.monitor import FiniteMixin
from align.errors import ConfigError, ModelError, Problem
from align.ppo.actor_critic import ActorCritic
from align.ppo.config import PPOConfig
from align.ppo.experience import Shaping, gap, make_experience
from align.ppo.kl import AdaptiveKL, FixedKL
from align.ppo.loader import OnPolicyLoader, PromptStream
from align.ppo.objectives import entropy_bonus, policy_loss, ratio_statistics, value_loss
from align.ppo.rewards import ScoreFn
from align.types import Experience, Sampler, Text


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
            self._collect,
            epochs=args.ppo_epochs,
            micro_batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed,
            sum_over_ranks=self._sum_over_ranks,
            world=args.world_size,
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

    def _collect(self, prompts: list[Text], columns: dict[str, list[Any]]) -> Experience:
        """One batch of rollouts, scored and turned into an experience."""
        args = self.args
        rollout = self.sampler(prompts, group_size=args.group_size, **columns)
        scores, reward_metrics = self.score(rollout)
        experience, metrics = make_experience(
            rollout,
            scores,
            self.model,
            self.reference,
            kl_coef=self.kl.value,
            shaping=Shaping(
                gamma=args.gamma,
                gae_lambda=args.gae_lambda,
                kl_estimator=args.kl_estimator,
                missing_eos_penalty=args.missing_eos_penalty,
                mask_truncated=args.mask_truncated,
                reward_clip=args.reward_clip,
                whiten_rewards=args.whiten_rewards,
                whiten_advantages=args.whiten_advantages,
            ),
            batch_size=args.per_device_train_batch_size,
            reduce=self._sum_over_ranks,
        )
        if not self.checked:
            self._check_start(experience, metrics["rollout/sampler_gap"])
        episodes = len(rollout) * args.world_size
        self.kl.update(self._mean_over_ranks(metrics["kl/reference"]), episodes)
        self.tokens_seen += int(self._sum_over_ranks(experience.attention_mask.sum()))
        for key, value in (metrics | reward_metrics).items():
            self.metrics[key].append(value)
        return experience

    def _check_start(self, experience: Experience, sampler_gap: float) -> None:
        """Before the first update sampler, policy and reference must agree.

        Raises:
            ModelError: with the cause, where log-probabilities differ beyond rounding.
        """
        tolerance = self._tolerance()
        if sampler_gap > tolerance:
            raise ModelError(
                f"step-0 check: the sampler's log-probabilities differ from the policy's by up to "
                f"{sampler_gap:.4f} (allowed {tolerance}). The two do not see the same "
                "distribution: look at temperature, dropout, precision, or a chat template that "
                "re-tokenises. trainer.self_check=false switches this off."
            )
        difference = gap(experience.logprobs, experience.ref_logprobs, experience.mask)
        if difference > tolerance:
            raise ModelError(
                f"step-0 check: policy and reference differ by up to {difference:.4f} nats "
                f"(allowed {tolerance}), so the KL does not start at 0. The reference must be a "
                "snapshot of the start policy. trainer.self_check=false switches this off."
            )

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
        judged = model(
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs["answer"],
            temperature=getattr(self.sampler, "temperature", 1.0) or 1.0,
            with_entropy=args.entropy_coef > 0,
            detach_values=warming,
        )
        mask, tokens = inputs["mask"], inputs["tokens"]
        if not self.checked:
            self._check_ratio(judged.logprobs, inputs["logprobs"], mask)
        actor = policy_loss(
            judged.logprobs,
            inputs["logprobs"],
            inputs["advantages"],
            mask,
            args.clip_range,
            args.dual_clip,
            tokens,
        )
        critic = value_loss(
            judged.values, inputs["values"], inputs["returns"], mask, args.clip_range_value, tokens
        )
        loss = (actor * 0.0 if warming else actor) + args.vf_coef * critic
        if args.entropy_coef > 0 and not warming:
            loss = loss - args.entropy_coef * entropy_bonus(judged.entropy, mask, tokens)
        share = float(tokens) / max(1.0, float(mask.sum()))  # undo the step's divisor for the log
        self._record("policy/loss", actor, share)
        self._record("value/loss", critic, share)
        moved = ratio_statistics(judged.logprobs, inputs["logprobs"], mask, args.clip_range)
        for key, value in moved.items():
            self.metrics[key].append(value)
        return (loss, judged) if return_outputs else loss

    def _tolerance(self) -> float:
        """What rounding may do to a log-probability; the sampler keeps float32."""
        half = next(self.model.parameters()).dtype in (torch.bfloat16, torch.float16)
        return 0.1 if half or self.args.bf16 or self.args.fp16 else 1e-3

    def _check_ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> None:
        self.checked = True
        tolerance = self._tolerance()
        difference = gap(logprobs.detach(), old_logprobs, mask)
        if difference > tolerance:
            raise ModelError(
                f"step-0 check: the first log-ratio is {difference:.4f} instead of 0 (allowed "
                f"{tolerance}): the training forward pass differs from the scoring one. Look at "
                "dropout or torch.compile. trainer.self_check=false switches this off."
            )

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
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        self.loader.load_state_dict(state["loader"], self.args.device)
        self.kl.load_state_dict(state["kl"])
        self.tokens_seen, self.checked = state["tokens_seen"], state["checked"]
        self.metrics = defaultdict(list, state["metrics"])

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return value
        return self.accelerator.reduce(value.to(self.args.device), reduction="sum")

    def _mean_over_ranks(self, value: float) -> float:
        total = self._sum_over_ranks(torch.tensor(value, dtype=torch.float64))
        return float(total) / self.args.world_size


class PPOTrainer(FiniteMixin, GuardMixin, PPOLossTrainer):
    """PPO with guards and finite checks."""


def refuse_sharding(trainer: transformers.Trainer) -> None:
    """Decoding from shards is ten times slower and, under FSDP, wrong; refuse it.

    Raises:
        ConfigError: under ZeRO-3 or FSDP.
    """
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    zero3 = plugin is not None and plugin.zero_stage == 3
    if zero3 or trainer.is_fsdp_enabled:
        kind = "ZeRO-3" if zero3 else "FSDP"
        raise ConfigError(
            [
                Problem(
                    "ppo",
                    f"cannot sample from weights that {kind} shards.",
                    "use DDP or ZeRO-2 (configs/accelerate), with LoRA if memory is short.",
                )
            ]
        )
