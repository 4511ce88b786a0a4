"""Advantage estimators and the shaping of rewards, as pure functions. Imports no trainer.

`mask` is 1 on completion tokens and contiguous from the first column: completions are
right-padded. Scores are per sequence, rewards per token. What stands at a padded position, infinity
and NaN included, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over ranks


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is 1, else 0. A product would not do: 0 * inf is NaN."""
    return values.masked_fill(~mask.bool(), 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1; 0 where nothing is."""
    return keep(values, mask).sum() / mask.sum().clamp(min=1)


def last_token(mask: Tensor) -> Tensor:
    """Index of the last real token of each row, (B,) int64; 0 for an empty row."""
    return (mask.sum(dim=1).long() - 1).clamp(min=0)


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards: -kl_coef * KL at every token, the score added on the last real one.

    Stiennon et al. (2020), "Learning to summarize from human feedback", equation in section 3.4;
    the placement of the score as in Huang et al. (2024), "The N+ Implementation Details of RLHF".

    Args:
        scores: (B,) reward of each completion.
        kl: (B, A) per-token KL estimate.
        mask: (B, A).
        kl_coef: weight of the KL penalty.

    Returns:
        (B, A) float.
    """
    rewards = -kl_coef * keep(kl, mask)
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last_token(mask)] += scores * (mask.sum(dim=1) > 0)
    return rewards


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: Schulman et al. (2016), equations 11 and 16.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1}. The value after the
    last real token is 0: the episode ends there, also for a completion cut at the length limit.

    Args:
        rewards: (B, A).
        values: (B, A); V_t is the estimate *before* token t.
        mask: (B, A).
        gamma: discount.
        gae_lambda: 1 is Monte Carlo, 0 one-step temporal difference.

    Returns:
        advantages and returns (advantages + values), each (B, A), 0 outside the mask. The
        advantages are not whitened: returns must be computed before whitening.
    """
    rewards, values = keep(rewards, mask), keep(values, mask)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = (delta + gamma * gae_lambda * running) * mask[:, t]
        advantages[:, t] = running
        following = values[:, t]
    return advantages, (advantages + values) * mask


def group_center(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean of its group (Dr. GRPO, Liu et al. 2025): (B,) -> (B,)."""
    groups = scores.view(-1, group_size)
    return (groups - groups.mean(dim=1, keepdim=True)).view(-1)


def group_normalise(scores: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """Centred and divided by the group's std (GRPO, Shao et al. 2024, section 4.1): (B,)."""
    groups = scores.view(-1, group_size)
    std = groups.std(dim=1, keepdim=True) if group_size > 1 else torch.zeros_like(groups)
    return ((groups - groups.mean(dim=1, keepdim=True)) / (std + eps)).view(-1)


def rloo(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean of the *other* scores of its group (Ahmadian et al. 2024, eq. 8)."""
    if group_size < 2:
        raise ValueError(f"rloo needs a group size of at least 2, not {group_size}.")
    groups = scores.view(-1, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).view(-1)


def whiten(
    values: Tensor,
    mask: Tensor,
    shift_mean: bool = True,
    eps: float = 1e-8,
    reduce: Reduce | None = None,
) -> Tensor:
    """Masked whitening with the biased variance, over all ranks when `reduce` sums over them.

    Args:
        values: (B, A).
        mask: (B, A); values outside it become 0.
        shift_mean: False keeps the mean (for rewards: whitening must not change their sign).
        eps: added to the variance.
        reduce: sums a small tensor over ranks.

    Returns:
        (B, A).
    """
    reduce = reduce or (lambda tensor: tensor)
    values = keep(values, mask)
    total = values.sum()
    count, total = reduce(torch.stack([mask.sum(), total]))
    mean = total / count.clamp(min=1)
    variance = reduce(((values - mean).square() * mask).sum()) / count.clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + eps)
    return (whitened if shift_mean else whitened + mean) * mask
