"""Checks of PPO's first step: sampler, policy and reference agree, or the cause is named.

Before the first update the ratio is 1 and the KL 0. Most PPO bugs break one of the two: another
temperature, dropout, a re-tokenised prompt, a reference that is not the start policy.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor

from align.errors import ConfigError, ModelError, Problem
from align.types import Experience

OFF = "trainer.self_check=false switches this off."


def tolerance_of(model: torch.nn.Module, half: bool) -> float:
    """What rounding may do to a log-probability; the sampler keeps float32."""
    dtype = next(model.parameters()).dtype
    return 0.1 if half or dtype in (torch.bfloat16, torch.float16) else 1e-3


def gap(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """Largest absolute difference of two (B, A) tensors inside the mask."""
    return float(((first - second).abs() * mask).max())


def check_start(experience: Experience, sampler_gap: float, tolerance: float) -> None:
    """Before the first update sampler, policy and reference must agree.

    Args:
        experience: the first one.
        sampler_gap: by how much the sampler's log-probabilities differ from the policy's.
        tolerance: what rounding may do.

    Raises:
        ModelError: with the cause, where log-probabilities differ beyond rounding.
    """
    if sampler_gap > tolerance:
        raise ModelError(
            f"step-0 check: the sampler's log-probabilities differ from the policy's by up to "
            f"{sampler_gap:.4f} (allowed {tolerance}). The two do not see the same distribution: "
            "look at temperature, dropout, precision, or a chat template that re-tokenises. A "
            "sampler of another precision needs trainer.correction=token_truncate. " + OFF
        )
    difference = gap(experience.logprobs, experience.ref_logprobs, experience.mask)
    if difference > tolerance:
        raise ModelError(
            f"step-0 check: policy and reference differ by up to {difference:.4f} nats (allowed "
            f"{tolerance}), so the KL does not start at 0. The reference must be a snapshot of the "
            "start policy. " + OFF
        )


def check_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, tolerance: float) -> None:
    """The training forward pass gives what the scoring one gave.

    Raises:
        ModelError: the first log-ratio is not 0.
    """
    difference = gap(logprobs.detach(), old_logprobs, mask)
    if difference > tolerance:
        raise ModelError(
            f"step-0 check: the first log-ratio is {difference:.4f} instead of 0 (allowed "
            f"{tolerance}): the training forward pass differs from the scoring one. Look at "
            "dropout or torch.compile. " + OFF
        )


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
