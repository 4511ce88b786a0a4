"""Exemplars by herding: rows whose mean feature follows their class's (iCaRL, algorithm 4).

A row's feature is the mean of a model's last hidden states over its tokens, be it a text, a
comparison or a ranking. What is chosen is a list of which every beginning is a good choice too: the
best of each class, then the second best.
Leaves out iCaRL's nearest-mean classifier (`buffers.nearest_mean`), which no language model needs.

Rebuffi et al. 2017, "iCaRL: incremental classifier and representation learning".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.engine.guards.base import Batch
from align.engine.guards.buffers import herding
from align.errors import ModelError


def exemplars(features: Tensor, classes: Sequence[Hashable], capacity: int) -> list[int]:
    """Which rows are kept, the most telling first.

    Args:
        features: (N, D).
        classes: of each row; all alike where there are none.
        capacity: how many are kept, shared alike by the classes as far as they have rows.

    Returns:
        Row numbers, at most `capacity`: the first of every class's herding list, then the second.
    """
    members: dict[Hashable, list[int]] = {}
    for place, name in enumerate(classes):
        members.setdefault(name, []).append(place)
    lists = [[rows[i] for i in herding(features[rows], capacity)] for rows in members.values()]
    turns = zip_longest(*lists)
    return [place for turn in turns for place in turn if place is not None][:capacity]


@torch.no_grad()
def mean_features(model: nn.Module, examples: Iterable[Batch]) -> Tensor:
    """The mean last hidden state of each example, (N, D), float32, without dropout.

    Args:
        model: with a transformers backbone in it.
        examples: `input_ids` and `attention_mask`, both (B, T), of one example each; where it has
            several sequences, as a comparison does, the mean is over the tokens of all.

    Raises:
        ModelError: there is no such backbone, or an example holds no tokens.
    """
    backbone = backbone_of(model)
    device = next(backbone.parameters()).device
    modes = {module: module.training for module in model.modules()}
    found = []
    try:
        model.eval()
        for example in examples:
            if "input_ids" not in example:
                raise ModelError(
                    f"herding reads tokens, and an example has {', '.join(sorted(example))}. "
                    "Fix: choose another buffer, or herd features of your own (`exemplars`)."
                )
            ids, mask = (example[k].to(device) for k in ("input_ids", "attention_mask"))
            hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weights = mask[..., None].to(hidden)
            found.append(((hidden * weights).sum(dim=(0, 1)) / weights.sum()).cpu())
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.stack(found) if found else torch.zeros(0, 1)


def backbone_of(model: nn.Module) -> nn.Module:
    """The part whose output is hidden states, under heads, adapters and wrappers.

    Raises:
        ModelError: there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.base_model is module:
            return module
    raise ModelError(
        f"{type(model).__name__} has no transformers backbone, whose hidden states herding reads. "
        "Fix: choose another buffer, or herd features of your own (`exemplars`)."
    )
