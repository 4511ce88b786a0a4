"""A guard with nothing to protect yet: of a first run, whose rows a later run replays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn


class Idle:
    """Does nothing, under the name of the guard that it stands for."""

    def __init__(self, name: str):
        self.name = name

    def begin(self, model: nn.Module) -> None:
        """Nothing."""

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """Zero."""
        return torch.zeros((), device=next(model.parameters()).device)

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Nothing."""

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Nothing."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
