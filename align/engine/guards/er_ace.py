"""ER-ACE: Caccia et al. (2022), "New insights on reducing abrupt representation change".

Replay with two losses: new examples compete among the classes of their own batch only, so that
they do not push the representations of old classes away; replayed ones compete among all classes
(section 4.1). Replayed are rows of the current task too, as from a stream's buffer: otherwise
nothing teaches new classes to win against old ones. For classifiers whose classes come task by
task; a language model's vocabulary does not, so no stage offers it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def asymmetric_loss(
    new_logits: Tensor,
    new_labels: Tensor,
    old_logits: Tensor | None = None,
    old_labels: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """The two losses' sum, each a mean over its examples.

    Args:
        new_logits: (N, C).
        new_labels: (N,).
        old_logits: (M, C) of replayed examples; None before there are any.
        old_labels: (M,).
        seen: (C,) bool, the classes met so far; None: all.

    Returns:
        A scalar.
    """
    present = torch.zeros(new_logits.shape[-1], dtype=torch.bool, device=new_logits.device)
    present[new_labels] = True
    loss = cross_entropy(new_logits.masked_fill(~present, -torch.inf), new_labels)
    if old_logits is None or old_labels is None:
        return loss
    if seen is not None:
        old_logits = old_logits.masked_fill(~seen.to(old_logits.device), -torch.inf)
    return loss + cross_entropy(old_logits, old_labels)
