"""Advantage estimators and the shaping of rewards, as pure functions. Imports no trainer.

`mask` is 1 on the tokens the policy sampled. Completions are right-padded, and an environment's
replies may stand between the policy's turns; both have mask 0, and time passes over them. Scores
are per sequence, rewards per token. What stands where the mask is 0, infinity and NaN included,
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over ranks
Estimator = Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce++", "reinforce++-baseline"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
CRITICS: tuple[Estimator, ...] = ("gae",)  # those that need a value function
GROUPED: tuple[Estimator, ...] = ("rloo", "grpo", "dr_grpo", "reinforce++-baseline")
WHITENED: tuple[Estimator, ...] = ("gae", "reinforce++", "reinforce++-baseline")


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is 1, else 0. A product would not do: 0 * inf is NaN."""
    return values.masked_fill(~mask.bool(), 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1; 0 where nothing is."""
    return keep(values, mask).sum() / mask.sum().clamp(min=1)


def last_token(mask: Tensor) -> Tensor:
    """Index of the last sampled token of each row, (B,) int64; 0 for an empty row."""
    return (torch.arange(mask.shape[1], device=mask.device) * mask.bool()).argmax(dim=1)


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
        own = mask[:, t] > 0
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(own, delta + gamma * gae_lambda * running, running)
        following = torch.where(own, values[:, t], following)
        advantages[:, t] = running * own
    return advantages, (advantages + values) * mask


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted sum of the rewards from each token on, (B, A) -> (B, A); 0 outside the mask."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, gae_lambda=1.0)[0]


def estimate_advantages(
    estimator: Estimator,
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    group_size: int = 1,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Advantages by name, not whitened, and the returns that a critic learns.

    - gae: needs `values`.
    - rloo, grpo, dr_grpo: one advantage per sequence, from the sum of its rewards and its group's.
    - reinforce++: rewards to go (Hu 2025, "REINFORCE++", eq. 4); its normalisation over the whole
      batch is `whiten`.
    - reinforce++-baseline: minus the group's mean; `whiten` as well.

    Args:
        estimator: one of `ESTIMATORS`.
        rewards: (B, A), KL-shaped or not.
        values: (B, A).
        mask: (B, A).
        group_size: completions of a prompt, side by side.
        gamma: discount, of gae and reinforce++.
        gae_lambda: of gae.

    Returns:
        advantages and returns, each (B, A), 0 outside the mask.

    Raises:
        ValueError: an unknown estimator, or rloo of single completions.
    """
    if estimator == "gae":
        return gae(rewards, values, mask, gamma, gae_lambda)
    returns = rewards_to_go(rewards, mask, gamma)
    if estimator == "reinforce++":
        return returns, returns
    totals = keep(rewards, mask).sum(dim=1)
    by_group = {
        "rloo": rloo,
        "grpo": group_normalise,
        "dr_grpo": group_center,
        "reinforce++-baseline": group_center,
    }
    if estimator not in by_group:
        raise ValueError(f"advantage {estimator!r} is unknown: use {', '.join(ESTIMATORS)}.")
    return by_group[estimator](totals, group_size)[:, None] * mask, returns


def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """How far into the last `buffer` tokens a completion goes, 0 to 1: (B,) -> (B,) float.

    DAPO's soft overlong punishment (Yu et al. 2025, equation 13), positive here: subtract it.

    Args:
        lengths: (B,) tokens.
        longest: the length limit.
        buffer: tokens before the limit over which the penalty grows from 0 to 1.
    """
    return ((lengths - (longest - buffer)) / buffer).clamp(0.0, 1.0)


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
