"""The guard protocol and the mixin that brings guards to every trainer.

A guard returns a value and never mutates its trainer. The mixin overrides `compute_loss` and adds
one callback, nothing else, so that it sits on transformers', TRL's and our own trainers alike.

Accumulation: a penalty belongs to the optimizer step, not to a micro-batch, so it is computed once,
at the micro-batch that synchronises. Trainers that leave the scaling to transformers
(`loss_is_scaled_for_ga` false) have their loss divided by the number of micro-batches afterwards;
there the penalty is multiplied by that number first. Otherwise accumulation 4 would apply it four
times, or a quarter of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Batch = dict[str, Tensor]


@runtime_checkable
class Guard(Protocol):
    """What keeps a model from forgetting."""

    name: str

    def begin(self, model: nn.Module) -> None:
        """Anchor weights or freeze a teacher, before the first step."""

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradient, already weighted, for one optimizer step."""

    def before_step(self, model: nn.Module) -> None:
        """Gradients are final here."""

    def after_step(self, model: nn.Module) -> None:
        """Weights have moved."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: Any) -> None:
        """Consolidate what was learnt (Fisher, buffer) for the next task."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""


class GuardCallback(TrainerCallback):
    """Tells guards about the optimizer's steps."""

    def __init__(self, guards: Sequence[Guard]):
        self.guards = guards

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Gradients are final."""
        assert model is not None
        for guard in self.guards:
            guard.before_step(model)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Weights have moved."""
        assert model is not None
        for guard in self.guards:
            guard.after_step(model)


class GuardMixin:
    """Adds guards to a transformers Trainer: `class SFTTrainer(GuardMixin, trl.SFTTrainer)`."""

    def __init__(self, *args: Any, guards: Sequence[Guard] = (), **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.guards = list(guards)
        self.guard_metrics: dict[str, float] = {}
        if self.guards:
            self.add_callback(GuardCallback(self.guards))  # type: ignore[attr-defined]
            for guard in self.guards:
                guard.begin(self.model)  # type: ignore[attr-defined]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The trainer's loss plus the guards' penalties, once per optimizer step."""
        # Read before the trainer's own loss: TRL's pop some inputs.
        batch = dict(inputs)
        result = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if not self.guards or not model.training or not self._synchronises():
            return result
        penalty = self._penalty(model, batch) * self._undo_division(num_items_in_batch)
        if return_outputs:
            loss, outputs = result
            return loss + penalty, outputs
        return result + penalty

    def _synchronises(self) -> bool:
        return bool(self.accelerator.gradient_state.sync_gradients)  # type: ignore[attr-defined]

    def _undo_division(self, num_items_in_batch: Tensor | int | None) -> int:
        """The number of micro-batches where transformers will divide the loss by it, else 1."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (
                getattr(self, "model_accepts_loss_kwargs", False) and num_items_in_batch is not None
            ) or getattr(self, "compute_loss_func", None) is not None
        if scaled:
            return 1
        return int(getattr(self, "current_gradient_accumulation_steps", 1))

    def _penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        total: Tensor | None = None
        self.guard_metrics.clear()
        for guard in self.guards:
            value = guard.penalty(model, batch)
            key = f"guard/{guard.name}"  # guards of one kind are logged as their sum
            self.guard_metrics[key] = self.guard_metrics.get(key, 0.0) + float(value.detach())
            total = value if total is None else total + value
        assert total is not None
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the guards' penalties to the logged metrics."""
        if self.model.training:  # type: ignore[attr-defined]
            logs |= self.guard_metrics
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def unwrap(model: nn.Module) -> nn.Module:
    """The module under DistributedDataParallel, so that parameter names match everywhere."""
    inner = getattr(model, "module", model)
    return inner if isinstance(inner, nn.Module) else model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that train, by name."""
    return {n: p for n, p in unwrap(model).named_parameters() if p.requires_grad}


def refuse_sharded(name: str) -> None:
    """Weight-space guards need whole weights on every rank.

    Raises:
        ConfigError: under ZeRO-3, where each rank holds a shard.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    from align.errors import ConfigError, Problem

    if is_deepspeed_zero3_enabled():
        raise ConfigError(
            [
                Problem(
                    f"guards: {name}",
                    "does not work under ZeRO-3, where no rank holds whole weights.",
                    "use ZeRO-2, or a guard on outputs (replay, distillation).",
                )
            ]
        )


def finite(values: Iterable[Tensor]) -> bool:
    """Whether every tensor is finite."""
    return all(bool(torch.isfinite(value).all()) for value in values)
