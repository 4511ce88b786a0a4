"""Everything about an order of rows but the batches, which the trainer knows.

A stage makes the plan; the trainer opens it once it knows its batch size, processes and steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.data.curriculum.adaptive import AdaptiveCompetence
from align.data.curriculum.pacing import Competence, competence
from align.data.curriculum.rank import Floats, Ints, Order
from align.data.sampling.order import DrawOrder


@dataclass(frozen=True)
class Pacing:
    """How fast rows come; see `align.data.curriculum.pacing` and `adaptive`."""

    name: str = "root"
    start: float = 0.2
    steps: int | None = None  # None: half of the training; adaptive: never
    power: float = 2.0
    steepness: float = 10.0
    stages: int = 4
    increment: float = 0.1
    patience: int = 1
    min_delta: float = 0.0

    def open(self, total: int) -> Competence:
        """The competence of a training of `total` steps.

        Raises:
            ValueError: a number out of its range.
        """
        if self.name == "adaptive":
            return AdaptiveCompetence(
                self.start,
                increment=self.increment,
                patience=self.patience,
                min_delta=self.min_delta,
                steps=self.steps,
            )
        return competence(
            self.name,
            self.start,
            self.steps or max(1, total // 2),
            power=self.power,
            steepness=self.steepness,
            stages=self.stages,
        )


@dataclass(frozen=True)
class OrderPlan:
    """Difficulties, weights and pacing of N training rows; or their groups, and nothing else."""

    rows: int
    seed: int = 0
    difficulty: Floats | None = None  # (N,)
    order: Order = "easy"
    pacing: Pacing | None = None
    weights: Floats | None = None  # (N,)
    groups: Ints | None = None  # (N,), rows of one number stand in one batch

    def open(
        self, per_step: int, total: int, *, per_epoch: int | None = None, scale: float = 1.0
    ) -> DrawOrder:
        """The order of a training.

        Args:
            per_step: rows that a step draws, over all processes.
            total: optimizer steps (or updates) of the training.
            per_epoch: draws of an epoch; None: no epochs.
            scale: optimizer steps that one step of the order lasts.
        """
        return DrawOrder(
            self.rows,
            per_step,
            seed=self.seed,
            difficulty=self.difficulty,
            order=self.order,
            competence=None if self.pacing is None else self.pacing.open(total),
            weights=self.weights,
            per_epoch=per_epoch,
            scale=scale,
        )
