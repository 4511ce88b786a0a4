"""A batch of sequences as one row without padding: the backbone computes real tokens only.

The dense layers run once over all tokens of the batch; attention, which transformers lets one
register (`AttentionInterface`), runs sequence by sequence. Values and gradients are those of the
padded forward pass up to rounding. Only on a CPU: on an accelerator one launch for every sequence
and layer would cost more than the padding. Leaves out common prefixes, and models whose layers mix
tokens in any other way than full causal attention: those keep the padded forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "align_packed"
LENGTHS = "packed_lengths"  # the keyword that carries the sequences' lengths to the attention


def can_pack(backbone: nn.Module, device: torch.device) -> TypeGuard[PreTrainedModel]:
    """Whether `packed_states` computes what this backbone computes on padded rows."""
    if device.type != "cpu" or not isinstance(backbone, PreTrainedModel):
        return False
    config = backbone.config.get_text_config()
    if config is not backbone.config or config._attn_implementation != "sdpa":
        return False
    if not backbone._supports_attention_backend or backbone._is_stateful:
        return False
    if backbone.is_gradient_checkpointing and backbone.training:
        return False  # the backward pass would recompute with the other attention
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or not getattr(config, "is_causal", True):
        return False
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        return False
    parameters = inspect.signature(backbone.forward).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return takes_more and any(parameter.name == "position_ids" for parameter in parameters)


def packed_states(backbone: PreTrainedModel, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Last hidden states of sequences that lie one after the other.

    Args:
        backbone: one for which `can_pack` holds.
        ids: (N,) int64, all sequences' tokens.
        lengths: tokens of each sequence; their sum is N.

    Returns:
        (N, H).
    """
    positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
    extra: dict[str, Any] = {LENGTHS: tuple(lengths)}
    with _attention(backbone):
        output = backbone(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, **extra
        )
    states: Tensor = output.last_hidden_state[0]
    return states


@contextmanager
def _attention(backbone: PreTrainedModel) -> Iterator[None]:
    """Our attention inside. transformers makes no mask for an attention it has none for."""
    config = backbone.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_lengths: tuple[int, ...],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence: (1, heads, N, d) to (1, N, heads, d)."""
    lengths = list(packed_lengths)
    # split, not slices: its backward pass joins the parts' gradients once
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    found = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in parts]
    return torch.cat(found, dim=1), None


AttentionInterface.register(NAME, _attend)
