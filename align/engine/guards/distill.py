"""Distillation: what the model said before training is held, on old data or on new.

strength * T^2 * mean over positions of KL(p_before || p_now) at temperature T. On the new task's
own inputs that is learning without forgetting (Li & Hoiem 2016, "Learning without Forgetting",
equations 2-4); on old data it is replay with soft labels; `reverse` is KL(p_now || p_before), the
penalty of RLHF, here exact over the vocabulary instead of on sampled tokens.

On old data the answers of before are computed once and kept, all logits or the k best with the rest
as one further class, so that no teacher stays in memory. On new data the teacher is a frozen copy,
or the model without its adapters. It needs outputs only: every way of sharding works.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.fisher import IGNORED, LogitsFn, evaluating
from align.engine.guards.replay import Collate, Stored, collate
from align.engine.guards.weights import inner_module
from align.errors import ModelError


def divergence(
    before: Tensor, now: Tensor, temperature: float = 1.0, reverse: bool = False
) -> Tensor:
    """T^2 * KL(before || now) of each position, or T^2 * KL(now || before).

    T^2 keeps the gradient's size from falling with the temperature (Hinton et al. 2015, section 2).

    Args:
        before: logits (N, C).
        now: logits (N, C), with gradient.
        temperature: T.
        reverse: which way.

    Returns:
        (N,).
    """
    p = log_softmax(before.float() / temperature, dim=-1)
    q = log_softmax(now.float() / temperature, dim=-1)
    if reverse:
        p, q = q, p
    return temperature**2 * (p.exp() * (p - q)).sum(dim=-1)


def divergence_of_best(values: Tensor, indices: Tensor, now: Tensor) -> Tensor:
    """KL(before || now) over the k best classes of before and all others as one.

    Merging classes can only lower it: a bound of the whole KL from below.

    Args:
        values: (N, k) log-probabilities of before.
        indices: (N, k) their classes.
        now: logits (N, C), with gradient.

    Returns:
        (N,).
    """
    q = log_softmax(now.float(), dim=-1).gather(-1, indices)
    named = (values.exp() * (values - q)).sum(dim=-1)
    tiny = torch.finfo(torch.float32).tiny
    rest_before = (1 - values.exp().sum(dim=-1)).clamp(min=tiny)
    rest_now = (1 - q.exp().sum(dim=-1)).clamp(min=1e-7)
    return named + rest_before * (rest_before.log() - rest_now.log())


class Distill:
    """Holds outputs where they were when training began."""

    name = "distill"

    def __init__(
        self,
        logits_fn: LogitsFn,
        strength: float,
        examples: Iterable[Batch] | None = None,
        *,
        temperature: float = 1.0,
        reverse: bool = False,
        top_k: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
        read_batch: Callable[[Batch], Batch] | None = None,
        collate_fn: Collate | None = None,
    ):
        """Set up.

        Args:
            logits_fn: (model, batch) -> logits (N, C) and labels (N,), -100 where none is held.
            strength: weight of the mean divergence.
            examples: old data, batches of *one* example each; None: the new task's own batches.
            temperature: T of `divergence`.
            reverse: KL(now || before).
            top_k: keep only the k likeliest classes of old data; None: all.
            batch_size: old examples an optimizer step.
            seed: of their order.
            read_batch: what a trainer's batch is for `logits_fn`; None: `language_batch`.
            collate_fn: several old examples as one batch; None: `replay.collate`. `logits_fn` has
                to keep the order of examples.

        Raises:
            ModelError: there are no examples, or `top_k` with a temperature or reversed.
        """
        if top_k is not None and (temperature != 1.0 or reverse):
            raise ModelError("distill: top_k goes with temperature 1 and the forward KL alone.")
        self.logits_fn, self.strength = logits_fn, strength
        self.stored = None if examples is None else Stored(examples, seed=seed)
        self.temperature, self.reverse, self.top_k = temperature, reverse, top_k
        self.batch_size = batch_size
        self.read_batch, self.collate = read_batch or language_batch, collate_fn or collate
        self.teacher: nn.Module | None = None
        self.answers: list[tuple[Tensor, Tensor | None]] = []

    def begin(self, model: nn.Module) -> None:
        """Ask the model what it says now, of all old data, or copy it."""
        if self.stored is None:
            if not hasattr(inner_module(model), "disable_adapter"):
                self.teacher = copy.deepcopy(inner_module(model)).requires_grad_(False).eval()
            return
        device = next(model.parameters()).device
        self.answers = []
        with torch.no_grad(), evaluating(model):
            for number, example in enumerate(self.stored.examples):
                logits = self._kept(model, self.collate([example], device))[0].float().cpu()
                best = None
                if self.top_k is not None:
                    logits, best = log_softmax(logits, dim=-1).topk(
                        min(self.top_k, logits.shape[-1]), dim=-1
                    )
                self.answers.append((logits, best))
                example["number"] = torch.tensor(number)

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The strength times the mean divergence over positions."""
        device = next(model.parameters()).device
        if self.stored is None:
            return self.strength * self._on_new(model, on(self.read_batch(batch), device)).mean()
        drawn = self.stored.draw(self.batch_size)
        answers = [self.answers[int(example["number"])] for example in drawn]
        before = torch.cat([values for values, _ in answers]).to(device)
        now, _ = self._kept(model, self.collate(drawn, device))
        if self.top_k is None:
            each = divergence(before, now, self.temperature, self.reverse)
        else:
            best = torch.cat([indices for _, indices in answers if indices is not None])
            each = divergence_of_best(before, best.to(device), now)
        return self.strength * each.mean()

    def _on_new(self, model: nn.Module, batch: Batch) -> Tensor:
        teacher = self.teacher
        if teacher is None:
            quiet: Any = inner_module(model).disable_adapter()  # type: ignore[operator]
        else:
            teacher, quiet = teacher.to(next(model.parameters()).device), nullcontext()
        with torch.no_grad(), quiet:
            before, _ = self._kept(teacher or model, batch)
        now, _ = self._kept(model, batch)
        return divergence(before, now, self.temperature, self.reverse)

    def _kept(self, model: nn.Module, example: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.logits_fn(model, example)
        held = labels != IGNORED
        return logits[held], labels[held]

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Nothing to do."""

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Nothing to do."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate: a next task's teacher is the model itself."""

    def state_dict(self) -> dict[str, Any]:
        """How far old data was read; what was said of it is asked again of the start model."""
        position = 0 if self.stored is None else self.stored.position
        return {"position": position, "strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        if self.stored is not None:
            self.stored.position = state["position"]
        self.strength = float(state["strength"])


def on(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def language_batch(batch: Batch) -> Batch:
    """The tokens that a trainer's batch holds, every attended one labelled.

    Reads what SFT, DPO and PPO call `input_ids`, and GRPO `prompt_ids` and `completion_ids`.

    Raises:
        ModelError: the batch holds neither.
    """
    if "prompt_ids" in batch:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    elif "input_ids" in batch:
        ids = batch["input_ids"]
        attention = batch.get("attention_mask", torch.ones_like(ids))
    else:
        raise ModelError(
            f"distill: a batch of {', '.join(sorted(batch))} holds no tokens. Fix: set `data`."
        )
    attention = attention.long()
    labels = ids.masked_fill(attention == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}
