"""Prefix sharing: a backbone's forward without padding, and with what rows share computed once.

It stands before the forward of a backbone that somebody else trains (TRL's trainers, ours), takes
the padded batch that is meant for it, lays its unique tokens out in one flat row
(`reward.layout`, `reward.packed`), and gives the states back at their places, (B, T, H). What
stands above needs no change. Trainers whose heads read some tokens only ask for those
(`states_at`). Whether a batch is worth it, a cost model says (`align.engine.prefix_cost`). Values
and gradients are the plain pass's up to rounding. Source: Prefix Sharing for DPO, arXiv 2410.20305,
equation 4, for pairs; trees of any depth here.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from align.engine.prefix_cost import Costs, counted_costs, measure_costs
from align.errors import ModelError
from align.processes import first_process
from reward.layout import Layout, is_contiguous, lay_out
from reward.packed import can_pack, why_not
from reward.packed_attention import make_ready
from reward.shared import shared_states

log = logging.getLogger(__name__)

Mode = Literal["auto", "measured", "on", "off"]

# Arguments of a backbone that change nothing about its last states.
HARMLESS = {"use_cache", "return_dict"}
OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")

INSTALLED = "_align_prefix"  # attribute of a backbone; a copy of it has a copy of what it names


@dataclass
class Counts:
    """What went through a backbone, in tokens and passes."""

    passes: int = 0
    shared: int = 0  # passes without padding
    padded: int = 0  # tokens, padding included
    real: int = 0
    computed: int = 0  # tokens that the dense layers saw

    def note(self, padded: int, real: int, computed: int, *, shared: bool) -> None:
        """Add one pass."""
        self.passes += 1
        self.shared += shared
        self.padded += padded
        self.real += real
        self.computed += computed


class PrefixSharing:
    """The forward of one backbone: shared where that is right and worth it, else its own."""

    def __init__(self, backbone: PreTrainedModel, mode: Mode, costs: Costs | None = None):
        """Set up; nothing is changed before `install`.

        Args:
            backbone: without its head.
            mode: `off` never shares.
            costs: share where they say that it is faster; None: whenever it is right.
        """
        self.backbone, self.mode, self.costs = backbone, mode, costs
        self.original: Callable[..., Any] = backbone.forward
        self.before: Callable[..., Any] | None = None
        self.signature = inspect.signature(type(backbone).forward)
        self.counts = Counts()
        self.plain = False
        self.told = False  # that a window kept a batch plain

    def install(self) -> None:
        """Stand before the backbone's forward, with its signature."""

        @functools.wraps(type(self.backbone).forward)
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return vars(module)[INSTALLED].forward(*args, **kwargs)  # a copy's own

        self.before = vars(self.backbone).get("forward")
        self.backbone.forward = MethodType(forward, self.backbone)
        vars(self.backbone)[INSTALLED] = self

    def remove(self) -> None:
        """Give the backbone its forward back."""
        del self.backbone.forward
        if self.before is not None:  # another library's
            self.backbone.forward = self.before
        del vars(self.backbone)[INSTALLED]

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the backbone's own forward; the states of padding are 0 where rows were shared."""
        if "packing" in kwargs or self.plain:  # our own pass, or a head's that has asked already
            return self.original(*args, **kwargs)
        batch = self._batch(args, kwargs)
        layout = self.lay_out(*batch) if batch is not None else None
        if layout is None:
            return self.original(*args, **kwargs)
        every = torch.arange(layout.unique, device=layout.ids.device)
        states = self._shared(layout, every, run=self.original)
        spread: Any = layout.spread(states)
        return BaseModelOutputWithPast(last_hidden_state=spread)

    @torch.compiler.disable
    def states_at(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor) -> Tensor | None:
        """Last states of some tokens; the last layer computes little of the others.

        Args:
            input_ids: (B, T), padded on either side.
            attention_mask: (B, T).
            wanted: (B, T) bool, True on W tokens that are no padding.

        Returns:
            (W, H), row by row; None: the plain pass is right or faster here.
        """
        layout = self.lay_out(input_ids, attention_mask, wanted=wanted)
        if layout is None:
            return None
        return self._shared(layout, layout.places[wanted])

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Inside, the backbone runs its own pass: for a head that `states_at` gave None."""
        self.plain = True
        try:
            yield
        finally:
            self.plain = False

    def lay_out(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        *,
        wanted: Tensor | None = None,
    ) -> Layout | None:
        """The layout of a batch that is to be shared; None: it is not, and counted as plain."""
        layout = None
        real = input_ids.numel() if attention_mask is None else int(attention_mask.sum())
        if self._right(input_ids, attention_mask) and real:
            firsts, known = _documents(attention_mask, position_ids)
            if known and (wanted is None or not self._beyond(wanted, attention_mask)):
                layout = lay_out(input_ids, attention_mask, firsts=firsts)
        padded = real < input_ids.numel()
        if layout is not None and self.costs and not self.costs.worth(layout, padded=padded):
            layout = None
        computed = input_ids.numel() if layout is None else layout.unique
        self.counts.note(input_ids.numel(), real, computed, shared=layout is not None)
        return layout

    def _right(self, input_ids: Tensor, attention_mask: Tensor | None) -> bool:
        """Whether a shared pass gives this batch the plain one's states."""
        if self.mode == "off" or (self.backbone.training and drops(self.backbone)):
            return False
        if self.backbone.is_gradient_checkpointing:
            make_ready(self.backbone)
        longest = input_ids.shape[1]
        if attention_mask is not None:
            longest = int(attention_mask.sum(dim=1).max()) if len(attention_mask) else 0
        right = can_pack(self.backbone, input_ids.device, longest, on_accelerators=True)
        if not right and not self.told:
            self._tell_of_window(input_ids.device, longest)
        return right

    def _tell_of_window(self, device: torch.device, longest: int) -> None:
        """Say once that shorter rows would be shared, where that is what keeps a batch plain."""
        if can_pack(self.backbone, device, 0, on_accelerators=True):
            self.told = True
            if first_process():
                log.warning(
                    "prefix sharing: %s keeps its plain pass for a batch whose longest row has "
                    "%d tokens, and for others like it: %s",
                    type(self.backbone).__name__,
                    longest,
                    why_not(self.backbone, longest),
                )

    def _beyond(self, wanted: Tensor, attention_mask: Tensor | None) -> bool:
        return attention_mask is not None and bool((wanted & ~attention_mask.bool()).any())

    def _shared(
        self, layout: Layout, places: Tensor, run: Callable[..., Any] | None = None
    ) -> Tensor:
        return shared_states(self.backbone, layout.tree, places, ids=layout.ids, run=run)

    def _batch(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Ids, mask and positions of a call that wants last states alone; None of any other."""
        try:
            bound = self.signature.bind_partial(self.backbone, *args, **kwargs).arguments
        except TypeError:
            return None  # the backbone's own error will say more
        given = {name: value for name, value in bound.items() if value is not None}
        given |= given.pop("kwargs", {})
        given.pop("self", None)
        ids = given.pop("input_ids", None)
        mask, positions = given.pop("attention_mask", None), given.pop("position_ids", None)
        if not isinstance(ids, Tensor) or ids.ndim != 2 or given.get("return_dict") is False:
            return None
        if isinstance(mask, Tensor) and mask.shape != ids.shape:
            return None
        if not isinstance(mask, Tensor | None) or not isinstance(positions, Tensor | None):
            return None
        learning = torch.is_grad_enabled() and self.backbone.training
        if given.get("use_cache", not learning):  # a caller that may want the cache
            return None
        config = self.backbone.config
        for name in OUTPUTS:
            if given.pop(name, getattr(config, name, False)):
                return None
        if any(value is not None for name, value in given.items() if name not in HARMLESS):
            return None
        return ids, mask, positions


def share_prefixes(
    backbone: nn.Module, mode: Mode = "auto", costs: Costs | None = None, *, always: bool = False
) -> tuple[PrefixSharing | None, str | None]:
    """Let a backbone share prefixes from now on.

    Args:
        backbone: without its head, on its device; with adapters inside it, if any.
        mode: `auto`, `measured`, `on`, or `off`, which keeps every pass of the backbone plain.
        costs: of `auto` and `measured`, known before; None: they are counted, or measured now.
        always: `auto` shares wherever it is right.

    Returns:
        What was installed, and None; or None, and why this backbone keeps its plain pass.

    Raises:
        ModelError: `on`, and this backbone cannot.
    """
    why = cannot_share(backbone) if mode != "off" else None
    if why is not None:
        if mode == "on":
            raise ModelError(
                f"model.prefix_sharing=on: {type(backbone).__name__} cannot share prefixes: "
                f"{why}. Fix: set model.prefix_sharing=auto."
            )
        mode = "off"
    if not isinstance(backbone, PreTrainedModel):
        return None, why
    before = sharing_of(backbone)
    if before is not None:
        before.remove()
    if mode == "measured":
        costs = costs or measure_costs(backbone)
    elif mode == "auto" and not always:
        costs = costs or counted_costs(backbone)
    else:
        costs = None
    sharing = PrefixSharing(backbone, mode, costs)
    sharing.install()
    return (None, why) if mode == "off" else (sharing, None)


def cannot_share(backbone: nn.Module) -> str | None:
    """Why a backbone keeps its plain pass; None: it can share.

    A window is no reason here: rows that are shorter can be shared.
    """
    if not isinstance(backbone, PreTrainedModel):
        return "it is no transformers model"
    device = next(backbone.parameters()).device
    if device.type not in ("cpu", "cuda"):
        return f"it is on {device.type}"
    if backbone.training and drops(backbone):
        return "dropout is on, and shared tokens would share it"
    if backbone.is_gradient_checkpointing:
        make_ready(backbone)
    why = why_not(backbone, longest=0)
    if why is None and not can_pack(backbone, device, 0, on_accelerators=True):
        why = "a trial on a few tokens gave other states"
    return why


def sharing_of(backbone: nn.Module) -> PrefixSharing | None:
    """What `share_prefixes` installed on a backbone, `off` included."""
    found: PrefixSharing | None = vars(backbone).get(INSTALLED)
    return found


def drops(model: nn.Module) -> bool:
    """Whether any dropout of a model is above 0."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or (isinstance(rate := getattr(module, "attention_dropout", None), float) and rate > 0)
        for module in model.modules()
    )


def _documents(
    attention_mask: Tensor | None, position_ids: Tensor | None
) -> tuple[Tensor | None, bool]:
    """Where documents begin within rows, and whether these positions can be shared at all.

    Positions that a caller gives must be those of the tree: counted along each row's real tokens,
    or, without a mask, from 0 in each document, where transformers keeps documents apart too.
    """
    if position_ids is None:
        return None, attention_mask is None or is_contiguous(attention_mask)
    if attention_mask is not None:
        real = attention_mask.bool()
        counted = real.long().cumsum(dim=1) - 1
        same = position_ids.shape == real.shape and bool((position_ids == counted)[real].all())
        return None, same
    firsts = position_ids == 0
    steps = position_ids.diff(dim=1) == 1
    return firsts, bool(firsts[:, 0].all() and (steps | firsts[:, 1:]).all())
