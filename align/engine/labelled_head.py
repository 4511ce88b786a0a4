"""Heads that read labelled tokens only, on every device, under TRL's own trainers.

TRL 1.16 gives its models a fused head: `model(..., labels=labels, fused_lm_head=True)` returns
log-probabilities instead of logits. Where there is no Triton it scores every padded position. Ours
takes its place with the same arguments and output, asks the backbone for the labelled tokens'
states (`align.engine.prefix`) and scores those. What TRL set its head to (temperature, outputs) is
read from its function; tests/seams/test_trl_head.py holds TRL to it. Everything else (generation,
routers' losses) goes to TRL's. Reward models read one token a row likewise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl.trainer.utils import FusedCausalLMOutput

from align.engine.prefix import PrefixSharing, sharing_of
from align.engine.token_scores import Logits, score_states

Around = Callable[[], AbstractContextManager[Any]]
SETTINGS = ("temperature", "outputs", "logit_scale", "final_logit_softcapping")
# Arguments that a head can do with, or without.
READ = {"use_cache", "return_dict", "num_items_in_batch", "margin"}


def read_labels_only(
    model: PreTrainedModel, *, entropy_gradient: bool = False, around: Around = nullcontext
) -> bool:
    """Let a causal model with TRL's fused head score labelled tokens only.

    Args:
        model: that TRL gave the head, without a PEFT wrapper.
        entropy_gradient: whether the trainer trains on the entropy, as GRPO may.
        around: entered for each pass; autocast, for a model that accelerate has prepared already.

    Returns:
        Whether the model had the head.
    """
    theirs = fused_settings(model)
    if theirs is None:
        return False
    before, settings = theirs
    how = Logits(
        settings["logit_scale"], settings["final_logit_softcapping"], settings["temperature"]
    )
    outputs = tuple(settings["outputs"])
    in_float32 = bool(settings.get("cast_lm_head_to_fp32"))

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        with around():
            if fused_lm_head and labels is not None and not in_float32:
                ours = labelled(self, labels, args, kwargs)
                if ours is not None:
                    return ours
            more: dict[str, Any] = {"fused_lm_head": True} if fused_lm_head else {}
            if labels is not None:
                more["labels"] = labels
            return before(self, *args, **more, **kwargs)

    def labelled(
        self: Any, labels: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> FusedCausalLMOutput | None:
        batch = _readable(self, args, kwargs)
        if batch is None:
            return None
        sharing, ids, mask = batch
        kept = labels[:, 1:] != -100  # (B, T - 1)
        states = sharing.states_at(ids, mask, nn.functional.pad(kept, (0, 1)))
        if states is None:
            with sharing.plainly():
                output = self.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            states = output.last_hidden_state[:, :-1][kept]
        found = score_states(
            self.get_output_embeddings(),
            states,
            labels[:, 1:][kept],
            how,
            outputs,
            entropy_gradient=entropy_gradient,
            vocabulary=self.config.get_text_config().vocab_size,
        )
        spread = {
            name: values.new_zeros(kept.shape).masked_scatter(kept, values)
            for name, values in vars(found).items()
            if values is not None
        }
        count = kwargs.get("num_items_in_batch")
        divisor = kept.sum().clamp(min=1) if count is None else count
        loss = -spread["log_probs"].sum() / divisor
        return FusedCausalLMOutput(loss=loss, label_mask=kept, **spread)

    model.forward = MethodType(forward, model)
    return True


def read_last_only(model: PreTrainedModel) -> bool:
    """Let a sequence classifier compute the state that its head reads, and no other.

    Returns:
        Whether it is a classifier of transformers' generic kind, whose pooling is known.
    """
    if not isinstance(model, GenericForSequenceClassification):
        return False
    before = _own(model)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = _readable(self, args, kwargs)
        padding = self.config.get_text_config().pad_token_id
        if batch is None or padding is None:
            return before(self, *args, **kwargs)
        sharing, ids, mask = batch
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = (columns * (ids != padding)).argmax(dim=1)  # transformers' pooling
        states = sharing.states_at(ids, mask, columns == last[:, None])
        if states is None:
            with sharing.plainly():
                return before(self, *args, **kwargs)
        return SequenceClassifierOutputWithPast(logits=self.score(states))

    model.forward = MethodType(forward, model)
    return True


def fused_settings(model: nn.Module) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """TRL's fused forward of a model and what it was set to; None: the model has none.

    A model that accelerate has prepared has that forward below one of accelerate's.
    """
    for name in ("forward", "_original_forward"):
        forward = getattr(vars(model).get(name), "__func__", None)
        if forward is None or not inspect.isfunction(forward):
            continue
        found = dict(inspect.getclosurevars(forward).nonlocals)
        if all(key in found for key in SETTINGS):
            return forward, found
    return None


def _readable(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[PrefixSharing, Tensor, Tensor] | None:
    """The backbone's sharing, ids and mask, of a call that asks for nothing else."""
    sharing = sharing_of(model.base_model)
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if sharing is None or args or not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    if not isinstance(mask, Tensor) or mask.shape != ids.shape or kwargs.get("use_cache"):
        return None
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        return None
    known = {"input_ids", "attention_mask"} | READ
    if any(v is not None and v is not False for k, v in kwargs.items() if k not in known):
        return None
    return sharing, ids, mask


def _own(model: nn.Module) -> Callable[..., Any]:
    """A model's forward as a function of the model, whoever put it there."""
    bound = vars(model).get("forward")
    if bound is None:
        return type(model).forward
    function = getattr(bound, "__func__", None)
    return function if function is not None else lambda _, *args, **kwargs: bound(*args, **kwargs)
