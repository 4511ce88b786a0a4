"""Curricula: how hard a row is (`measures`, `model_measures`), how fast they come (`pacing`)."""

from align.data.curriculum.adaptive import AdaptiveCompetence
from align.data.curriculum.pacing import PACINGS, competence
from align.data.curriculum.rank import curriculum_order

__all__ = ["PACINGS", "AdaptiveCompetence", "competence", "curriculum_order"]
