"""The batches that walk through Align, with a shape for every field.

Legend: B sequences in a batch, T tokens of prompt + completion, A completion tokens, P prompts,
G completions per prompt (B = P * G). `mask` is always 1 where the token trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from feedback.schema import Messages, Text
from reward.functions import RewardFn

__all__ = ["Experience", "Messages", "RewardFn", "Rollout", "Sampler", "SyncedSampler", "Text"]


@dataclass
class Rollout:
    """Sampled completions: left-padded prompts, right-padded completions, token ids throughout."""

    prompts: list[Text]  # B: the prompts as the dataset has them
    completions: list[Text]  # B: text without special tokens, or one assistant message
    prompt_ids: Tensor  # (B, T-A) int64, left-padded
    prompt_mask: Tensor  # (B, T-A) int64, 1 on real prompt tokens
    completion_ids: Tensor  # (B, A) int64, right-padded
    mask: Tensor  # (B, A) float32, 1 on sampled tokens, the end-of-turn token included
    logprobs: Tensor  # (B, A) float32, log-probability of each token under the sampler; 0 elsewhere
    finished: Tensor  # (B,) bool, True where the completion ended by itself
    columns: dict[str, list[Any]] = field(default_factory=dict)  # further dataset columns, length B
    temperature: float = 1.0  # the temperature the tokens were drawn (and scored) with
    # (B, A) float32, 1 on all tokens of the completion. An environment's replies between a model's
    # turns are in it and not in `mask`. None: the model wrote all of it, and this is `mask`.
    real: Tensor | None = None
    version: int = 0  # updates of the policy before these were drawn

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def input_ids(self) -> Tensor:
        """Prompt and completion side by side, (B, T) int64."""
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """1 on real tokens, (B, T) int64."""
        real = self.mask if self.real is None else self.real
        return torch.cat([self.prompt_mask, real.to(self.prompt_mask.dtype)], dim=1)


@dataclass
class Experience:
    """One PPO batch: rollouts with everything the objectives need (an RL batch and nothing else).

    Rewards are KL-shaped where `kl_in_reward` asks for it; `scores` are the raw ones.
    """

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64
    mask: Tensor  # (B, A) float32, 1 on tokens that train
    logprobs: Tensor  # (B, A) float32, log-probability under the policy before the first update
    ref_logprobs: Tensor  # (B, A) float32, under the reference
    values: Tensor  # (B, A) float32, critic's estimate before the first update
    advantages: Tensor  # (B, A) float32
    returns: Tensor  # (B, A) float32
    scores: Tensor  # (B,) float32, raw reward of the completion
    weights: Tensor  # (B,) float32, of the row's tokens in the loss (`aggregation_weights`)
    shares: Tensor  # (B,) float32, what the row adds to the loss's divisor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def select(self, rows: Tensor) -> Experience:
        """The given rows, in that order; `rows` is (N,) int64."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def shuffle(self, generator: torch.Generator | None = None) -> Experience:
        """The same rows in random order."""
        return self.select(torch.randperm(len(self), generator=generator))

    def split(self, size: int) -> Iterator[Experience]:
        """Consecutive minibatches of `size` rows (the last may be smaller)."""
        for rows in torch.arange(len(self)).split(size):
            yield self.select(rows)

    def to(self, device: torch.device | str) -> Experience:
        """A copy on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors on the CPU, for checkpoints."""
        return {f.name: getattr(self, f.name).cpu() for f in fields(self)}


class Sampler(Protocol):
    """Draws completions: token ids in, token ids out."""

    def __call__(self, prompts: list[Text], group_size: int = 1, **columns: list[Any]) -> Rollout:
        """P prompts in, P * group_size rollouts out, a prompt's completions side by side."""
        ...


@runtime_checkable
class SyncedSampler(Sampler, Protocol):
    """A sampler with weights of its own (vLLM), which the trainer brings over before it samples."""

    def sync(self, policy: nn.Module, version: int) -> dict[str, float]:
        """Take over the policy's weights; what to log about it.

        Args:
            policy: what is being trained, a PEFT wrapper included.
            version: updates so far; the rollouts that follow carry it.

        Raises:
            SamplerError: the weights did not arrive within the time-out, or not whole.
        """
        ...

    def close(self) -> None:
        """Let go of the engine; harmless to repeat."""
        ...
