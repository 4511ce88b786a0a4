"""Trains a reward model on an `Objective`: rankings, ratings, steps, several heads, ties.

Plain Bradley-Terry on pairs goes through TRL's RewardTrainer instead (`align.engine.trainers`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from align.engine.finite import FiniteMixin
from align.engine.guards.base import GuardMixin
from align.engine.objective import Batch, Objective, chosen_text
from align.engine.order import OrderMixin
from align.engine.scorer import Scorer, Scores
from align.engine.throughput import SpeedMixin
from reward.losses import decided, group_scores
from reward.preferences import SOFT_LABEL
from reward.ranking_losses import better_worse

TIE_RATE = 0.01  # Adam's, of a logarithm


class _Trainer(Trainer):
    """transformers' Trainer with an objective; `model` is a `Scorer`."""

    objective: Objective
    seen: dict[str, defaultdict[str, list[float]]]  # by mode: a metric's values of each batch

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.objective = objective
        self.seen = {}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Transformers' optimizer; the parameter of ties, a single number, has a rate of its own.

        At the rate of the weights it would stay where it starts.
        """
        made = self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        tie = tie_parameter(self.model) if isinstance(self.model, nn.Module) else None
        if made is None and tie is not None:
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if p is not tie]
            optimizer.add_param_group({"params": [tie], "lr": TIE_RATE, "weight_decay": 0.0})
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss; held-out examples count once in every head."""
        found = forward(model, inputs, self.objective)
        batch = inputs if model.training else inputs | {"draws": torch.ones_like(inputs["draws"])}
        loss = self.objective(found, batch, tie_parameter(model))
        self._note(found, inputs, "train" if model.training else "eval")
        return (loss, found.scores) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The held-out loss; scores of groups of different sizes make no table."""
        prepared: Any = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, prepared)
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the means of what the batches since the last log showed."""
        held_out = next((k for k in logs if k.endswith("_loss")), None)
        seen = self.seen.pop("eval" if held_out else "train", defaultdict(list))
        prefix = held_out.removesuffix("loss") if held_out else ""
        logs |= {f"{prefix}{name}": sum(found) / len(found) for name, found in seen.items()}
        super().log(logs, *args, **kwargs)

    def _note(self, found: Scores, batch: Batch, mode: str) -> None:
        seen = self.seen.setdefault(mode, defaultdict(list))
        for name, value in figures(found, batch, self.objective.kind).items():
            gathered = self.accelerator.gather(value.detach().reshape(1))
            seen[name].append(float(gathered.float().nanmean()))


class ObjectiveTrainer(SpeedMixin, FiniteMixin, GuardMixin, OrderMixin, _Trainer):
    """Reward modelling on any kind of judgement."""


def forward(model: nn.Module, batch: Batch, objective: Objective) -> Scores:
    """What the objective reads of a batch."""
    text = chosen_text(batch) if objective.generative else None
    found: Scores = model(batch["input_ids"], batch["attention_mask"], batch["read"].bool(), text)
    return found


def tie_parameter(model: nn.Module) -> Tensor | None:
    """The learnt parameter of ties, of a `Scorer` or what wraps one."""
    inner = getattr(model, "module", model)
    return inner.tie if isinstance(inner, Scorer) else None


@torch.no_grad()
def figures(found: Scores, batch: Batch, kind: str) -> dict[str, Tensor]:
    """Scalars for the log: scores, the share of right orders, how far apart heads are."""
    mean = found.scores.mean(dim=1)
    named = {"mean_reward": mean.mean()}
    if found.scores.shape[1] > 1 and kind != "ratings":
        named["disagreement"] = found.scores.std(dim=1, unbiased=False).mean()
    if kind == "pairs":
        margins = mean[0::2] - mean[1::2]
        known = decided(batch[SOFT_LABEL])
        named |= {"accuracy": (margins[known] > 0).float().mean(), "margin": margins.mean()}
    elif kind == "rankings":
        table, real = group_scores(mean, batch["counts"])
        ranks, _ = group_scores(batch["ranks"], batch["counts"])
        better = better_worse(ranks, real)
        right = (table[:, :, None] > table[:, None, :])[better]
        named["accuracy"] = right.float().mean()
    elif kind == "steps":
        labels = batch["step_labels"]
        known = ~labels.isnan()
        right = (mean[known] > 0) == (labels[known] > 0.5)
        named["accuracy"] = right.float().mean()
    return named
