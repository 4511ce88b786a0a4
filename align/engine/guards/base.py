"""The guard protocol and the mixin that brings guards to every trainer.

A guard returns a value and never mutates its trainer. The mixin overrides `compute_loss` and
`training_step` and adds one callback, nothing else, so that it sits on transformers', TRL's and our
own trainers alike.

Accumulation: a penalty belongs to the optimizer step, not to a micro-batch, so it is computed once,
at the micro-batch that synchronises. Trainers that leave the scaling to transformers
(`loss_is_scaled_for_ga` false) have their loss divided by the number of micro-batches afterwards;
there the penalty is multiplied by that number first. Otherwise accumulation 4 would apply it four
times, or a quarter of it. A guard on weights adds its gradient in place instead, once gradients are
whole and before they are clipped; under DeepSpeed, whose engine steps inside its backward, its
penalty is in the loss like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Batch = dict[str, Tensor]
LossFn = Callable[[nn.Module, Batch], Tensor]  # a scalar: summed over the tokens of a batch


@runtime_checkable
class Guard(Protocol):
    """What keeps a model from forgetting."""

    name: str

    def begin(self, model: nn.Module) -> None:
        """Anchor weights or freeze a teacher, before the first step."""

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """A scalar with gradient, already weighted, for one optimizer step."""

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Gradients are whole, times `scale`, and not yet clipped."""

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Weights have moved."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Consolidate what was learnt (Fisher, buffer) for the next task."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""


def in_turn(guards: Sequence[Guard]) -> list[Guard]:
    """Guards in the order of `place`: 0 reads the task's gradient, 1 turns it, 2 adds to it."""
    return sorted(guards, key=lambda guard: getattr(guard, "place", 2))


class GuardCallback(TrainerCallback):
    """Tells guards when the optimizer has stepped."""

    def __init__(self, guards: Sequence[Guard]):
        self.guards = guards

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Weights have moved, unless float16's gradients overflowed and the step was skipped."""
        assert model is not None
        if getattr(optimizer, "step_was_skipped", False):
            return
        for guard in self.guards:
            guard.after_step(model, optimizer)


class GuardMixin:
    """Adds guards to a transformers Trainer: `class SFTTrainer(GuardMixin, trl.SFTTrainer)`."""

    def __init__(self, *args: Any, guards: Sequence[Guard] = (), **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.guards = list(guards)
        self.guard_metrics: dict[str, float] = {}
        if not self.guards:
            return
        self.add_callback(GuardCallback(self.guards))  # type: ignore[attr-defined]
        for guard in self.guards:
            if hasattr(guard, "in_place") and not self._engine_steps():
                guard.in_place = True
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
        penalty = self._penalty(model, batch)
        if penalty is None:
            return result
        penalty = penalty * self._undo_division(num_items_in_batch)
        if return_outputs:
            loss, outputs = result
            return loss + penalty, outputs
        return result + penalty

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward, then what guards add to whole gradients."""
        if self.guards and self._engine_steps():
            self._before_engine_steps()
        loss: Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        if self.guards and self._synchronises() and not self._engine_steps():
            scaler = getattr(self.accelerator, "scaler", None)  # type: ignore[attr-defined]
            scale = float(scaler.get_scale()) if scaler is not None else 1.0
            for guard in in_turn(self.guards):
                guard.before_step(model, scale)
        return loss

    def _synchronises(self) -> bool:
        return bool(self.accelerator.gradient_state.sync_gradients)  # type: ignore[attr-defined]

    def _engine_steps(self) -> bool:
        """Whether DeepSpeed's engine steps, inside what accelerate calls a backward."""
        return bool(getattr(self, "is_deepspeed_enabled", False))

    def _before_engine_steps(self) -> None:
        """Have guards called between the engine's backward and its step."""
        engine = getattr(self, "deepspeed", None)
        if engine is None or hasattr(engine, "align_step"):
            return
        step = engine.align_step = engine.step

        @wraps(step)
        def guarded_step(*args: Any, **kwargs: Any) -> Any:
            if self._synchronises():
                scale = float(getattr(engine.optimizer, "loss_scale", 1.0))  # float16's
                for guard in in_turn(self.guards):
                    guard.before_step(engine, scale)
            return step(*args, **kwargs)

        engine.step = guarded_step

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

    def _penalty(self, model: nn.Module, batch: Batch) -> Tensor | None:
        total: Tensor | None = None
        logs = self._will_log()
        self.guard_metrics.clear()
        for guard in self.guards:
            in_place = getattr(guard, "in_place", False)
            if in_place and not logs:
                continue  # its gradient comes later; the value is another pass over the weights
            value = guard.penalty(model, batch)
            key = f"guard/{guard.name}"  # guards of one kind are logged as their sum
            self.guard_metrics[key] = self.guard_metrics.get(key, 0.0) + float(value.detach())
            self.guard_metrics |= getattr(guard, "metrics", {})
            if not in_place:
                total = value if total is None else total + value
        return total

    def _will_log(self) -> bool:
        """Whether metrics are logged after this step."""
        args, state = getattr(self, "args", None), getattr(self, "state", None)
        if args is None or state is None or args.logging_strategy != "steps":
            return True
        step = state.global_step + 1
        first = step == 1 and args.logging_first_step
        return bool(first or step % max(1, int(state.logging_steps or 1)) == 0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the guards' penalties to the logged metrics."""
        if self.model.training:  # type: ignore[attr-defined]
            logs |= self.guard_metrics
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
