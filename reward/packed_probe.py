"""Whether the packed pass gives a backbone's own states: tried on a few tokens, once.

A configuration does not say all: encoders read both ways and may not say so, and layers may call
attention twice or give it a mask of their own. So two short rows with a common prefix go through
both passes before the first packed one. The backbone is left as it was: no gradients, no dropout,
no hooks and no random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward.errors import ModelError
from reward.tree import Segment

SHARED, OWN = 3, (3, 4)  # tokens of the prefix, and of what follows it in each row
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Not an attribute: a copy of a backbone is tried anew, and nothing is saved with it.
_verdicts: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

States = Callable[[PreTrainedModel, Tensor, Sequence[Segment], Tensor], Tensor]


def agrees(backbone: PreTrainedModel, packed: States) -> bool:
    """Whether the packed states are the padded ones but for rounding; remembered.

    Args:
        backbone: without its head.
        packed: `reward.packed.tree_states`.
    """
    if backbone not in _verdicts:
        _verdicts[backbone] = False  # of the padded pass below, where the backbone asks again
        with torch.no_grad(), undisturbed(backbone):
            _verdicts[backbone] = _compare(backbone, packed)
    return _verdicts[backbone]


def _compare(backbone: PreTrainedModel, packed: States) -> bool:
    size = int(backbone.config.vocab_size)
    device = next(backbone.parameters()).device
    first, second = (SHARED + own for own in OWN)
    flat = (
        torch.arange(first + OWN[1], device=device) * 7919 + 11
    ) % size  # a prime's steps: few repeat
    rows = torch.zeros(2, max(first, second), dtype=torch.long, device=device)
    mask = torch.zeros_like(rows)
    rows[0, :first], mask[0, :first] = flat[:first], 1
    rows[1, :second], mask[1, :second] = torch.cat([flat[:SHARED], flat[first:]]), 1
    segments = [Segment(first), Segment(OWN[1], ((0, SHARED),))]
    wanted = torch.zeros(len(flat), dtype=torch.bool, device=device)
    wanted[[1, first - 1, first + 1, len(flat) - 1]] = True
    try:
        ours = packed(backbone, flat, segments, wanted)
        whole = backbone(
            input_ids=rows,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
    except (ModelError, RuntimeError, TypeError, ValueError, IndexError):
        return False  # a layer that cannot do without its padding: the padded pass will do
    theirs = whole[[0, 0, 1, 1], [1, first - 1, SHARED + 1, second - 1]]
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.double(), theirs.double()
    gap = (ours - theirs).norm(dim=-1)
    return bool((gap <= rounding(backbone) * theirs.norm(dim=-1)).all())


def rounding(backbone: nn.Module) -> float:
    """How far two ways to one state may lie apart, relative to its length."""
    wide = all(p.dtype in (torch.float32, torch.float64) for p in backbone.parameters())
    device = next(backbone.parameters()).device.type
    return 1e-4 if wide and not torch.is_autocast_enabled(device) else 5e-2


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in evaluation mode and without hooks; all is as before afterwards."""
    modules = list(model.modules())
    training = [module.training for module in modules]
    hooks: list[dict[str, Any]] = []
    for module in modules:
        hooks.append({name: vars(module)[name] for name in HOOKS})
        vars(module).update({name: type(found)() for name, found in hooks[-1].items()})
        module.training = False
    # Older PyTorch would keep casts made without gradients for the pass around this one.
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    cast = torch.autocast(
        place.type,
        dtype=torch.get_autocast_dtype(place.type),
        enabled=torch.is_autocast_enabled(place.type),
        cache_enabled=False,
    )
    try:
        with cast, torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            yield
    finally:
        for module, found, was in zip(modules, hooks, training, strict=True):
            vars(module).update(found)
            module.training = was
