"""Parameter isolation: the weights that matter most for earlier data do not move at all.

A hard form of EWC, in the manner of PackNet (Mallya & Lazebnik 2018, "PackNet"), with the Fisher
information in the place of magnitudes: the `share` of all numbers with the greatest importance is
frozen, exactly, whatever optimizer, momentum or weight decay follows. To freeze whole parameters by
name, set `model.freeze`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.importance import Named
from align.engine.guards.weights import (
    Plain,
    Weight,
    like_shards,
    refuse_others,
    trained_weights,
)
from align.errors import ConfigError, ModelError, Problem

LOOKED_AT = 1 << 22  # numbers that the threshold is read from


def most_important(importance: Named, share: float, seed: int = 0) -> dict[str, Tensor]:
    """Masks, True on about the `share` of all numbers that matter most; none without importance.

    The threshold is a quantile over all parameters together, of a sample where there are many.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(value.numel() for value in importance.values())
    rate = min(1.0, LOOKED_AT / max(total, 1))
    parts = []
    for value in importance.values():
        flat = value.detach().float().cpu().reshape(-1)
        if rate < 1:
            flat = flat[
                torch.randint(len(flat), (max(1, int(rate * len(flat))),), generator=generator)
            ]
        parts.append(flat)
    looked = torch.cat(parts).sort(descending=True).values
    place = min(len(looked) - 1, max(0, round(share * len(looked)) - 1))
    least = float(looked[place])
    return {name: (value >= least) & (value > 0) for name, value in importance.items()}


class Isolate:
    """Freezes single numbers."""

    name = "isolate"
    in_place = True

    def __init__(self, importance: Named, share: float):
        """Set up.

        Args:
            importance: of each number, by parameter (`fisher.estimate_fisher`).
            share: of all numbers, that is frozen.
        """
        self.masks: dict[str, Tensor] = most_important(importance, share)
        self.frozen: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Keep the weights as they are.

        Raises:
            ConfigError: with LoRA, or see `refuse_others`.
            ModelError: the importances are another model's.
        """
        refuse_others(model, self.name)
        weights = trained_weights(model)
        if not all(isinstance(w, Plain) for w in weights.values()):
            what = "freezes numbers, and LoRA's factors are not those of the model."
            raise ConfigError([Problem("guards: isolate", what, "use ewc, mas or l2sp.")])
        if not self.masks.keys() & weights.keys() or any(
            self.masks[n].shape != w.shape for n, w in weights.items() if n in self.masks
        ):
            raise ModelError(
                "isolate: the importances do not belong to this model. Fix: estimate them on the "
                "model that training starts from."
            )
        self.masks = {n: m for n, m in self.masks.items() if n in weights}
        self.frozen = {n: weights[n].now().detach().clone() for n in self.masks}

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nothing: the share of numbers that are frozen, for the log."""
        total = sum(mask.numel() for mask in self.masks.values())
        return torch.tensor(sum(int(m.sum()) for m in self.masks.values()) / max(total, 1))

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Take the gradient of frozen numbers away, so that clipping does not count it."""
        for weight, mask, _ in self._held(model):
            gradient = weight.gradient() if isinstance(weight, Plain) else None
            if gradient is not None:
                gradient.masked_fill_(mask, 0.0)

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Put back what momentum or weight decay moved."""
        with torch.no_grad():
            for weight, mask, kept in self._held(model):
                now = weight.now().detach()
                now.copy_(torch.where(mask, kept, now))

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate."""

    def state_dict(self) -> dict[str, Any]:
        """Masks and frozen weights, on the CPU."""
        return {
            "masks": {n: m.cpu() for n, m in self.masks.items()},
            "frozen": {n: v.cpu() for n, v in self.frozen.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.masks = {n: m.clone() for n, m in state["masks"].items()}
        self.frozen = {n: v.clone() for n, v in state["frozen"].items()}

    def _held(self, model: nn.Module) -> list[tuple[Weight, Tensor, Tensor]]:
        weights: Mapping[str, Weight] = trained_weights(model)
        found = []
        for name in self.masks:
            weight = weights[name]
            self.masks[name] = like_shards(self.masks[name], weight)
            self.frozen[name] = like_shards(self.frozen[name], weight)
            found.append((weight, self.masks[name], self.frozen[name]))
        return found
