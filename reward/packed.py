"""A batch of sequences as one row without padding: the backbone computes real tokens only.

The dense layers run once over all tokens of the batch; attention, which transformers lets one
register (`AttentionInterface`), runs sequence by sequence. Of the tokens whose last states nobody
asked for (a prompt's), the last layer computes keys and values alone. Values and gradients are
those of the padded forward pass up to rounding. Only on a CPU: on an accelerator one launch for
every sequence and layer would cost more than the padding. Leaves out common prefixes, and models
whose layers mix tokens in any other way than full causal attention: those keep the padded pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from reward.errors import ModelError

NAME = "align_packed"


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
    packing = Packing(lengths, wanted)
    last = last_layer(backbone) if packing.count else None
    with attending(backbone), narrowed(last, packing):
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
    """Where the sequences lie in the row, and how attention goes within each."""

    def __init__(self, lengths: Sequence[int], wanted: Tensor):
        self.lengths = list(lengths)
        self.positions = torch.cat([torch.arange(n, device=wanted.device) for n in lengths])
        self.rows = wanted.nonzero().squeeze(1)  # (S,) places of the wanted tokens in the row
        self.count = len(self.rows)
        self.asked = [int(part.sum()) for part in wanted.split(self.lengths)]
        self.stopping = self.narrow = False
        self.kept: tuple[Tensor, Tensor] | None = None  # keys and values of the last layer

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Tensor:
        """Causal attention within each sequence: (1, heads, N or S, d) to (1, N or S, heads, d)."""
        if self.stopping:
            raise Stop(key, value)
        masks: list[Tensor | None] = [None] * len(self.lengths)
        queries = self.lengths
        if self.narrow:
            assert self.kept is not None
            (key, value), queries = self.kept, self.asked
            masks = [
                at[:, None] >= torch.arange(length, device=at.device)
                for at, length in zip(
                    self.positions[self.rows].split(self.asked), self.lengths, strict=True
                )
            ]
        # split, not slices: its backward pass joins the parts' gradients once
        parts = zip(
            query.split(queries, dim=2),
            key.split(self.lengths, dim=2),
            value.split(self.lengths, dim=2),
            masks,
            strict=True,
        )
        found = [
            sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0]
            for q, k, v, mask in parts
            if q.shape[2]
        ]
        return torch.cat(found, dim=1)


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
            packing.narrow, packing.kept = False, None

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
    return packing.attend(module, query, key, value, **kwargs), None


AttentionInterface.register(NAME, _attention)
