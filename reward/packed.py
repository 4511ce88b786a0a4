"""A batch of sequences as one row without padding: the backbone computes real tokens only.

The dense layers run once over all tokens of the batch; attention goes segment by segment
(`reward.packed_attention`): a sequence, or what it adds to a prefix that it shares with others
(`reward.tree`). Of the tokens whose last states nobody asked for (a prompt's), the last layer
computes keys and values alone. Values and gradients are those of the padded forward pass up to
rounding: `reward.packed_probe` compares both on a few tokens before a backbone is packed for the
first time. On an accelerator one kernel goes along all segments (`reward.packed_flex`), where it is
asked for. Leaves out models whose layers mix tokens in any other way than causal attention: those
keep the padded pass. Attention within a sliding window is packed where no row is longer than it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from reward.errors import ModelError
from reward.packed_attention import READY, Packing, Stop, attending
from reward.packed_probe import agrees
from reward.tree import Segment

# A packed pass changes the backbone while it runs; other threads wait (`align reward serve`).
ALONE = threading.RLock()

Run = Callable[..., Any]  # as a backbone's forward


KINDS = {"full_attention", "sliding_attention"}


def can_pack(
    backbone: nn.Module,
    device: torch.device,
    longest: int | None = None,
    *,
    on_accelerators: bool = False,
) -> TypeGuard[PreTrainedModel]:
    """Whether `packed_states` computes what this backbone computes on padded rows.

    Args:
        backbone: without its head.
        device: that it is on.
        longest: tokens of the longest row; None: any, so that no window is allowed.
        on_accelerators: off, the answer is no on any device but a CPU.
    """
    if not isinstance(backbone, PreTrainedModel):
        return False
    if device.type != "cpu" and not (on_accelerators and device.type == "cuda"):
        return False
    with ALONE:
        return why_not(backbone, longest) is None and agrees(backbone, tree_states)


def looks_packable(backbone: PreTrainedModel, longest: int | None = None) -> bool:
    """Whether its configuration and its signature speak for packing."""
    return why_not(backbone, longest) is None


def why_not(backbone: PreTrainedModel, longest: int | None = None) -> str | None:
    """What in its configuration and its signature speaks against packing; None: nothing."""
    config = backbone.config.get_text_config()
    if config is not backbone.config:
        return "it reads more than text"
    if not backbone._supports_attention_backend or backbone._is_stateful:
        return "its attention is not transformers' common one"
    if config._attn_implementation not in ("sdpa", READY):
        return f"its attention is {config._attn_implementation}, not sdpa"
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        return "its tokens see those after them"
    again = backbone.is_gradient_checkpointing and backbone.training
    if again and config._attn_implementation != READY:
        return "layers that are computed again would attend otherwise"
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - KINDS:
        return f"it has layers of {', '.join(sorted(kinds - KINDS))}"
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or not kinds
    if windowed and window and (longest is None or longest > window):
        return f"its attention looks back {window} tokens only"
    parameters = inspect.signature(type(backbone).forward).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if not (takes_more and any(parameter.name == "position_ids" for parameter in parameters)):
        return "its forward takes no positions"
    return None


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
    backbone: PreTrainedModel,
    ids: Tensor,
    segments: Sequence[Segment],
    wanted: Tensor,
    *,
    in_blocks: bool | None = None,
    run: Run | None = None,
) -> Tensor:
    """Last hidden states at some tokens of segments that lie one after the other.

    Args:
        backbone: one for which `can_pack` holds.
        ids: (N,) int64, all segments' tokens.
        segments: their lengths add up to N; each comes after those that it follows.
        wanted: (N,) bool, True at S tokens.
        in_blocks: attention by one kernel, which wants the segments in depth-first order; None:
            on CUDA.
        run: what to call for the pass; None: the backbone, with its hooks.

    Returns:
        (S, H).

    Raises:
        ModelError: the backbone has more than a norm after its last layer, a mask of its own, or
            calls attention twice in its last layer.
    """
    packing = Packing(segments, wanted, in_blocks=ids.is_cuda if in_blocks is None else in_blocks)
    last = last_layer(backbone, packing)
    row = nn.functional.pad(ids, (0, packing.filling))
    with ALONE, attending(backbone), narrowed(last, packing):
        output = (run or backbone)(
            input_ids=row[None],
            position_ids=packing.positions[None],
            use_cache=False,
            packing=packing,
        )
    states: Tensor = output.last_hidden_state[0]
    if last is None:
        states = states[: packing.total]
        return states if packing.count == packing.total else states[wanted]
    if len(states) != packing.count:
        raise ModelError(
            f"{type(backbone).__name__} gave {len(states)} states for {packing.count} tokens. "
            "Fix: load it with attn_implementation=eager, and report this model."
        )
    return states


def last_layer(backbone: PreTrainedModel, packing: Packing) -> nn.Module | None:
    """The layer that need not compute every token; None: there is none, or nothing to save.

    It is the last one where only a norm follows it, as in Llama and most models since. A layer that
    is computed again in the backward pass, or whose weights are gathered while it runs, is left.
    """
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(backbone, "norm"):
        return None
    if packing.blocks is not None or packing.count in (0, packing.total):
        return None
    if (backbone.is_gradient_checkpointing and backbone.training) or is_sharded(layers[-1]):
        return None
    return layers[-1]


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights are spread over processes, by FSDP or by DeepSpeed's ZeRO-3."""
    if type(module).__module__.startswith("torch.distributed"):
        return True
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in module.parameters())


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
