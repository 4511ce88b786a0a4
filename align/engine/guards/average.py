"""Weight averaging: the result lies between weights, and forgets less than where it ended.

- EMA (Polyak & Juditsky 1992): mean <- decay * mean + (1 - decay) * theta after every step.
- WiSE-FT (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1):
  (1 - share) * theta_0 + share * theta, with theta_0 the start.

Nothing changes while it trains; `final` moves the weights once, before the model is saved. Averages
of several models' files (soups, TIES, DARE): `merge`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.weights import (
    Plain,
    Product,
    Weight,
    like_shards,
    refuse_others,
    trained_weights,
)
from align.errors import ConfigError, Problem


def interpolate(weights: dict[str, Weight], start: dict[str, Tensor], share: float) -> None:
    """Theta <- (1 - share) * theta_0 + share * theta, in place.

    LoRA's product starts at 0, so its factor B is multiplied by the share.

    Args:
        weights: what trained.
        start: theta_0 of the plain ones.
        share: how much of the training is kept, 0 to 1.
    """
    with torch.no_grad():
        for name, weight in weights.items():
            if isinstance(weight, Product):
                weight.b.mul_(share)
            else:
                now = weight.now().detach()
                now.lerp_(start[name].to(now), 1 - share)


def started(weights: dict[str, Weight], name: str) -> dict[str, Tensor]:
    """Copies of the plain weights that training starts from.

    Raises:
        ConfigError: an adapter does not start at 0, so that its start cannot be gone back to.
    """
    for weight in weights.values():
        if isinstance(weight, Product) and bool((weight.b != 0).any()):
            what = "goes back towards the start, and this adapter does not start at 0."
            raise ConfigError([Problem(f"guards: {name}", what, "use peft's default start.")])
    return {n: w.now().detach().clone() for n, w in weights.items() if isinstance(w, Plain)}


class Average:
    """What both have in common: no penalty, and a `final`."""

    name = "average"
    in_place = True

    def begin(self, model: nn.Module) -> None:
        """Copy the start."""
        raise NotImplementedError

    def final(self, model: nn.Module) -> None:
        """Move the weights to where they are saved."""
        raise NotImplementedError

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nothing."""
        return torch.zeros(())

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Nothing to do."""

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Nothing to do."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate."""


class EMA(Average):
    """The running mean of the weights."""

    name = "ema"

    def __init__(self, decay: float):
        """`decay`: of the mean in each step; 0.999 averages over about 1,000 steps."""
        self.decay = decay
        self.mean: dict[str, Tensor] = {}
        self.step = 0

    def begin(self, model: nn.Module) -> None:
        """Start the mean at the start's weights; LoRA's factors are averaged as they are."""
        refuse_others(model, self.name)
        self.mean = {n: t.detach().clone() for n, t in _tensors(trained_weights(model)).items()}

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Take the new weights in; in short runs the decay warms up, (1 + n) / (10 + n)."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, (value, weight) in self._held(model).items():
                self.mean[name] = (
                    like_shards(self.mean[name], weight) if weight else self.mean[name]
                )
                self.mean[name].lerp_(value.detach().to(self.mean[name]), 1 - decay)

    def final(self, model: nn.Module) -> None:
        """Put the mean in the weights' place."""
        with torch.no_grad():
            for name, (value, _) in self._held(model).items():
                value.detach().copy_(self.mean[name])

    def state_dict(self) -> dict[str, Any]:
        """The mean, on the CPU."""
        return {"mean": {n: v.cpu() for n, v in self.mean.items()}, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.step = int(state["step"])
        self.mean = {
            n: v.to(self.mean[n].device) if n in self.mean else v for n, v in state["mean"].items()
        }

    def _held(self, model: nn.Module) -> dict[str, tuple[Tensor, Weight | None]]:
        weights = trained_weights(model)
        plain = {n: w for n, w in weights.items() if isinstance(w, Plain)}
        return {n: (t, plain.get(n)) for n, t in _tensors(weights).items()}


class WiseFT(Average):
    """Part of the way back to the start."""

    name = "wise_ft"

    def __init__(self, share: float = 0.5):
        """`share`: of the training that is kept."""
        self.share = share
        self.start: dict[str, Tensor] = {}

    def begin(self, model: nn.Module) -> None:
        """Copy the start; see `started`."""
        refuse_others(model, self.name)
        self.start = started(trained_weights(model), self.name)

    def final(self, model: nn.Module) -> None:
        """Go back."""
        weights = trained_weights(model)
        for name, weight in weights.items():
            if name in self.start:
                self.start[name] = like_shards(self.start[name], weight)
        interpolate(weights, self.start, self.share)

    def state_dict(self) -> dict[str, Any]:
        """The start, on the CPU."""
        return {"start": {n: v.cpu() for n, v in self.start.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.start = dict(state["start"])


def _tensors(weights: dict[str, Weight]) -> dict[str, Tensor]:
    """What trains: weights, and LoRA's factors."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, Product):
            found[f"{name}/A"], found[f"{name}/B"] = weight.a, weight.b
        else:
            found[name] = weight.now()
    return found
