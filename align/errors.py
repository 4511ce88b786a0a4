"""Errors a user can act on: each names the culprit, what was expected and the fix.

The root of the family is `feedback.errors` (the lowest layer); everything is importable from here.
"""

from __future__ import annotations

from collections.abc import Sequence

from feedback.errors import (
    AlignError,
    DataError,
    LabelStudioError,
    MissingDependencyError,
    Problem,
)
from reward.errors import ModelError, RewardError

__all__ = [
    "AlignError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "LabelStudioError",
    "MissingDependencyError",
    "ModelError",
    "NonFiniteError",
    "Problem",
    "RewardError",
    "RunError",
    "SamplerError",
]


class ConfigError(AlignError, ValueError):
    """The configuration is wrong; carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str):
        if isinstance(problems, str):
            problems = [Problem("config", problems)]
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{count} configuration problem{'s' * (count != 1)}:\n{lines}")


class NonFiniteError(AlignError, ArithmeticError):
    """A loss, reward or gradient became NaN or infinite; the offending batch was saved."""

    exit_code = 6


class CheckpointError(AlignError, OSError):
    """A checkpoint is missing, incomplete or damaged, or could not be written."""

    exit_code = 7


class RunError(AlignError, RuntimeError):
    """A run directory is in use, belongs to another configuration, or cannot be continued."""

    exit_code = 8


class SamplerError(AlignError, RuntimeError):
    """An inference engine failed, hung, or does not have the weights it was sent."""

    exit_code = 11


class Interrupted(AlignError):  # noqa: N818 - an outcome, not a fault
    """Training was stopped by Ctrl-C or SIGTERM after its checkpoint was written."""

    exit_code = 130
