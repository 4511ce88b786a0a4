"""Replay: an auxiliary loss on stored examples, beside the stage's own loss.

Under PPO this is PPO-ptx (Ouyang et al. 2022, "Training language models to follow instructions with
human feedback", equation 2): strength * E[-log pi(x)] over pretraining or demonstration data. It
needs outputs only, not whole weights, so it works under every way of sharding.

Examples are drawn in a new random order each pass; `weights` makes some come more often, such as
those of recent tasks. Leaves out what is kept of a stream: `buffers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from align.engine.guards.base import Batch, LossFn
from align.engine.guards.fisher import IGNORED
from align.errors import ModelError

Collate = Callable[[Sequence[Batch], torch.device], Batch]
Size = Callable[[Batch], Tensor]  # what a batch's loss is divided by


class Stored:
    """Examples in an order of their own, drawn a few at a time; resumable."""

    def __init__(
        self, examples: Iterable[Batch], *, weights: Sequence[float] | None = None, seed: int = 0
    ):
        """Keep the examples.

        Args:
            examples: batches of *one* example each.
            weights: how often each is drawn, relative to the others; None: all alike.
            seed: of the order.

        Raises:
            ModelError: there are no examples, or not a weight for each.
        """
        self.examples = [{k: v.cpu() for k, v in example.items()} for example in examples]
        if not self.examples:
            raise ModelError("replay needs at least one example; guards.data gave none.")
        if weights is not None and len(weights) != len(self.examples):
            what = f"{len(weights)} weights were given for {len(self.examples)} examples."
            raise ModelError(f"replay: {what} Fix: give one for each.")
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        self.seed = seed
        self.position = 0  # examples drawn so far

    def draw(self, count: int) -> list[Batch]:
        """The next examples."""
        chosen = [self._row(self.position + offset) for offset in range(count)]
        self.position += count
        return [self.examples[row] for row in chosen]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.examples))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        count = len(self.examples)
        if self.weights is None:
            return int(torch.randperm(count, generator=generator)[place])
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return int(drawn[place])


class Replay:
    """A guard that keeps earlier data in training."""

    name = "replay"

    def __init__(
        self,
        examples: Iterable[Batch],
        loss_fn: LossFn,
        strength: float,
        batch_size: int = 8,
        seed: int = 0,
        *,
        weights: Sequence[float] | None = None,
        collate_fn: Collate | None = None,
        size_fn: Size | None = None,
    ):
        """Store the examples.

        Args:
            examples: batches of *one* example each, as `loss_fn` reads them.
            loss_fn: negative log-likelihood of a batch, a scalar *sum* over what it labels.
            strength: weight of the mean loss per labelled token.
            batch_size: examples an optimizer step.
            seed: of the order.
            weights: how often each example is drawn, relative to the others; None: all alike.
            collate_fn: several examples as one batch; None: `collate`, for language models.
            size_fn: what the loss of a batch is divided by; None: its labelled tokens.

        Raises:
            ModelError: there are no examples, or not a weight for each.
        """
        self.stored = Stored(examples, weights=weights, seed=seed)
        self.loss_fn, self.strength, self.batch_size = loss_fn, strength, batch_size
        self.collate, self.size = collate_fn or collate, size_fn or labelled_tokens

    def begin(self, model: nn.Module) -> None:
        """Nothing to anchor."""

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The strength times the mean loss per token of the next stored examples."""
        return self.strength * self.loss(model)

    def loss(self, model: nn.Module) -> Tensor:
        """The mean loss per token of the next stored examples."""
        device = next(model.parameters()).device
        stored = self.collate(self.stored.draw(self.batch_size), device)
        return self.loss_fn(model, stored) / self.size(stored).clamp(min=1)

    def before_step(self, model: nn.Module, scale: float = 1.0) -> None:
        """Nothing to do."""

    def after_step(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Nothing to do."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn) -> None:
        """Nothing to consolidate."""

    def state_dict(self) -> dict[str, Any]:
        """How far the buffer was read."""
        return {"position": self.stored.position, "strength": self.strength}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.stored.position = state["position"]
        self.strength = float(state["strength"])


def labelled_tokens(batch: Batch) -> Tensor:
    """How many tokens of a batch are labelled, as a scalar."""
    return (batch["labels"][:, 1:] != IGNORED).sum()


def collate(examples: Sequence[Batch], device: torch.device | str) -> Batch:
    """Examples of one row each as one batch, padded on the right with what nothing attends to."""
    width = max(example["input_ids"].shape[1] for example in examples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}

    def padded(name: str) -> Tensor:
        rows = [row for example in examples for row in example[name]]
        whole = torch.full((len(rows), width), fill[name], dtype=torch.long)
        for index, row in enumerate(rows):
            whole[index, : len(row)] = row
        return whole.to(device)

    return {name: padded(name) for name in fill if name in examples[0]}


def age_weights(ages: Sequence[int], decay: float) -> list[float]:
    """How often examples are drawn by their task's age: decay^age, 0 being the newest task."""
    return [decay**age for age in ages]
