"""Whose adapter answers a prompt: the task's whose prompts are nearest, as the first model sees it.

A prompt's feature is the mean of the first model's last hidden states over its tokens; a task is
the mean over prompts that it trains on (`align.engine.guards.adapters.Router`). Nothing here is
trained, and nothing changes when a task is added but the number of means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from align.config.continual import TaskSection
from align.config.sections import DataSection
from align.continual.earlier import ROWS
from align.continual.measure import Column
from align.data import load_splits
from align.data.tokens import encode_prompt, encode_text
from align.engine.guards.adapters import Router
from align.engine.guards.exemplars import mean_features

PROMPTS = 256  # of each task, that its mean is taken over
Rows = Sequence[Mapping[str, Any]]


@dataclass
class Routes:
    """Features are computed when they are first needed, by the model before all tasks."""

    load: Callable[[], nn.Module]
    tasks: Sequence[TaskSection]
    tokenizer: Any
    longest: int | None  # tokens that the model reads
    means: dict[str, Tensor] = field(default_factory=dict)  # of tasks
    features: dict[str, Tensor] = field(default_factory=dict)  # of columns, (rows, D)

    def route(self, column: Column, learnt: Sequence[str]) -> list[str]:
        """The task, of those learnt, whose adapter answers each row of a column."""
        if not self.means:
            self._learn(self.load())
        if column.name not in self.features:
            self.features[column.name] = self._features(self.load(), column.rows)
        router = Router()
        router.means = {name: self.means[name] for name in learnt}
        return router.route(self.features[column.name])

    def save(self, file: Path, learnt: Sequence[str]) -> None:
        """Write the means of the tasks learnt, for a `Router` of one's own."""
        if not self.means:
            self._learn(self.load())
        save_file({name: self.means[name].contiguous() for name in learnt}, file)

    def _learn(self, model: nn.Module) -> None:
        router = Router()
        for task in self.tasks:
            router.learn(task.name, self._features(model, task_rows(task)))
        self.means = router.means

    def _features(self, model: nn.Module, rows: Rows) -> Tensor:
        device = next(model.parameters()).device
        batches = []
        for row in rows:
            ids = torch.tensor([prompt_ids(row, self.tokenizer)[: self.longest]], device=device)
            batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return mean_features(model, batches)


def task_rows(task: TaskSection) -> Rows:
    """Rows whose prompts stand for a task: the first that it trains on.

    Raises:
        AlignError: the task's data cannot be read.
    """
    section = DataSection.model_validate(task.settings["data"])
    plain = section.model_copy(update={"augment": [], "balance": None})
    rows = load_splits(plain, ROWS.get(task.stage, "prompts")).train
    return list(rows.take(min(PROMPTS, len(rows))))


def prompt_ids(row: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Tokens of a row's prompt; of a text, its own."""
    if "text" in row or not row["prompt"]:
        return encode_text(row.get("text", row.get("completion", "")), tokenizer)
    return encode_prompt(row["prompt"], tokenizer)
