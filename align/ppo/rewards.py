"""Several reward functions as one: a weighted sum, each logged apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from align.errors import NonFiniteError
from align.types import RewardFn, Rollout
from reward.functions import call_reward

ScoreFn = Callable[[Rollout], tuple[list[float], dict[str, float]]]


def reward_scorer(rewards: Sequence[tuple[str, RewardFn, float]]) -> ScoreFn:
    """Weighted sum of named reward functions, each logged apart.

    Args:
        rewards: (name, function, weight).

    Returns:
        A function from a rollout to B floats and metrics `reward/<name>`.
    """

    def score(rollout: Rollout) -> tuple[list[float], dict[str, float]]:
        total = [0.0] * len(rollout)
        metrics: dict[str, float] = {}
        for name, function, weight in rewards:
            values = call_reward(function, rollout.prompts, rollout.completions, **rollout.columns)
            total = [t + weight * v for t, v in zip(total, values, strict=True)]
            if len(rewards) > 1:
                metrics[f"reward/{name}"] = math.fsum(values) / len(values)
        if not all(map(math.isfinite, total)):
            raise NonFiniteError("the weighted sum of rewards is not finite; check reward weights.")
        return total, metrics

    return score
