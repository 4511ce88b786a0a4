"""What trainers that sample from the policy they train share: loader, sampler, rewards, metrics.

The outer loop (prompts, rollouts, experience) is in `align.ppo.loader`. A trainer adds how an
experience is made (`experience_of`) and its loss (`compute_loss`). Leaves out sharded generation:
under ZeRO-3 and FSDP they refuse to start.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from align.data.sampling import DrawOrder, OrderPlan
from align.engine.order import resume_draws
from align.errors import ConfigError, Problem
from align.ppo.arguments import RolloutArguments
from align.ppo.checks import (
    Tolerance,
    check_start,
    refuse_sharding,
    refuse_truncation,
    tolerance_of,
)
from align.ppo.loader import OnPolicyLoader, PromptStream
from align.ppo.pace import SavePace
from align.ppo.phases import PhaseClock
from align.ppo.rewards import RewardScorer, ScoreFn
from align.types import Experience, Rollout, Sampler, SyncedSampler, Text

EXTREMES = {"policy/ratio_max": max, "policy/ratio_min": min}  # of a metric; others are averaged


class OnPolicyTrainer(transformers.Trainer):
    """A Trainer whose data are its own samples."""

    # compute_loss divides by the tokens of the whole optimizer step itself.
    loss_is_scaled_for_ga = True
    args: RolloutArguments
    together = 1  # neighbouring rows of an experience that stay in one microbatch

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        args: RolloutArguments,
        sampler: Sampler,
        score: ScoreFn,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
    ):
        """Set up.

        Args:
            model: what trains.
            reference: frozen start policy; None when the policy's adapters are switched off
                instead.
            args: the trainer's and transformers' arguments.
            sampler: draws completions with the same policy object, or is synced with it.
            score: rewards of a rollout and what to log about them (`reward_scorer`).
            train_dataset: rows with a `prompt` and any columns rewards want.
            processing_class: the tokenizer, saved with checkpoints.
            callbacks: further callbacks.

        Raises:
            ConfigError: under ZeRO-3 or FSDP, rollouts cannot be drawn ahead, or the sampler
                truncates its distribution.
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
        self.synced = isinstance(sampler, SyncedSampler)
        refuse_ahead(args, sampler)
        refuse_truncation(sampler)
        self.longest = getattr(sampler, "max_new_tokens", 1) * getattr(sampler, "max_turns", 1)
        if isinstance(score, RewardScorer):
            score.group_size, score.reduce = args.group_size, self._sum_over_ranks
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.tokens_seen = 0
        self.clock = PhaseClock()
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
            epochs=args.epochs,
            micro_batch=args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            seed=args.seed,
            sum_over_ranks=self._sum_over_ranks,
            world=args.world_size,
            refresh=self._refresh,
            ahead=args.rollouts_ahead,
            updates=args.updates,
            together=self.together,
        )

    draws: DrawOrder | None = None

    def use_order(self, plan: OrderPlan) -> None:
        """Draw prompts in an order of their own; its steps are updates."""
        prompts = self.loader.prompts
        self.draws = plan.open(prompts.count * prompts.world, self.args.updates)
        prompts.draws = self.draws

    @property
    def policy(self) -> nn.Module:
        """The language model inside what trains."""
        return self.model  # type: ignore[return-value]

    @property
    def corrected(self) -> bool:
        """Whether the loss allows for a sampler whose probabilities are not the policy's."""
        return False

    def experience_of(
        self, rollout: Rollout, scores: list[float]
    ) -> tuple[Experience, dict[str, float]]:
        """An experience of scored rollouts, and what to log about it."""
        raise NotImplementedError

    def get_train_dataloader(self) -> OnPolicyLoader:  # type: ignore[override]
        """Our loader, unprepared (see `align.ppo.loader`)."""
        if not self.started and self.state.global_step == 0 and self.args.world_size > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # ranks differ
        self.started = True
        self.remove_callback(SavePace)
        self.add_callback(SavePace(self.args.steps_per_update, self._sum_over_ranks))  # the last
        return self.loader

    def _refresh(self) -> None:
        """Bring a sampler with weights of its own the policy's of now."""
        if isinstance(self.sampler, SyncedSampler):
            found = self.sampler.sync(self.policy, self.loader.update)
            for key, value in found.items():
                self.metrics[key].append(value)

    def _sample(self, prompts: list[Text], columns: dict[str, list[Any]]) -> Rollout:
        drawing = self.clock.phase("generation", beside=self.args.rollouts_ahead)
        with drawing, self.accelerator.autocast():
            return self.sampler(prompts, group_size=self.args.group_size, **columns)

    def _prepare(self, rollout: Rollout) -> Experience:
        """Score a batch of rollouts and turn it into an experience."""
        with self.clock.phase("scoring"):
            return self._scored(rollout)

    def _scored(self, rollout: Rollout) -> Experience:
        if isinstance(self.score, RewardScorer):
            self.score.update, self.score.trainer_state = self.loader.update, self.state
        scores, reward_metrics = self.score(rollout)
        with self.accelerator.autocast():  # in the training's precision: ratios begin at 1
            experience, metrics = self.experience_of(rollout, scores)
        if self.synced:
            metrics["rollout/age"] = float(self.loader.update - rollout.version)
        if not self.checked:
            tolerance = self._tolerance()
            key = "rollout/sampler_gap_mean" if tolerance.half else "rollout/sampler_gap"
            check_start(experience, 0.0 if self.corrected else metrics[key], tolerance)
        self.tokens_seen += int(self._sum_over_ranks(rollout.attention_mask.sum()))
        for key, value in (metrics | reward_metrics).items():
            self.metrics[key].append(value)
        return experience

    def _tolerance(self) -> Tolerance:
        return tolerance_of(self.policy, self.args.bf16 or self.args.fp16)

    def _record(self, key: str, value: Tensor, scale: float) -> None:
        self.metrics[key].append(float(value.detach()) * scale)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of what was gathered since the last log, over all processes."""
        if "loss" in logs:
            logs |= self._gathered() | self.clock.read()
            if self.draws is not None:
                logs |= self.draws.metrics(self.loader.update)
            logs["num_tokens"] = self.tokens_seen
            logs["episodes"] = self.loader.prompts.cursor * self.args.group_size
        super().log(logs, *args, **kwargs)

    def _gathered(self) -> dict[str, float]:
        """Every metric since the last call, over all processes; all of them have to ask."""
        parts = [dict(self.metrics)]
        if self.args.world_size > 1:
            parts = gather_object(parts)
        self.metrics.clear()
        found = {}
        for key in dict.fromkeys(key for part in parts for key in part):
            values = [value for part in parts for value in part.get(key, [])]
            reduce = EXTREMES.get(key)
            found[key] = reduce(values) if reduce else math.fsum(values) / len(values)
        return found

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside transformers' own files."""
        return {
            "loader": self.loader.state_dict(),
            "tokens_seen": self.tokens_seen,
            "checked": self.checked,
            "order": self.draws and self.draws.state_dict(),
            "metrics": {key: list(values) for key, values in self.metrics.items()},
            "score": self.score.state_dict() if isinstance(self.score, RewardScorer) else {},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore `extra_state`."""
        self.loader.load_state_dict(state["loader"], self.args.device)
        self.tokens_seen, self.checked = state["tokens_seen"], state["checked"]
        self.metrics = defaultdict(list, state["metrics"])
        if self.draws is not None:
            resume_draws(self.draws, state["order"])
        if isinstance(self.score, RewardScorer):
            self.score.load_state_dict(state["score"])

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return value
        return self.accelerator.reduce(value.to(self.args.device), reduction="sum")

    def _mean_over_ranks(self, value: float) -> float:
        total = self._sum_over_ranks(torch.tensor(value, dtype=torch.float64))
        return float(total) / self.args.world_size


def refuse_ahead(args: RolloutArguments, sampler: Sampler) -> None:
    """Rollouts can be drawn ahead only by an engine that training leaves alone.

    Raises:
        ConfigError: the sampler decodes with the policy that is being trained, or in this process,
            where a second thread would take the numbers that training draws.
    """
    engine = getattr(sampler, "engine", sampler)
    alone = isinstance(sampler, SyncedSampler) and not getattr(engine, "shares_generator", False)
    if args.rollouts_ahead and not alone:
        raise ConfigError(
            [
                Problem(
                    "trainer.rollouts_ahead",
                    f"the {type(engine).__name__} computes where the policy trains.",
                    "set rollout.engine=vllm-server, or rollouts_ahead=false.",
                )
            ]
        )
