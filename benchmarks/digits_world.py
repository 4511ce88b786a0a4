"""The tasks of `benchmarks.digits`, its network and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """One task's digits: x (N, 64) in 0..1, y (N,), and the classes that compete (10,)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    allowed: Tensor

    def batch(self, rows: Tensor) -> Batch:
        """Some training rows."""
        return {"x": self.x[rows], "y": self.y[rows], "allowed": self.allowed.expand(len(rows), -1)}

    def examples(self) -> list[Batch]:
        """All training rows, one a batch."""
        return [self.batch(torch.tensor([row])) for row in range(len(self.x))]


def worlds(name: str, seed: int) -> list[Task]:
    """The five tasks of a setting."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=seed)
    train_x, test_x = (torch.tensor(np.asarray(p), dtype=torch.float32) for p in parts[:2])
    train_y, test_y = (torch.tensor(np.asarray(p)) for p in parts[2:])
    everything = torch.ones(10, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    if name == "permuted":
        orders = [torch.arange(64)] + [torch.randperm(64, generator=generator) for _ in range(4)]
        return [Task(train_x[:, o], train_y, test_x[:, o], test_y, everything) for o in orders]
    classes = torch.randperm(10, generator=generator).split(2)
    tasks = []
    for pair in classes:
        a, b = torch.isin(train_y, pair), torch.isin(test_y, pair)
        allowed = everything if name == "class" else torch.isin(torch.arange(10), pair)
        tasks.append(Task(train_x[a], train_y[a], test_x[b], test_y[b], allowed))
    return tasks


def network() -> nn.Sequential:
    """The perceptron."""
    return nn.Sequential(
        nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def logits_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (B, 10), of competing classes only, and labels (B,)."""
    return model(batch["x"]).masked_fill(~batch["allowed"], -1e4), batch["y"]


def raw_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """All ten logits, for what looks at their size."""
    return model(batch["x"]), batch["y"]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood, summed over the batch."""
    return nn.functional.cross_entropy(*logits_fn(model, batch), reduction="sum")


def together(examples: Sequence[Batch], device: torch.device) -> Batch:
    """Examples as one batch."""
    return {k: torch.cat([example[k] for example in examples]) for k in ("x", "y", "allowed")}
