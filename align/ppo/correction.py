"""Correcting for samplers whose probabilities are not the policy's own.

An inference engine computes in another precision and another order, may be some updates behind, and
may truncate the distribution: its samples come from mu, not from the policy pi. Weighting each
token by pi / mu makes the gradient right again; bounding the weight keeps its variance finite
(Espeholt et al. 2018, "IMPALA", section 4.1; Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy RL training"). Imports no trainer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from align.ppo.advantages import keep
from align.ppo.objectives import log_ratio_of

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def importance_weights(
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    correction: Correction,
    high: float = 3.0,
    low: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Weights pi / mu of the sampled tokens, bounded, and what to log about them.

    Args:
        logprobs: (B, A) under the policy being trained, before its update.
        sampler_logprobs: (B, A) under the distribution the tokens were really drawn from.
        mask: (B, A).
        correction: "token" weighs each token by its own ratio, "sequence" by the product over its
            completion (unbiased, of greater variance); "truncate" clamps ratios into [low, high],
            "mask" gives weight 0 to those outside.
        high: greatest weight.
        low: least weight; None: no bound.

    Returns:
        (B, A) weights without gradient, 0 outside the mask; and metrics: `correction/ratio_mean`
        (about 1 where the two agree), `correction/ratio_max`, `correction/clipped` (share of ratios
        that a bound changed), `correction/dropped` (share of tokens of weight 0), `correction/kl`
        (k3 estimate of KL(mu || pi) per token, in nats).
    """
    kept = mask.bool()
    log_ratio = keep(log_ratio_of(logprobs.detach(), sampler_logprobs), mask)
    drift = (log_ratio.exp() - 1.0 - log_ratio)[kept]
    if correction.startswith("sequence"):
        log_ratio = log_ratio_of(log_ratio.sum(dim=1, keepdim=True), torch.zeros(())).expand_as(
            mask
        )
    ratio = log_ratio.exp()
    outside = ratio > high if low is None else (ratio > high) | (ratio < low)
    if correction == "none":
        weights, outside = torch.ones_like(ratio), torch.zeros_like(outside)
    elif correction.endswith("truncate"):
        weights = ratio.clamp(min=low, max=high)
    else:
        weights = ratio.masked_fill(outside, 0.0)
    weights = keep(weights, mask)
    if not kept.any():
        return weights, {}
    return weights, {
        "correction/ratio_mean": ratio[kept].mean().item(),
        "correction/ratio_max": ratio[kept].max().item(),
        "correction/clipped": outside[kept].float().mean().item(),
        "correction/dropped": (weights[kept] == 0).float().mean().item(),
        "correction/kl": drift.mean().item(),
    }
