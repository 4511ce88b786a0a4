"""Checks of PPO's first step: sampler, policy and reference agree, or the cause is named.

Before the first update the ratio is 1 and the KL 0. Most PPO bugs break one of the two: another
temperature, dropout, a re-tokenised prompt, a reference that is not the start policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from align.errors import ConfigError, ModelError, Problem
from align.types import Experience, Sampler

OFF = "trainer.self_check=false switches this off."


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do to log-probabilities, in nats.

    In half precision single tokens may be far off (logits of 16 to 32 lie 0.125 apart in bfloat16),
    so there the mean over tokens counts, and otherwise the largest difference.
    """

    half: bool

    @property
    def limit(self) -> float:
        """The difference that is allowed."""
        return 0.05 if self.half else 1e-3

    def difference(self, first: Tensor, second: Tensor, mask: Tensor) -> float:
        """The difference of two (B, A) tensors inside the mask that is held to the limit."""
        if not self.half:
            return gap(first, second, mask)
        return mean_gap(first, second, mask)


def tolerance_of(model: torch.nn.Module, half: bool) -> Tolerance:
    """That of a model, which may compute in half precision whatever its weights are in."""
    dtype = next(model.parameters()).dtype
    return Tolerance(half or dtype in (torch.bfloat16, torch.float16))


def gap(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Largest absolute difference of two (B, A) tensors inside the mask."""
    return float(((first - second).abs() * mask).max())


def mean_gap(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Mean absolute difference of two (B, A) tensors inside the mask."""
    return float(((first - second).abs() * mask).sum() / mask.sum().clamp(min=1))


def check_start(experience: Experience, sampler_gap: float, tolerance: Tolerance) -> None:
    """Before the first update sampler, policy and reference must agree.

    Args:
        experience: the first one.
        sampler_gap: by how much the sampler's log-probabilities differ from the policy's, the
            largest difference or, in half precision, the mean.
        tolerance: what rounding may do.

    Raises:
        ModelError: with the cause, where log-probabilities differ beyond rounding.
    """
    if sampler_gap > tolerance.limit:
        raise ModelError(
            f"step-0 check: the sampler's log-probabilities differ from the policy's by "
            f"{sampler_gap:.4f} (allowed {tolerance.limit}). The two do not see the same "
            "distribution: "
            "look at temperature, dropout, precision, or a chat template that re-tokenises. A "
            "sampler of another precision needs trainer.correction=token_truncate. " + OFF
        )
    difference = tolerance.difference(experience.logprobs, experience.ref_logprobs, experience.mask)
    if difference > tolerance.limit:
        raise ModelError(
            f"step-0 check: policy and reference differ by {difference:.4f} nats (allowed "
            f"{tolerance.limit}), so the KL does not start at 0. The reference must be a snapshot "
            "of the start policy. " + OFF
        )


def check_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, tolerance: Tolerance) -> None:
    """The training forward pass gives what the scoring one gave.

    Raises:
        ModelError: the first log-ratio is not 0.
    """
    difference = tolerance.difference(logprobs.detach(), old_logprobs, mask)
    if difference > tolerance.limit:
        raise ModelError(
            f"step-0 check: the first log-ratio is {difference:.4f} instead of 0 (allowed "
            f"{tolerance.limit}): the training forward pass differs from the scoring one. Look at "
            "dropout or torch.compile. " + OFF
        )


def refuse_truncation(sampler: Sampler) -> None:
    """Refuse samples that the policy gradient is wrong for and no importance weight mends.

    Raises:
        ConfigError: top-p, top-k, min-p or a least length cut the distribution.
    """
    problems = truncations(getattr(sampler, "engine", sampler))  # an environment's
    if problems:
        raise ConfigError(problems)


def truncations(sampling: object) -> list[Problem]:
    """What a sampler, or a configuration of one, cuts off the distribution."""
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "min_new_tokens": 0}
    what = "truncates the distribution, and the gradient cannot be corrected."
    values = {name: getattr(sampling, name, None) or off[name] for name in off}
    return [
        Problem(f"rollout.{name}", f"{value} {what}", f"use {name}: {off[name]} here.")
        for name, value in values.items()
        if value != off[name]
    ]


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
