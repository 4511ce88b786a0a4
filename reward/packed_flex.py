"""Attention along a tree in one kernel, for accelerators: FlexAttention with a block mask.

In a flat row whose segments lie in depth-first order, what sees a token is one stretch that begins
with the token itself: token q sees token k where k <= q < end[k]. So a mask needs one number a
token, and which blocks of it are empty or full follows from the least and the greatest `end` of
each block, without a T x T table. Rows are filled up to a few lengths, so that the kernel is
compiled a few times only. Leaves out CPUs, where `reward.packed_attention` goes segment by segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from reward.errors import ModelError
from reward.tree import Segment

BLOCK = 128  # tokens of a side of FlexAttention's blocks
STEPS = 8  # lengths of rows from one power of two to the next


def filled_length(tokens: int) -> int:
    """The length that a row of so many tokens is filled up to: at most an eighth more, or 127."""
    step = max(BLOCK, 1 << max(0, (tokens - 1).bit_length() - 1 - (STEPS.bit_length() - 1)))
    return -(-tokens // step) * step


def last_seen(segments: Sequence[Segment], device: torch.device | str = "cpu") -> Tensor:
    """One past the last token that sees each token: `end`, (N,) int64.

    Args:
        segments: in depth-first order, as `reward.tree.share` gives them.
        device: of the result.
    """
    starts = [0]
    for segment in segments:
        starts.append(starts[-1] + segment.length)
    end = torch.empty(starts[-1], dtype=torch.long)
    for place, segment in enumerate(segments):
        stop = starts[place + 1]
        end[starts[place] : stop] = stop
        for at, count in segment.before:
            end[starts[at] : starts[at] + count] = stop  # later segments lie further on
    return end.to(device)


def block_mask(end: Tensor, filled: int) -> BlockMask:
    """The mask of a row of N tokens, filled up to `filled`; what fills it sees itself alone.

    Args:
        end: (N,) int64 of `last_seen`.
        filled: at least N.
    """
    own = torch.arange(1, filled + 1, device=end.device)
    own[: len(end)] = end
    blocks = -(-filled // BLOCK)
    # what lies past the row is seen by nothing, and fills no block
    padded = own.new_zeros(blocks * BLOCK)
    padded[:filled] = own
    tiles = padded.view(blocks, BLOCK)
    most, least = tiles.amax(dim=1), tiles.amin(dim=1)  # (blocks,)
    first = torch.arange(blocks, device=end.device)[:, None] * BLOCK  # of each block of queries
    before = torch.ones(blocks, blocks, dtype=torch.bool, device=end.device).tril(-1)
    full = before & (least[None, :] >= first + BLOCK)
    partial = (before & (most[None, :] > first) & ~full) | torch.eye(
        blocks, dtype=torch.bool, device=end.device
    )

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < own[key])

    return BlockMask.from_kv_blocks(
        *_listed(partial),
        *_listed(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(filled, filled),
    )


def flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, **kwargs: Any
) -> Tensor:
    """Attention under a block mask, (1, heads, N, d) to (1, N, heads, d).

    Raises:
        ModelError: dropout of attention, or a bias of positions, which a block mask has no place
            for.
    """
    if kwargs.get("dropout") or kwargs.get("position_bias") is not None:
        raise ModelError(
            f"{type(module).__name__} asks for dropout or a position bias in its attention, which "
            "a shared row on an accelerator has no place for. Fix: set model.prefix_sharing=off."
        )
    kernel = _compiled() if query.is_cuda else flex_attention
    found = kernel(
        query,
        key,
        value,
        block_mask=mask,
        scale=kwargs.get("scaling"),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return found.transpose(1, 2).contiguous()


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of a table has, and which come first: (1, 1, n) and (1, 1, n, n)."""
    counts = table.sum(dim=1, dtype=torch.int32)
    order = table.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], order[None, None]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
