"""The quickstart's annotators: four people of unequal reliability.

They see utilities, the gold scores of the two answers, through their own noise; nothing else of
the gold scorer reaches training.
"""

from __future__ import annotations

from feedback.simulate import SimulatedAnnotator


def annotators(seed: int = 0) -> list[SimulatedAnnotator]:
    """A careful one, two ordinary ones and a hurried one who likes what is shown first."""
    return [
        SimulatedAnnotator("ada", seed, temperature=0.3),
        SimulatedAnnotator("ben", seed, temperature=0.5, position_bias=0.2, lapse_rate=0.02),
        SimulatedAnnotator("cleo", seed, temperature=0.6, position_bias=-0.3, lapse_rate=0.05),
        SimulatedAnnotator("dov", seed, temperature=1.2, position_bias=0.8, lapse_rate=0.15),
    ]
