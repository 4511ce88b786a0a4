"""From `data.batches: grouped` to a plan: rows of one prompt in one batch, and its figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from align.data.sampling import GroupSampler, OrderPlan, prompt_groups
from align.data.sampling.groups import groups_per_batch, groups_per_random_batch
from align.errors import ConfigError, Problem


def plan_groups(rows: Dataset, batch_size: int, seed: int) -> tuple[OrderPlan, dict[str, Any]]:
    """Group rows by their prompt.

    Args:
        rows: of training, as the data layer made them.
        batch_size: rows of a micro-batch of one process.
        seed: of the order.

    Returns:
        The plan, and what the data card says of it.
    """
    groups = prompt_groups(rows["prompt"])
    counts = np.bincount(groups)
    first = GroupSampler(groups, batch_size, seed).order(epoch=0)
    card = {
        "prompts": len(counts),
        "prompts_of_several_rows": int((counts > 1).sum()),
        "batch_size": batch_size,
        "prompts_per_batch": {
            "grouped": round(groups_per_batch(groups[first], batch_size), 2),
            "random": round(groups_per_random_batch(groups, batch_size), 2),
        },
    }
    return OrderPlan(len(rows), seed, groups=groups), card


def check_prompts(rows: Dataset) -> None:
    """Refuse rows that have no prompt to be grouped by.

    Raises:
        ConfigError: naming the columns that they have.
    """
    if "prompt" not in rows.column_names:
        what = f"grouped reads prompts, and the rows have {', '.join(rows.column_names)} alone."
        fix = "leave it out, or use prompt-completion data."
        raise ConfigError([Problem("data.batches", what, fix)])


def describe_groups(card: dict[str, Any]) -> str:
    """The card's entry in words."""
    found = card["prompts_per_batch"]
    return (
        f"batches: {card['prompts_of_several_rows']:,} of {card['prompts']:,} prompts have several "
        f"rows; a batch of {card['batch_size']} has {found['grouped']:g} prompts on average, in "
        f"random order {found['random']:g}"
    )
