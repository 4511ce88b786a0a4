"""Gradual unfreezing: Howard & Ruder (2018), "Universal language model fine-tuning", section 3.3.

The last layers train first, and every few steps one group more, so that what lies below is moved
only once what is above it has settled. A group that waits gets no gradient at all: the optimizer
passes it over, weight decay and momentum included. A plain schedule would change `requires_grad`,
which optimizers and DistributedDataParallel read once, at the start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.weights import inner_module, plain_name

LAYER = re.compile(r"\.(?:layers|h|blocks|block|layer)\.(\d+)\.")


def layer_groups(names: Sequence[str], count: int) -> list[list[str]]:
    """Names of parameters in groups, the top of the network first.

    What lies in no layer comes first (head and last norm) where its name is after all layers', and
    last (embeddings) where it is before them.

    Args:
        names: in the model's order.
        count: how many groups of layers, as even as can be.
    """
    layers = {n: int(m.group(1)) for n in names if (m := LAYER.search(f".{n}"))}
    if not layers:
        return [list(reversed(names))]
    numbers = sorted(set(layers.values()), reverse=True)
    first = min(i for i, n in enumerate(names) if n in layers)
    below = [n for i, n in enumerate(names) if n not in layers and i < first]
    above = [n for i, n in enumerate(names) if n not in layers and i > first]
    count = min(count, len(numbers))
    groups: list[list[str]] = []
    for place in range(count):
        start, stop = place * len(numbers) // count, (place + 1) * len(numbers) // count
        here = set(numbers[start:stop])
        groups.append([n for n in names if layers.get(n) in here])
    groups[0] = above + groups[0]
    groups[-1] = groups[-1] + below
    return groups


class Unfreeze:
    """Lets groups of layers train one after another, from the top."""

    name = "unfreeze"
    in_place = True
    place = 1

    def __init__(self, every: int, groups: int = 4):
        """Set up.

        Args:
            every: optimizer steps after which one group more trains.
            groups: how many there are.
        """
        self.every, self.count = every, groups
        self.step = 0
        self.groups: list[list[str]] = []

    def begin(self, model: nn.Module) -> None:
        """Find the groups."""
        names = [n for n, p in inner_module(model).named_parameters() if p.requires_grad]
        self.groups = layer_groups([plain_name(n) for n in names], self.count)

    def training(self) -> set[str]:
        """Names of the parameters that train in this step."""
        count = 1 + self.step // self.every
        return {name for group in self.groups[:count] for name in group}

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """Nothing: how many groups train, for the log."""
        return torch.tensor(float(min(len(self.groups), 1 + self.step // self.every)))

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Take the gradient of waiting groups away."""
        trains = self.training()
        for name, parameter in inner_module(model).named_parameters():
            if plain_name(name) not in trains:
                parameter.grad = None

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Count the step."""
        self.step += 1

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate."""

    def state_dict(self) -> dict[str, Any]:
        """How many steps were made."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.step = int(state["step"])
