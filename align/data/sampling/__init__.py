"""Samplers: row weights (`weights`), orders of rows (`order`, `groups`), torch samplers."""

from align.data.sampling.group_sampler import GroupSampler
from align.data.sampling.groups import grouped_order, prompt_groups
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
    "GroupSampler",
    "OrderPlan",
    "OrderSampler",
    "Pacing",
    "by_difficulty",
    "by_uncertainty",
    "class_balanced",
    "effective_number",
    "grouped_order",
    "prompt_groups",
    "recency",
    "temperature_mix",
]
