"""Whether the loop ends: the rules of `feedback.acquisition.stopping` on what its rounds left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.active.said import credit
from feedback.acquisition.stopping import (
    budget_spent,
    gain_gone,
    little_left,
    predictions_settled,
)


@dataclass(frozen=True)
class Rules:
    """What ends the loop; None: not asked for."""

    rounds: int | None = 10
    labels: int | None = None
    minutes: float | None = None
    tau: float | None = None
    kappa: float | None = None
    resolution: float | None = None
    window: int = 3

    def holding(
        self,
        *,
        rounds: int,
        labels: int,
        minutes: float,
        told: Sequence[float] | None,
        beliefs: Sequence[Mapping[str, float]],
        answered: Mapping[str, float],
    ) -> list[str]:
        """The rules that hold, each as its name and a sentence: `tau: no pair would tell ...`.

        Args:
            rounds: that were asked and answered.
            labels: answered questions.
            minutes: of people's time, as far as it is known.
            told: BALD of what may still be asked, in nats; None before there is a model.
            beliefs: of each round's model, the oldest first, P by held-out pair.
            answered: share by held-out pair that the holdout drew and people answered.
        """
        found: dict[str, str | None] = {}
        if self.rounds is not None:
            done = budget_spent(rounds, self.rounds)
            found["rounds"] = done and f"all {self.rounds} rounds are done"
        if self.labels is not None:
            found["labels"] = budget_spent(labels, self.labels)
        if self.minutes is not None:
            found["minutes"] = budget_spent(round(minutes, 2), self.minutes)
        if self.tau is not None and told is not None:
            found["tau"] = little_left(told, self.tau)
        names = sorted(set.intersection(*(set(one) for one in beliefs))) if beliefs else []
        if self.kappa is not None and names:
            each = [[one[name] for name in names] for one in beliefs]
            found["kappa"] = predictions_settled(each, self.kappa, self.window)
        if self.resolution is not None and len(beliefs) > self.window:
            found["resolution"] = self._gain(beliefs, answered, self.resolution)
        return [f"{name}: {why}" for name, why in found.items() if why]

    def _gain(
        self,
        beliefs: Sequence[Mapping[str, float]],
        answered: Mapping[str, float],
        resolution: float,
    ) -> str | None:
        before, after = beliefs[-1 - self.window], beliefs[-1]
        names = [name for name in answered if name in before and name in after]
        if len(names) < 2:
            return None
        shares = np.array([answered[name] for name in names])
        was, now = (
            credit(shares, np.array([one[name] for name in names])) for one in (before, after)
        )
        return gain_gone(was, now, resolution=resolution)
