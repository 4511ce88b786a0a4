"""The objectives of PPO as pure functions, and the figures one watches them by.

Schulman et al. (2017), "Proximal Policy Optimization Algorithms". Imports no trainer: the trainer
and a researcher's own loop call the same functions. `mask` is 1 on tokens that train.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from align.ppo.advantages import keep
from align.ppo.kl import KLEstimator, estimate_kl

Aggregation = Literal["token", "sequence", "fixed"]
LOG_RATIO_BOUND = 20.0  # exp(20) is finite in float32 and far beyond any clip range


def log_ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log(new / old), bounded before anyone exponentiates it: (B, A)."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float = 0.2,
    dual_clip: float | None = None,
    tokens: Tensor | float | None = None,
    clip_range_high: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The clipped surrogate, equation 7 of Schulman et al. (2017), negated: a scalar.

    Args:
        logprobs: (B, A) under the policy being trained.
        old_logprobs: (B, A) under the policy that sampled.
        advantages: (B, A), or (B,) for one advantage per sequence.
        mask: (B, A).
        clip_range: the ratio is clipped to 1 +- clip_range.
        dual_clip: bound c > 1 on the loss of tokens with a negative advantage: it is at most
            -c * advantage (Ye et al. 2020, "Mastering Complex Control in MOBA Games", eq. 5).
        tokens: divisor; default: the number of trained tokens here. Give the count over the whole
            optimizer step when a step is accumulated from several batches.
        clip_range_high: the upper bound is 1 + this one (DAPO's clip-higher, Yu et al. 2025,
            equation 10); None: `clip_range`.
        weights: (B,) weight of each row's tokens, see `aggregation_weights`; None: 1.

    Returns:
        Scalar: sum over tokens divided by `tokens`.
    """
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    advantages = keep(advantages.expand_as(logprobs), mask)
    ratio = log_ratio_of(keep(logprobs, mask), keep(old_logprobs, mask)).exp()
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is not None:
        bounded = torch.minimum(loss, -advantages * dual_clip)
        loss = torch.where(advantages < 0, bounded, loss)
    return _token_mean(loss, mask, tokens, weights)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float | None = 0.2,
    tokens: Tensor | float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """0.5 * max((V - R)^2, (V_clipped - R)^2), a scalar; `clip_range=None` does not clip.

    V_clipped stays within clip_range of the old value (Schulman et al.'s implementation; Engstrom
    et al. 2020, "Implementation Matters in Deep Policy Gradients", section 3). Shapes as above.
    """
    values, old_values, returns = (keep(v, mask) for v in (values, old_values, returns))
    loss = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        loss = torch.maximum(loss, (clipped - returns).square())
    return 0.5 * _token_mean(loss, mask, tokens, weights)


def entropy_bonus(
    entropy: Tensor,
    mask: Tensor,
    tokens: Tensor | float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean entropy per trained token in nats, a scalar to be *subtracted* from the loss."""
    return _token_mean(entropy, mask, tokens, weights)


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    estimator: KLEstimator = "k3",
    tokens: Tensor | float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean KL to the reference per trained token, with gradient, a scalar to be added to the loss.

    The KL as a loss instead of a reward: k3 is GRPO's (Shao et al. 2024, equation 4); the gradient
    of k2 is that of k1 in the reward. k1 will not do: its gradient is 0 in expectation.

    Raises:
        ValueError: the estimator is k1.
    """
    if estimator == "k1":
        raise ValueError("the gradient of k1 is 0 in expectation: use k2 or k3 in the loss.")
    kl = estimate_kl(keep(logprobs, mask), keep(ref_logprobs, mask), estimator)
    return _token_mean(kl, mask, tokens, weights)


def aggregation_weights(
    mask: Tensor, aggregation: Aggregation, longest: int
) -> tuple[Tensor, Tensor]:
    """How tokens are averaged: a weight for each row's tokens, and its share of the divisor.

    - token: every token counts alike (DAPO, Yu et al. 2025, equation 8).
    - sequence: every completion counts alike, whatever its length (GRPO).
    - fixed: the sum over tokens by `longest`, so that no length is favoured (Dr. GRPO, Liu et al.
      2025, section 3.2).

    Args:
        mask: (B, A).
        aggregation: of these.
        longest: the length limit of completions.

    Returns:
        two (B,) tensors: weights, and shares of the divisor.
    """
    lengths = mask.sum(dim=1)
    if aggregation == "token":
        return torch.ones_like(lengths), lengths
    counted = (lengths > 0).to(lengths.dtype)
    if aggregation == "sequence":
        return counted / lengths.clamp(min=1), counted
    return counted / longest, counted


@torch.no_grad()
def ratio_statistics(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip_range: float
) -> dict[str, float]:
    """How far an update moved: clip fraction, extreme ratios, approximate KL (k3)."""
    kept = mask.bool()
    log_ratio = log_ratio_of(logprobs, old_logprobs)[kept]
    if not log_ratio.numel():
        return {}
    ratio = log_ratio.exp()
    return {
        "policy/clip_fraction": ((ratio - 1.0).abs() > clip_range).float().mean().item(),
        "policy/ratio_max": ratio.max().item(),
        "policy/ratio_min": ratio.min().item(),
        "policy/approx_kl": (ratio - 1.0 - log_ratio).mean().item(),
    }


def _token_mean(
    values: Tensor, mask: Tensor, tokens: Tensor | float | None, weights: Tensor | None
) -> Tensor:
    divisor = mask.sum() if tokens is None else torch.as_tensor(tokens, device=values.device)
    kept = keep(values, mask)
    if weights is not None:
        kept = kept * weights[:, None]
    return kept.sum() / divisor.clamp(min=1e-6)  # a share may be less than 1
