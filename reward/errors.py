"""Errors of the reward layer; `align.errors` re-exports them."""

from __future__ import annotations

from feedback.errors import AlignError, MissingDependencyError

__all__ = [
    "AlignError",
    "MissingDependencyError",
    "ModelError",
    "RewardError",
    "RewardTimeoutError",
]


class ModelError(AlignError, ValueError):
    """A model or tokenizer cannot be used as it is."""

    exit_code = 4


class RewardError(AlignError, RuntimeError):
    """A reward function or reward model failed or returned something unusable."""

    exit_code = 5


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward function did not return in time."""
