"""Replay: an auxiliary language-modelling loss on stored examples, beside the stage's own loss.

Under PPO this is PPO-ptx (Ouyang et al. 2022, "Training language models to follow instructions with
human feedback", equation 2): strength * E[-log pi(x)] over pretraining or demonstration data. It
needs outputs only, not whole weights, so it works under every way of sharding.

Simplified: the buffer is the data given, in a new random order each pass; buffers that fill
themselves from earlier runs come with the other guards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from align.engine.guards.base import Batch
from align.engine.guards.ewc import LossFn
from align.errors import ModelError

IGNORED = -100  # a label that trains nothing


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
    ):
        """Store the examples.

        Args:
            examples: batches of *one* example each: input_ids, attention_mask, labels.
            loss_fn: negative log-likelihood of a batch, a scalar *sum* over its labelled tokens.
            strength: weight of the mean loss per token.
            batch_size: examples an optimizer step.
            seed: of the order.

        Raises:
            ModelError: there are no examples.
        """
        self.examples = [{k: v.cpu() for k, v in example.items()} for example in examples]
        if not self.examples:
            raise ModelError("replay needs at least one example; guards.data gave none.")
        self.loss_fn, self.strength = loss_fn, strength
        self.batch_size, self.seed = batch_size, seed
        self.position = 0  # examples replayed so far

    def begin(self, model: nn.Module) -> None:
        """Nothing to anchor."""

    def penalty(self, model: nn.Module, batch: Batch) -> Tensor:
        """The strength times the mean loss per token of the next stored examples."""
        device = next(model.parameters()).device
        chosen = [self._row(self.position + offset) for offset in range(self.batch_size)]
        self.position += self.batch_size
        stored = collate([self.examples[row] for row in chosen], device)
        tokens = (stored["labels"][:, 1:] != IGNORED).sum().clamp(min=1)
        return self.strength * self.loss_fn(model, stored) / tokens

    def before_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def after_step(self, model: nn.Module) -> None:
        """Nothing to do."""

    def finish(self, model: nn.Module, batches: Iterable[Batch], loss_fn: Any) -> None:
        """Nothing to consolidate."""

    def state_dict(self) -> dict[str, Any]:
        """How far the buffer was read."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.position = state["position"]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.examples))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        return int(torch.randperm(len(self.examples), generator=generator)[place])


def collate(examples: list[Batch], device: torch.device | str) -> Batch:
    """Examples of one row each as one batch, padded on the right with what nothing attends to."""
    width = max(example["input_ids"].shape[1] for example in examples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}

    def padded(name: str) -> Tensor:
        rows = [example[name][0] for example in examples]
        whole = torch.full((len(rows), width), fill[name], dtype=torch.long)
        for index, row in enumerate(rows):
            whole[index, : len(row)] = row
        return whole.to(device)

    return {name: padded(name) for name in fill}
