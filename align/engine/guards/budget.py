"""A guard whose strength follows a retention budget: "lose at most 1% on X".

X is measured before training and every few steps: the mean loss per labelled token. Of the loss
allowed, (1 + allowed) * before, the share used moves the strength by dual ascent on its logarithm,

    log strength <- log strength + rate * clip(used - target, -1, 1)

so that it grows while more than the target share is used, and falls while there is room for the new
task. With `enforce` the weights go back towards the start in the end, as far as the budget asks
(WiSE-FT, by bisection): the budget is then met whatever the guard achieved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.average import interpolate, started
from align.engine.guards.base import Batch, Guard, LossFn
from align.engine.guards.fisher import evaluating
from align.engine.guards.replay import Collate, Size, collate, labelled_tokens
from align.engine.guards.weights import Plain, like_shards, trained_weights
from align.errors import ModelError

BISECTIONS = 6


class Budget:
    """Another guard, with its strength moved; all else is that guard's."""

    def __init__(
        self,
        guard: Any,
        examples: Iterable[Batch],
        loss_fn: LossFn,
        *,
        allowed: float = 0.01,
        every: int = 50,
        rate: float = 0.5,
        target: float = 0.8,
        largest: float = 1e6,
        enforce: bool = False,
        batch_size: int = 8,
        collate_fn: Collate | None = None,
        size_fn: Size | None = None,
    ):
        """Set up.

        Args:
            guard: one with a `strength`.
            examples: what must not be lost, batches of *one* example each.
            loss_fn: negative log-likelihood of a batch, summed over what it labels.
            allowed: relative growth of its mean loss; 0.01 is 1%.
            every: optimizer steps between measurements.
            rate: of the ascent.
            target: share of the budget that the ascent aims at.
            largest: times the strength at the start, up and down.
            enforce: go back towards the start in the end, where the budget is overdrawn.
            batch_size: examples measured at once.
            collate_fn: as in `Replay`.
            size_fn: as in `Replay`.

        Raises:
            ModelError: there are no examples.
        """
        self.guard: Guard = guard
        self.name: str = guard.name
        self.examples = [{k: v.cpu() for k, v in example.items()} for example in examples]
        if not self.examples:
            raise ModelError("a budget needs at least one example; budget.data gave none.")
        self.loss_fn, self.allowed, self.every, self.rate = loss_fn, allowed, every, rate
        self.target, self.largest, self.enforce = target, largest, enforce
        self.batch_size = batch_size
        self.collate, self.size = collate_fn or collate, size_fn or labelled_tokens
        self.first = float(guard.strength)
        self.step, self.before, self.now = 0, math.nan, math.nan
        self.start: dict[str, Tensor] = {}

    @property
    def place(self) -> int:
        """The guard's."""
        return getattr(self.guard, "place", 2)

    @property
    def in_place(self) -> bool:
        """The guard's."""
        return getattr(self.guard, "in_place", False)

    @in_place.setter
    def in_place(self, value: bool) -> None:
        if hasattr(self.guard, "in_place"):
            self.guard.in_place = value

    @property
    def strength(self) -> float:
        """The guard's, as it is now."""
        return float(self.guard.strength)  # type: ignore[attr-defined]

    @property
    def used(self) -> float:
        """Share of the budget that is used; 1 is all of it."""
        return (self.now - self.before) / (self.allowed * abs(self.before))

    @property
    def metrics(self) -> dict[str, float]:
        """For the log."""
        return {"guard/strength": self.strength, "guard/budget_used": self.used}

    def begin(self, model: nn.Module) -> None:
        """Measure before anything is trained, and begin the guard."""
        self.before = self.now = self.measure(model)
        if self.enforce:
            self.start = started(trained_weights(model), "budget")
        self.guard.begin(model)

    def measure(self, model: nn.Module) -> float:
        """The mean loss per labelled token of what must not be lost."""
        device = next(model.parameters()).device
        total, count = 0.0, 0.0
        with torch.no_grad(), evaluating(model):
            for at in range(0, len(self.examples), self.batch_size):
                batch = self.collate(self.examples[at : at + self.batch_size], device)
                total += float(self.loss_fn(model, batch))
                count += float(self.size(batch))
        return total / max(count, 1.0)

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The guard's."""
        return self.guard.penalty(model, batch)

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """The guard's."""
        self.guard.before_step(model, scale)

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """The guard's; every so often measure, and move the strength."""
        self.guard.after_step(model, optimizer)
        self.step += 1
        if self.step % self.every:
            return
        self.now = self.measure(getattr(model, "module", model))
        move = self.rate * min(1.0, max(-1.0, self.used - self.target))
        bounds = self.first / self.largest, self.first * self.largest
        self.guard.strength = min(bounds[1], max(bounds[0], self.strength * math.exp(move)))  # type: ignore[attr-defined]

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """The guard's."""
        self.guard.finish(model, batches, loss_fn)

    def final(self, model: nn.Module) -> None:
        """Measure once more and, with `enforce`, go back as far as the budget asks."""
        self.now = self.measure(model)
        if not self.enforce or self.used <= 1:
            return
        weights = trained_weights(model)
        start = {n: like_shards(v, weights[n]) for n, v in self.start.items()}
        ended = {
            n: (w.now() if isinstance(w, Plain) else w.b).detach().clone()
            for n, w in weights.items()
        }

        def at(share: float) -> None:
            with torch.no_grad():
                for name, weight in weights.items():
                    kept = weight.now() if isinstance(weight, Plain) else weight.b
                    kept.detach().copy_(ended[name])
            interpolate(weights, start, share)
            self.now = self.measure(model)

        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            at(middle)
            low, high = (middle, high) if self.used <= 1 else (low, middle)
        at(low)

    def state_dict(self) -> dict[str, Any]:
        """The guard's, and what was measured."""
        return {
            "guard": self.guard.state_dict(),
            "step": self.step,
            "before": self.before,
            "now": self.now,
            "start": {n: v.cpu() for n, v in self.start.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.guard.load_state_dict(state["guard"])
        self.step, self.before, self.now = int(state["step"]), state["before"], state["now"]
        self.start = dict(state["start"])
