"""Losses and gradients that are NaN or infinite: the run stops, or skips them and says so.

`tracking.non_finite` chooses. A skipped batch trains nothing, and a training of which nothing but
skipped steps is left has ended, whatever it was told: `SkipLimit`. Leaves out rewards
(`align.ppo.rewards`) and weights that are read (`align.engine.models.check_finite`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import NonFiniteError

IN_A_ROW = 5  # skipped steps that end a run; of a run of less than ten steps, half of them


class FiniteMixin:
    """Stops, or skips the batch, when a loss is NaN or infinite; the batch is saved either way.

    Set `finite_folder` (where batches go) and `non_finite` ("stop" or "skip") after construction.
    """

    finite_folder: Path | None = None
    non_finite: str = "stop"
    batches: int = 0  # this process's, trained on or skipped
    skipped_batches: int = 0  # of them
    _logged: tuple[int, int] = (0, 0)  # both, when a loss was last logged

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's loss, checked.

        Raises:
            NonFiniteError: it is NaN or infinite, and `non_finite` is "stop".
        """
        batch = dict(inputs)
        result = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        loss = result[0] if isinstance(result, tuple) else result
        self.batches += model.training
        if not model.training or bool(torch.isfinite(loss)):
            return result
        step = self.state.global_step  # type: ignore[attr-defined]
        saved = self._save_batch(batch, step)
        if self.non_finite == "stop":
            raise NonFiniteError(
                f"the loss is {float(loss.detach())} at step {step}; the batch was saved to "
                f"{saved}. Fix: lower trainer.learning_rate, set trainer.max_grad_norm, look at "
                "that batch, or set tracking.non_finite=skip."
            )
        self.skipped_batches += 1
        zero = sum((p.sum() * 0.0 for p in model.parameters() if p.requires_grad), torch.zeros(()))
        return (zero, *result[1:]) if isinstance(result, tuple) else zero

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The logged loss is the mean of what was trained on; the zeros of the rest are no loss."""
        if "loss" in logs:
            batches = self.batches - self._logged[0]
            skipped = self.skipped_batches - self._logged[1]
            self._logged = self.batches, self.skipped_batches
            if skipped:
                logs = {**logs, "skipped_batches": skipped}
                loss = logs.pop("loss")
                if batches > skipped:
                    logs["loss"] = loss * batches / (batches - skipped)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_batch(self, batch: dict[str, Any], step: int) -> Path | None:
        if self.finite_folder is None:
            return None
        self.finite_folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu() for k, v in batch.items() if isinstance(v, Tensor)}
        file = self.finite_folder / f"non-finite-step-{step}.pt"
        torch.save(tensors, file)
        return file


class GradientCheck(TrainerCallback):
    """Stops, or clears the gradients, when they are NaN or infinite just before a step."""

    def __init__(self, non_finite: str = "stop"):
        self.non_finite = non_finite
        self.cleared = 0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Check all gradients with one reduction."""
        assert model is not None
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients or bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())):
            return
        if self.non_finite == "stop":
            raise NonFiniteError(
                f"a gradient is NaN or infinite at step {state.global_step}. Fix: lower "
                "trainer.learning_rate, use bf16 instead of fp16, or set tracking.non_finite=skip."
            )
        self.cleared += 1
        for gradient in gradients:
            gradient.zero_()


class SkipLimit(TrainerCallback):
    """Ends a run whose steps are skipped one after another: its weights can no longer be used.

    A step is skipped when every batch of it was, or when its gradients were cleared. With fp16 the
    latter is left out: its loss scaler lets gradients overflow while it looks for its scale.
    """

    def __init__(self, trainer: FiniteMixin, gradients: GradientCheck):
        self.trainer = trainer
        self.gradients = gradients
        self.in_a_row = 0
        self.seen = (0, 0, 0)  # batches, skipped batches, cleared gradients

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count.

        Raises:
            NonFiniteError: too many steps were skipped in a row.
        """
        before, self.seen = self.seen, self._counts()
        batches, skipped, cleared = (a - b for a, b in zip(self.seen, before, strict=True))
        lost = 0 < batches == skipped or (cleared > 0 and not args.fp16)
        self.in_a_row = self.in_a_row + 1 if lost else 0
        if self.in_a_row < min(IN_A_ROW, (state.max_steps + 1) // 2):
            return
        good = state.global_step - self.in_a_row
        raise NonFiniteError(
            f"the loss or the gradients were NaN or infinite in all of the last {self.in_a_row} "
            f"steps, which were skipped: what step {good} left can no longer be trained. What was "
            "written is kept; no model was saved. Fix: start another run with a lower "
            "trainer.learning_rate or with trainer.max_grad_norm; a checkpoint from before step "
            f"{good} will do as its model.path."
        )

    def _counts(self) -> tuple[int, int, int]:
        return self.trainer.batches, self.trainer.skipped_batches, self.gradients.cleared
