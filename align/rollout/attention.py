"""Attention for sampling: packed prompts without padding, and one new token a row without copies.

transformers' `sdpa` repeats the cached keys and values for every query head of a group, a copy of
the whole cache in each layer of each step; here a group's heads are the queries of one product. It
is registered under a name of its own and used while a model samples into a `SlotCache`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from align.rollout.cache import SlotCache

NAME = "align_slots"
BLOCK = 8  # rows that attend at once on a CPU: fewer columns against more calls
CACHE: ContextVar[SlotCache] = ContextVar("align_slot_cache")


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the cache in use says; the signature is transformers' `AttentionInterface`'s.

    Args:
        module: the attention layer; its `layer_idx` finds its sliding window.
        query: (1, heads, N, D) of packed prompts, or (B, heads, 1, D) of one token a row.
        key: (1, key heads, N, D), or (B, key heads, columns, D).
        value: as `key`.
        attention_mask: (B, 1, 1, columns) float, added to the scores; prompts need none.
        scaling: of the scores.
        **kwargs: what transformers hands to every attention function.

    Returns:
        (1, N, heads, D) or (B, 1, heads, D), and no weights.
    """
    cache = CACHE.get()
    window = cache.slots[int(module.layer_idx)].sliding_window  # type: ignore[arg-type]
    if cache.segments:
        return attend_packed(query, key, value, cache, window, scaling), None
    return attend_one(query, key, value, attention_mask, cache, window, scaling), None


def attend_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cache: SlotCache,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """One new token a row, (B, 1, heads, D); the query heads of a key head attend together."""
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    at_once = BLOCK if query.device.type == "cpu" else rows
    parts = [
        scaled_dot_product_attention(
            grouped[block],
            key[block, :, columns],
            value[block, :, columns],
            attn_mask=None if mask is None else mask[block, ..., columns],
            scale=scaling,
        )
        for block, columns in cache.blocks(at_once, window)
    ]
    output = parts[0] if len(parts) == 1 else torch.cat(parts)
    return output.reshape(rows, 1, heads, -1)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: SlotCache,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Each prompt of a packed row to itself, (1, N, heads, D)."""
    _, heads, total, _ = query.shape
    output = query.new_empty(1, total, heads, value.shape[-1])
    for segment in cache.segments:
        tokens = slice(segment.start, segment.start + segment.length)
        banded = window is not None and segment.length > window
        one = scaled_dot_product_attention(
            query[:, :, tokens],
            key[:, :, tokens],
            value[:, :, tokens],
            attn_mask=band(segment.length, window or 0, query.device) if banded else None,
            is_causal=not banded,
            scale=scaling,
            enable_gqa=key.shape[1] != heads,
        )
        output[:, tokens] = one.transpose(1, 2)
    return output


def band(length: int, window: int, device: torch.device) -> Tensor:
    """True where a token may look: itself and the `window` - 1 before it; (length, length) bool."""
    square = torch.ones(length, length, dtype=torch.bool, device=device)
    return square.tril().triu(1 - window)


@contextmanager
def slots(model: PreTrainedModel, cache: SlotCache) -> Iterator[None]:
    """The model attends as `slot_attention` does inside, and as before after."""
    before = model.config._attn_implementation
    AttentionInterface.register(NAME, slot_attention)
    token = CACHE.set(cache)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        CACHE.reset(token)
