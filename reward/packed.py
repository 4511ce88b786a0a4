"""A batch of sequences as one row without padding: the backbone computes real tokens only.

The dense layers run once over all tokens of the batch; attention, which transformers lets one
register (`AttentionInterface`), runs segment by segment: a sequence, or what it adds to a prefix
that it shares with others (`reward.tree`). Of the tokens whose last states nobody asked for (a
prompt's), the last layer computes keys and values alone. Values and gradients are those of the
padded forward pass up to rounding: `reward.packed_probe` compares both on a few tokens before a
backbone is packed for the first time. Only on a CPU: on an accelerator one launch for every segment
and layer would cost more than the padding. Leaves out models whose layers mix tokens in any other
way than full causal attention: those keep the padded pass.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from reward.errors import ModelError
from reward.packed_probe import agrees
from reward.tree import Segment

NAME = "align_packed"
# A packed pass changes the backbone while it runs; other threads wait (`align reward serve`).
ALONE = threading.RLock()


def can_pack(backbone: nn.Module, device: torch.device) -> TypeGuard[PreTrainedModel]:
    """Whether `packed_states` computes what this backbone computes on padded rows."""
    if device.type != "cpu" or not isinstance(backbone, PreTrainedModel):
        return False
    with ALONE:
        return looks_packable(backbone) and agrees(backbone, tree_states)


def looks_packable(backbone: PreTrainedModel) -> bool:
    """Whether its configuration and its signature speak against packing."""
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


def packed_states(
    backbone: PreTrainedModel, ids: Tensor, lengths: Sequence[int], wanted: Tensor
) -> Tensor:
    """Last hidden states at some tokens of sequences that lie one after the other.

    Args:
        backbone: one for which `can_pack` holds.
        ids: (N,) int64, all sequences' tokens.
        lengths: tokens of each sequence; their sum is N.
        wanted: (N,) bool, True at S tokens.

    Returns:
        (S, H).

    Raises:
        ModelError: the backbone has more than a norm after its last layer.
    """
    return tree_states(backbone, ids, [Segment(length) for length in lengths], wanted)


def tree_states(
    backbone: PreTrainedModel, ids: Tensor, segments: Sequence[Segment], wanted: Tensor
) -> Tensor:
    """Last hidden states at some tokens of segments that lie one after the other.

    Args:
        backbone: one for which `can_pack` holds.
        ids: (N,) int64, all segments' tokens.
        segments: their lengths add up to N; each comes after those that it follows.
        wanted: (N,) bool, True at S tokens.

    Returns:
        (S, H).

    Raises:
        ModelError: the backbone has more than a norm after its last layer, a mask of its own, or
            calls attention twice in its last layer.
    """
    packing = Packing(segments, wanted)
    last = last_layer(backbone) if packing.count else None
    with ALONE, attending(backbone), narrowed(last, packing):
        output = backbone(
            input_ids=ids[None],
            position_ids=packing.positions[None],
            use_cache=False,
            packing=packing,
        )
    states: Tensor = output.last_hidden_state[0]
    if last is None:
        return states[wanted]
    if len(states) != packing.count:
        raise ModelError(
            f"{type(backbone).__name__} gave {len(states)} states for {packing.count} tokens. "
            "Fix: load it with attn_implementation=eager, and report this model."
        )
    return states


def last_layer(backbone: PreTrainedModel) -> nn.Module | None:
    """The last layer, where only a norm follows it, as in Llama and most models since."""
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(backbone, "norm"):
        return None
    return layers[-1]


class Packing:
    """Where the segments lie in the row, and how attention goes along them."""

    def __init__(self, segments: Sequence[Segment], wanted: Tensor):
        self.segments = list(segments)
        self.lengths = [segment.length for segment in segments]
        self.reach = [segment.depth + segment.length for segment in segments]  # keys of each
        self.positions = torch.cat(
            [
                torch.arange(end - length, end, device=wanted.device)
                for end, length in zip(self.reach, self.lengths, strict=True)
            ]
        )
        self.rows = wanted.nonzero().squeeze(1)  # (S,) places of the wanted tokens in the row
        self.count = len(self.rows)
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
def narrowed(layer: nn.Module | None, packing: Packing) -> Iterator[None]:
    """Inside, the layer computes keys and values of all tokens, and the rest of wanted ones.

    Its forward runs twice: once up to its attention, for the keys and values; then on the wanted
    tokens alone, whose attention takes those.
    """
    if layer is None:
        yield
        return
    own = layer.__dict__.get("forward")  # hooks of other libraries live there
    forward, total = layer.forward, len(packing.positions)

    def select(states: Tensor) -> Tensor:
        if states.shape[:2] != (1, total):
            return states
        return states.index_select(1, packing.rows)

    def narrow(*args: Any, **kwargs: Any) -> Any:
        packing.stopping = True
        try:
            forward(*args, **kwargs)
        except Stop as stop:
            packing.kept = stop.states
        finally:
            packing.stopping = False
        packing.narrow = True
        try:
            return forward(*tree_map_only(Tensor, select, args), **_chosen(kwargs, select))
        finally:
            packing.narrow, packing.used, packing.kept = False, False, None

    layer.forward = narrow
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def _chosen(kwargs: dict[str, Any], select: Any) -> dict[str, Any]:
    """Keyword arguments at the wanted tokens."""
    return {name: tree_map_only(Tensor, select, value) for name, value in kwargs.items()}


@contextmanager
def attending(backbone: PreTrainedModel) -> Iterator[None]:
    """Our attention inside. transformers makes no mask for an attention it has none for."""
    config = backbone.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    return packing.attend(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(NAME, _attention)
