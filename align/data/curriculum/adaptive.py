"""Adaptive pacing: the pool grows when the validation loss has stopped falling on it.

The rule of early stopping, read the other way: a model that gets no better on what it sees may see
more. Soviany et al. 2022 ("Curriculum Learning: A Survey") file such rules under self-paced and
teacher-student curricula. A change takes effect at the first step that is not drawn yet, and the
steps of all changes are kept, so that a resumed run draws the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class AdaptiveCompetence:
    """Competence that rises by `increment` after `patience` validations without improvement."""

    def __init__(
        self,
        start: float,
        *,
        increment: float = 0.1,
        patience: int = 1,
        min_delta: float = 0.0,
        steps: int | None = None,
    ):
        """Set up.

        Args:
            start: the competence at step 0, in (0, 1].
            increment: what is added when the loss stands still.
            patience: validations in a row without improvement that this takes.
            min_delta: the fall of the loss that counts as improvement.
            steps: from this step on everything is shown, whatever the loss did; None for never.

        Raises:
            ValueError: a number out of its range.
        """
        if not 0 < start <= 1 or not 0 < increment <= 1:
            raise ValueError(f"start={start}, increment={increment}: both are shares in (0, 1].")
        if patience < 1 or min_delta < 0 or (steps is not None and steps < 1):
            raise ValueError(
                f"patience={patience}, steps={steps} are at least 1, min_delta={min_delta} is at "
                "least 0."
            )
        self.start, self.increment, self.patience = start, increment, patience
        self.min_delta, self.steps = min_delta, steps
        self.best, self.waited = math.inf, 0
        self.changes: list[tuple[float, float]] = [(0, start)]  # from which step, competence

    def __call__(self, step: float) -> float:
        """The competence at a step."""
        if self.steps is not None and step >= self.steps:
            return 1.0
        return next(value for since, value in reversed(self.changes) if since <= max(step, 0))

    def observe(self, loss: float, next_step: float) -> bool:
        """Take a validation loss; whether the competence rose.

        Args:
            loss: lower is better; NaN counts as no improvement.
            next_step: the first step whose rows are not drawn yet.
        """
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
            return False
        self.waited += 1
        value = self.changes[-1][1]
        if self.waited < self.patience or value >= 1:
            return False
        # New rows, a new plateau: it is measured from where the loss stands now.
        self.waited, self.best = 0, math.inf if math.isnan(loss) else loss
        self.changes.append((next_step, min(1.0, value + self.increment)))
        return True

    def state_dict(self) -> dict[str, Any]:
        """What was seen and decided so far."""
        return {
            "best": self.best,
            "waited": self.waited,
            "changes": [list(change) for change in self.changes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
        self.changes = [(since, value) for since, value in state["changes"]]
