"""Losses of preference learning as pure functions of a margin; no trainer is imported.

The margin d of a pair is r(chosen) - r(rejected) for a reward model, and for DPO beta times the
difference of the two answers' log-ratios to the reference. Both read sigmoid(d) as P(chosen is
better), Bradley and Terry (1952), Biometrika 39; Rafailov et al. (2023), arXiv 2305.18290, eq. 7.

Here are pairs: their loss, weights and centring. Ties, rankings, single answers and auxiliary terms
have files of their own, and can be imported from here too. All of them return one loss per example,
(B,), and leave the mean to the caller: weights come before it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reward.answer_losses import (
    aggregate_steps,
    combine_attributes,
    ordinal_loss,
    rating_loss,
    step_loss,
)
from reward.auxiliary_losses import contrastive_term, generative_term, simcse_term
from reward.loss_inputs import precise, same_shape
from reward.preferences import TIE
from reward.ranking_losses import (
    check_rankings,
    group_scores,
    order_ranks,
    plackett_luce_loss,
    ranking_pairs_loss,
)
from reward.tie_losses import (
    davidson_loss,
    davidson_probabilities,
    rao_kupper_loss,
    rao_kupper_probabilities,
    tie_start,
)

__all__ = [
    "aggregate_steps",
    "centring_term",
    "check_pair_options",
    "check_rankings",
    "class_weights",
    "combine_attributes",
    "contrastive_term",
    "cost_weights",
    "davidson_loss",
    "davidson_probabilities",
    "decided",
    "focal_weights",
    "generative_term",
    "group_scores",
    "order_ranks",
    "ordinal_loss",
    "pair_loss",
    "plackett_luce_loss",
    "preference_loss",
    "ranking_pairs_loss",
    "rao_kupper_loss",
    "rao_kupper_probabilities",
    "rating_loss",
    "simcse_term",
    "soft_label_term",
    "step_loss",
    "tie_start",
]


def preference_loss(margins: Tensor, soft_labels: Tensor) -> Tensor:
    """Cross-entropy of the soft labels p with sigmoid(d), in nats a pair.

    -p log sigmoid(d) - (1 - p) log sigmoid(-d) = softplus(-d) + (1 - p) d; its derivative is
    sigmoid(d) - p, and its minimum, the entropy of p, lies at sigmoid(d) = p.

    Args:
        margins: (B,) log-odds that chosen is better.
        soft_labels: (B,) P(chosen is better).

    Returns:
        (B,) losses.
    """
    return -nn.functional.logsigmoid(margins) + soft_label_term(margins, soft_labels)


def soft_label_term(margins: Tensor, soft_labels: Tensor) -> Tensor:
    """(1 - p) d, what the soft labels add to -log sigmoid(d); (B,), 0 where p is 1."""
    return (1 - soft_labels) * margins


def decided(soft_labels: Tensor) -> Tensor:
    """Which soft labels name a better answer, (B,) bool: those apart from one half."""
    return (soft_labels - 0.5).abs() > TIE


def pair_loss(
    margins: Tensor,
    *,
    margin: float | Tensor = 0.0,
    soft_labels: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Bradley-Terry's loss with one of its refinements; plain -log sigmoid(d) without any.

    | given                    | loss                                                         |
    |--------------------------|--------------------------------------------------------------|
    | `margin` m               | -log sigmoid(d - m), Llama 2 (arXiv 2307.09288), eq. 2       |
    | `soft_labels` p          | -p log sigmoid(d) - (1 - p) log sigmoid(-d)                  |
    | `label_smoothing` e      | the same with p = 1 - e for all pairs                        |
    | `margin`, smoothing      | -(1 - e) log sigmoid(d - m) - e log sigmoid(-d - m): a label |
    |                          | that was turned round has its margin on the other side       |

    Args:
        margins: (B,) d, log-odds that chosen is better.
        margin: m, by how much chosen shall win at least; a number or (B,), 0 or more.
        soft_labels: (B,) P(chosen is better).
        label_smoothing: e, the share of labels taken to be wrong, in [0, 0.5).

    Returns:
        (B,) losses.

    Raises:
        ValueError: see `check_pair_options`; or a tensor has another shape than `margins`.
    """
    has_margin = isinstance(margin, Tensor) or margin != 0
    check_pair_options(
        margin=has_margin, soft_labels=soft_labels is not None, label_smoothing=label_smoothing
    )
    margins = precise(margins)
    if soft_labels is not None:
        same_shape("soft_labels", soft_labels, "margins", margins)
        return preference_loss(margins, soft_labels.to(margins.dtype))
    if isinstance(margin, Tensor):
        if margin.dim():
            same_shape("margin", margin, "margins", margins)
        margin = margin.to(margins.dtype)
    right = -nn.functional.logsigmoid(margins - margin if has_margin else margins)
    if not label_smoothing:
        return right
    wrong = -nn.functional.logsigmoid(-margins - margin if has_margin else -margins)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def check_pair_options(
    *, margin: bool = False, soft_labels: bool = False, label_smoothing: float = 0.0
) -> None:
    """Refuse options of `pair_loss` that mean nothing together; trainers call it before loading.

    Soft labels say how sure each label is, which a margin and smoothing would say a second time:
    under both, a tie would be taught to differ by the margin.

    Raises:
        ValueError: all problems, one a line.
    """
    problems = []
    if soft_labels and margin:
        problems.append(
            "soft_labels and margin: both say how clear a pair is, and a tie would be taught to "
            "differ by the margin. Fix: leave one of them out"
        )
    if soft_labels and label_smoothing:
        problems.append(
            f"soft_labels and label_smoothing={label_smoothing}: soft labels say how sure each "
            "label is already. Fix: leave one of them out"
        )
    if not 0 <= label_smoothing < 0.5:
        problems.append(
            f"label_smoothing is {label_smoothing}; expected 0 or more and below 0.5, where "
            "labels would say nothing"
        )
    if problems:
        raise ValueError("\n".join(problems))


def focal_weights(margins: Tensor, gamma: float, soft_labels: Tensor | None = None) -> Tensor:
    """Weights that turn to the pairs which the model gets wrong; times the loss, the focal loss.

    (1 - sigmoid(d))^gamma, Lin et al. (2017), arXiv 1708.02002, eq. 4; with soft labels
    |p - sigmoid(d)|^gamma, Li et al. (2020), arXiv 2006.04388, the same at p = 1. As in both papers
    gradients flow through the weights; `.detach()` them for plain weights.

    Args:
        margins: (B,) d.
        gamma: 0 (all weights 1) or more; with soft labels 0, or 1 or more: between, the gradient
            has no limit where the model is right.
        soft_labels: (B,) P(chosen is better).

    Raises:
        ValueError: `gamma` is out of range, or a shape differs.
    """
    if gamma < 0 or (soft_labels is not None and 0 < gamma < 1):
        allowed = "0 or more" if soft_labels is None else "0, or 1 or more with soft labels"
        raise ValueError(f"gamma is {gamma}; expected {allowed}")
    margins = precise(margins)
    if soft_labels is None:
        return (gamma * nn.functional.logsigmoid(-margins)).exp()
    same_shape("soft_labels", soft_labels, "margins", margins)
    labels = soft_labels.to(margins.dtype)
    apart = labels * (-margins).sigmoid() - (1 - labels) * margins.sigmoid()
    return apart.abs() ** gamma


def class_weights(labels: Tensor, beta: float = 1.0) -> Tensor:
    """A weight for each class of pairs, so that rare classes (a topic, a source, ties) count more.

    One over the effective number (1 - beta^n) / (1 - beta) of a class with n pairs, Cui et al.
    (2019), arXiv 1901.05555; beta = 1 is 1/n, beta = 0 weighs all alike. The mean weight of
    a pair is 1, so that the learning rate keeps its meaning; the paper's weights sum to the number
    of classes instead.

    Args:
        labels: (N,) int, 0 to C - 1, of all training pairs, not of one batch.
        beta: in [0, 1].

    Returns:
        (C,) float64; index it with a batch's labels. Classes without a pair have 0.

    Raises:
        ValueError: `beta` is out of range, or there is no label or a negative one.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; expected a number from 0 to 1")
    if not labels.numel() or int(labels.min()) < 0:
        raise ValueError("labels are none or negative; expected class numbers from 0")
    counts = torch.bincount(labels.long().flatten()).double()
    number = counts if beta == 1 else (1 - beta**counts) / (1 - beta)
    weights = torch.where(counts > 0, 1 / number, 0.0)
    return weights * counts.sum() / (weights * counts).sum()


def cost_weights(costs: Tensor) -> Tensor:
    """What each pair costs when judged wrongly, as weights with mean 1 (Elkan 2001, IJCAI).

    Args:
        costs: (N,) 0 or more, of all training pairs, not of one batch.

    Returns:
        (N,) float64.

    Raises:
        ValueError: a cost is negative or no number, or all are 0.
    """
    costs = costs.double()
    bad = ~(costs >= 0) | costs.isinf()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"the cost of pair {row} is {costs[row].item()}; expected 0 or more")
    if not bool(costs.sum() > 0):
        raise ValueError("all costs are 0; expected at least one pair that matters")
    return costs / costs.mean()


def centring_term(chosen: Tensor, rejected: Tensor, coefficient: float = 0.01) -> Tensor:
    """Coefficient (r(chosen) + r(rejected))^2, which holds the mean reward at 0; (B,).

    Preferences leave a constant per prompt open; this fixes it. Eisenstein et al. (2023), arXiv
    2312.09244; TRL's `center_rewards_coefficient`.

    Args:
        chosen: (B,) rewards.
        rejected: (B,) rewards.
        coefficient: of the term; the paper's is 0.01.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("rejected", rejected, "chosen", chosen)
    return coefficient * (precise(chosen) + precise(rejected)) ** 2
