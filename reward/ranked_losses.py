"""Rankings in which answers may share a place: every better answer against every worse one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Weighting = Literal["answer", "ranking"]


def better_worse(ranks: Tensor, mask: Tensor) -> Tensor:
    """Which answer is better than which, (B, K, K) bool: [b, i, j] where i is better than j.

    Args:
        ranks: (B, K), 1 the best; equal ranks are ties.
        mask: (B, K) bool, True on real answers.
    """
    real = mask[:, :, None] & mask[:, None, :]
    return (ranks[:, :, None] < ranks[:, None, :]) & real


def ranked_pairs_loss(
    scores: Tensor, ranks: Tensor, mask: Tensor, weighting: Weighting = "answer"
) -> Tensor:
    """Bradley-Terry's loss of every better against every worse answer, ties left out.

    Args:
        scores: (B, K).
        ranks: (B, K), 1 the best; equal ranks are ties.
        mask: (B, K) bool, True on real answers.
        weighting: as in `reward.ranking_losses.ranking_pairs_loss`, with which it agrees where
            there are no ties: "answer" weighs each pair by 1/(K-1), "ranking" takes the mean.

    Returns:
        (B,) losses, 0 where no answer is better than another.
    """
    better = better_worse(ranks, mask)
    difference = (scores[:, :, None] - scores[:, None, :]).masked_fill(~better, 0.0)
    losses = -nn.functional.logsigmoid(difference).masked_fill(~better, 0.0)
    total = losses.sum(dim=(1, 2))
    if weighting == "answer":
        return total / (mask.sum(dim=1) - 1).clamp(min=1)
    return total / better.sum(dim=(1, 2)).clamp(min=1)
