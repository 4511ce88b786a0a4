"""Simulated annotators: people of unequal reliability, with a liking for one side of the screen.

An annotator compares the utilities of the two answers as shown, u1 (first) and u2 (second):

    z = (u1 - u2) / temperature + position_bias + e,    e ~ Logistic(0, 1)

and says `tie` when |z| < tie_band, else the first when z > 0. With no tie band this is the model of
Bradley and Terry (Biometrika 39, 1952) with an order effect, P(first) = sigmoid(z - e); the band is
the tie model of Rao and Kupper (JASA 62, 1967). With probability `lapse_rate` the annotator does
not read and tosses a coin. Leaves out learning, fatigue and dependence between annotators.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime

from feedback.schema import Comparison, Label, Pair

STRONG = 3.0  # |z| from which an answer is called much better


@dataclass(frozen=True)
class SimulatedAnnotator:
    """One annotator. The same pair shown the same way for the same time gets the same answer."""

    name: str
    seed: int = 0
    temperature: float = 1.0  # utility difference that weighs one logit; lower is more reliable
    position_bias: float = 0.0  # logits in favour of the answer shown first
    lapse_rate: float = 0.0  # share of judgements made by a coin
    tie_band: float = 0.0  # half-width, in logits

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.lapse_rate <= 1 or self.tie_band < 0:
            raise ValueError(
                f"annotator {self.name!r}: temperature must be > 0 (is {self.temperature}), "
                f"lapse_rate in [0, 1] (is {self.lapse_rate}), tie_band >= 0 (is {self.tie_band})."
            )

    def probability_first(self, difference: float) -> float:
        """P(the answer shown first is chosen | no tie band) for `difference` = u1 - u2."""
        logit = difference / self.temperature + self.position_bias
        return self.lapse_rate / 2 + (1 - self.lapse_rate) * _sigmoid(logit)

    def judge(
        self,
        pair: Pair,
        utility_a: float,
        utility_b: float,
        *,
        swapped: bool | None = None,
        repeat: int = 0,
    ) -> Comparison:
        """Judge a pair once.

        Args:
            pair: the two answers.
            utility_a: what `response_a` is worth.
            utility_b: what `response_b` is worth.
            swapped: show `response_b` first; default: as the pair was issued.
            repeat: the how-manieth showing of this pair; each is an independent judgement.

        Returns:
            The judgement in the pair's own order, position undone.
        """
        turned = pair.swapped if swapped is None else swapped
        draw = random.Random(f"{self.seed}|{self.name}|{pair.id}|{turned}|{repeat}")
        first, second = (utility_b, utility_a) if turned else (utility_a, utility_b)
        uniform = min(max(draw.random(), 1e-12), 1 - 1e-12)
        z = (first - second) / self.temperature + self.position_bias
        z += math.log(uniform / (1 - uniform))
        if draw.random() < self.lapse_rate:
            z = 1.0 + self.tie_band if draw.random() < 0.5 else -1.0 - self.tie_band
        label: Label = "tie"
        if abs(z) >= self.tie_band:
            label = "a" if (z > 0) != turned else "b"
        strength = 0 if label == "tie" else 1 + (abs(z) >= STRONG + self.tie_band)
        return Comparison(
            prompt=pair.prompt,
            response_a=pair.response_a,
            response_b=pair.response_b,
            label=label,
            annotator=self.name,
            strength=strength,
            swapped=turned,
            pair=pair.id,
            source_a=pair.source_a,
            source_b=pair.source_b,
            created_at=datetime.now(UTC),
        )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
