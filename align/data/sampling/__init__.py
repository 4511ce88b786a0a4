"""Samplers: row weights (`weights`), the global order of draws (`order`) and its torch sampler."""

from align.data.sampling.order import DrawOrder
from align.data.sampling.plan import OrderPlan, Pacing
from align.data.sampling.sampler import OrderSampler
from align.data.sampling.weights import (
    by_difficulty,
    by_uncertainty,
    class_balanced,
    effective_number,
    recency,
    temperature_mix,
)

__all__ = [
    "DrawOrder",
    "OrderPlan",
    "OrderSampler",
    "Pacing",
    "by_difficulty",
    "by_uncertainty",
    "class_balanced",
    "effective_number",
    "recency",
    "temperature_mix",
]
