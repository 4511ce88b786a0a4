"""Losses of comparisons that may end in a tie: Rao-Kupper and Davidson.

Both extend Bradley-Terry by one number that the data teach: how often two answers of like quality
are called equal. It is a parameter of training beside the model's, unconstrained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reward.loss_inputs import precise, same_shape


def rao_kupper_loss(margins: Tensor, outcome: Tensor, threshold: Tensor) -> Tensor:
    """-log likelihood of win, tie or loss after Rao and Kupper (1967), JASA 62.

    P(win) = sigmoid(d - log theta), P(loss) = sigmoid(-d - log theta), P(tie) the rest: a
    difference below log theta goes unnoticed. theta = 1 is Bradley-Terry without ties.

    Args:
        margins: (B,) d of the first answer over the second.
        outcome: (B,) 1 the first is better, 0 a tie, -1 the second is better; or (B, 3) shares of
            win, tie and loss that sum to 1.
        threshold: scalar log(theta - 1), any real number, learnable; `tie_start` for a start.

    Returns:
        (B,) losses.

    Raises:
        ValueError: `outcome` has another shape.
    """
    return _outcome_loss(_rao_kupper(precise(margins), threshold), outcome)


def rao_kupper_probabilities(margins: Tensor, threshold: Tensor) -> Tensor:
    """P(win), P(tie), P(loss), (B, 3), of `rao_kupper_loss`."""
    return _rao_kupper(precise(margins), threshold).exp()


def davidson_loss(margins: Tensor, outcome: Tensor, log_nu: Tensor) -> Tensor:
    """-log likelihood of win, tie or loss after Davidson (1970), JASA 65.

    Win, tie and loss are as 1 : nu exp(-d/2) : exp(-d), so that a tie has nu times the geometric
    mean of the two others' probabilities. nu = 0 is Bradley-Terry without ties.

    Args:
        margins: (B,) d of the first answer over the second.
        outcome: as in `rao_kupper_loss`.
        log_nu: scalar log(nu), any real number, learnable; `tie_start` for a start.

    Returns:
        (B,) losses.

    Raises:
        ValueError: `outcome` has another shape.
    """
    return _outcome_loss(_davidson(precise(margins), log_nu), outcome)


def davidson_probabilities(margins: Tensor, log_nu: Tensor) -> Tensor:
    """P(win), P(tie), P(loss), (B, 3), of `davidson_loss`."""
    return _davidson(precise(margins), log_nu).exp()


def tie_start(share: float) -> float:
    """The parameter of either tie model under which equal answers tie with this probability.

    Args:
        share: of ties, above 0 and below 1. Those of the training data are a good start.

    Raises:
        ValueError: the share is 0, 1 or outside.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"the share of ties is {share}; expected a number between 0 and 1. Without ties in "
            "the data use pair_loss"
        )
    return math.log(2 * share / (1 - share))


def _rao_kupper(margins: Tensor, threshold: Tensor) -> Tensor:
    """Log-probabilities of win, tie and loss, (B, 3)."""
    raw = threshold.to(margins.dtype)
    log_theta = torch.logaddexp(raw, torch.zeros_like(raw))
    win = nn.functional.logsigmoid(margins - log_theta)
    loss = nn.functional.logsigmoid(-margins - log_theta)
    # P(tie) = (theta^2 - 1) P(win) P(loss), and theta^2 - 1 = (theta - 1) (theta + 1).
    tie = raw + torch.logaddexp(raw, torch.full_like(raw, math.log(2))) + win + loss
    return torch.stack([win, tie, loss], dim=-1)


def _davidson(margins: Tensor, log_nu: Tensor) -> Tensor:
    """Log-probabilities of win, tie and loss, (B, 3)."""
    tie = log_nu.to(margins.dtype).expand_as(margins)
    return torch.stack([margins / 2, tie, -margins / 2], dim=-1).log_softmax(dim=-1)


def _outcome_loss(logprobs: Tensor, outcome: Tensor) -> Tensor:
    """Cross-entropy of outcomes, (B,) of 1, 0, -1 or (B, 3) shares, with (B, 3) logprobs."""
    if outcome.shape == logprobs.shape[:-1]:
        if outcome.is_floating_point():
            raise ValueError(
                f"outcome has the type {outcome.dtype}; expected whole numbers, 1 win, 0 tie, -1 "
                "loss, or a row of three shares for each margin"
            )
        column = (1 - outcome.long())[..., None]
        return -logprobs.gather(-1, column).squeeze(-1)
    same_shape("outcome", outcome, "(win, tie, loss) for each margin", logprobs)
    shares = outcome.to(logprobs.dtype)
    # An impossible outcome with share 0 costs nothing: 0 times -inf would be NaN.
    return -(shares * logprobs.masked_fill(shares == 0, 0.0)).sum(dim=-1)
