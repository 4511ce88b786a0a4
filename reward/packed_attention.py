"""Where the segments of a packed row lie, and how attention goes along them.

transformers lets one register attention functions (`AttentionInterface`). Ours is told by a
`packing` argument which row it is in; without one it is transformers' `sdpa`. Two names for it:
under `PACKED` transformers makes no mask, under `READY` the masks of `sdpa`. A backbone takes the
first while a packed pass runs. One that trains keeps the second between passes, so that layers
computed again for their gradients (checkpointing), after the pass, still find our attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from reward.errors import ModelError
from reward.packed_flex import block_mask, filled_length, flex, last_seen
from reward.tree import Segment

PACKED, READY = "align_packed", "align_ready"


class Packing:
    """Where the segments lie in the row, and how attention goes along them."""

    def __init__(self, segments: Sequence[Segment], wanted: Tensor, *, in_blocks: bool = False):
        """Lay out.

        Args:
            segments: in order.
            wanted: (N,) bool, True at S tokens.
            in_blocks: one kernel with a block mask (`reward.packed_flex`) instead of a call for
                each segment.
        """
        self.segments = list(segments)
        self.lengths = [segment.length for segment in segments]
        self.reach = [segment.depth + segment.length for segment in segments]  # keys of each
        self.positions = torch.cat(
            [
                torch.arange(end - length, end)
                for end, length in zip(self.reach, self.lengths, strict=True)
            ]
        ).to(wanted.device)
        self.rows = wanted.nonzero().squeeze(1)  # (S,) places of the wanted tokens in the row
        self.count = len(self.rows)
        self.total = len(wanted)
        self.filling = 0  # tokens that fill the row up, at its end
        self.blocks = None
        self.masks: list[Tensor | None] = []
        self.asked: list[int] = []
        if in_blocks:
            filled = filled_length(self.total)
            self.filling = filled - self.total
            self.positions = nn.functional.pad(self.positions, (0, self.filling))
            self.blocks = block_mask(last_seen(segments, wanted.device), filled)
        else:
            self.asked = [int(part.sum()) for part in wanted.split(self.lengths)]
            # what follows nothing needs no mask: it is causal from its first token on
            self.masks = [
                seen_by(at, end) if len(at) < end else None
                for at, end in zip(self.positions.split(self.lengths), self.reach, strict=True)
            ]
        self.stopping = self.narrow = self.used = False
        self.kept: tuple[Tensor, Tensor] | None = None  # keys and values of the last layer

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Tensor:
        """Causal attention along each segment: (1, heads, N or S, d) to (1, N or S, heads, d)."""
        if attention_mask is not None:
            raise ModelError(
                f"{type(module).__name__} gives attention a mask of its own, which a packed row "
                "has no place for. Fix: load the model with attn_implementation=eager."
            )
        if self.stopping:
            raise Stop(key, value)
        if self.blocks is not None:
            return flex(module, query, key, value, self.blocks, **kwargs)
        masks, queries = self.masks, self.lengths
        if self.narrow:
            if self.kept is None or self.used:  # the keys and values kept are its first call's
                raise ModelError(
                    f"{type(module).__name__} calls attention more than once in a layer. Fix: load "
                    "the model with attn_implementation=eager."
                )
            self.used = True
            (key, value), queries = self.kept, self.asked
            asked = self.positions[self.rows].split(self.asked)
            masks = [seen_by(at, end) for at, end in zip(asked, self.reach, strict=True)]
        # split, not slices: its backward pass joins the parts' gradients once
        keys, values = key.split(self.lengths, dim=2), value.split(self.lengths, dim=2)
        found = [
            sdpa_attention_forward(
                module, q, along(keys, place, one), along(values, place, one), mask, **kwargs
            )[0]
            for place, (one, q, mask) in enumerate(
                zip(self.segments, query.split(queries, dim=2), masks, strict=True)
            )
            if q.shape[2]
        ]
        return torch.cat(found, dim=1)


def along(parts: Sequence[Tensor], place: int, segment: Segment) -> Tensor:
    """Keys or values of what a segment follows and its own, (1, heads, depth + length, d)."""
    if not segment.before:
        return parts[place]
    before = [parts[at][:, :, :count] for at, count in segment.before]
    return torch.cat([*before, parts[place]], dim=2)


def seen_by(positions: Tensor, end: int) -> Tensor | None:
    """Which of `end` tokens the ones at these positions see, (Q, end) bool; None: a last one, all.

    Attention without a mask is causal only where there is more than one query.
    """
    if len(positions) == 1 and int(positions[0]) == end - 1:
        return None
    return positions[:, None] >= torch.arange(end, device=positions.device)


class Stop(Exception):  # noqa: N818 - no error: it leaves a layer that has computed enough
    """Carries the keys and values of the layer it was raised in."""

    def __init__(self, key: Tensor, value: Tensor):
        super().__init__()
        self.states = key, value


@contextmanager
def attending(backbone: PreTrainedModel) -> Iterator[None]:
    """Our attention inside, and no masks: transformers makes none for a name it has none for."""
    config = backbone.config
    before = config._attn_implementation
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = before


def make_ready(backbone: PreTrainedModel) -> None:
    """Let a backbone keep our attention between packed passes; it computes what `sdpa` does."""
    if backbone.config._attn_implementation == "sdpa":
        backbone.config._attn_implementation = READY


def unmake_ready(backbone: PreTrainedModel) -> None:
    """Undo `make_ready`."""
    if backbone.config._attn_implementation == READY:
        backbone.config._attn_implementation = "sdpa"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return packing.attend(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(PACKED, _attention)
AttentionInterface.register(READY, _attention)
AttentionMaskInterface.register(READY, sdpa_mask)
