"""Losses of preference learning as pure functions of a margin; no trainer is imported.

The margin d of a pair is r(chosen) - r(rejected) for a reward model, and for DPO beta times the
difference of the two answers' log-ratios to the reference. Both read sigmoid(d) as P(chosen is
better), Bradley and Terry (1952), Biometrika 39; Rafailov et al. (2023), arXiv 2305.18290, eq. 7.
"""

from __future__ import annotations

from torch import Tensor, nn

from reward.preferences import TIE


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
