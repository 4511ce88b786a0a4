"""Several reward models as one: their mean, a pessimistic bound, or the worst of them.

The posterior of K equally likely members (`EnsemblePosterior`), each a model of its own; K heads on
one trunk, Laplace and dropout make the same reward of one model (`reward.posterior_reward`).
Leaves out training the members: `align reward` with different seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import RewardFn, call_reward
from reward.posterior import EnsemblePosterior
from reward.posterior_reward import Mode, PosteriorReward
from reward.process import load_reward


def lower_bound(scores: Tensor, pessimism: float = 1.0) -> Tensor:
    """Mean less `pessimism` standard deviations over members.

    Args:
        scores: (K, B), one row per member.
        pessimism: k >= 0.

    Returns:
        (B,).
    """
    return EnsemblePosterior().lower_bound(scores.T, pessimism)


def disagreement(scores: Tensor) -> Tensor:
    """Biased standard deviation over members, (K, B) to (B,)."""
    return EnsemblePosterior().std(scores.T)


class EnsembleReward(PosteriorReward):
    """A `RewardFn` over K members; also reports `reward/disagreement` and `reward/lower_bound`."""

    def __init__(
        self,
        members: Sequence[str | Path | RewardFn],
        *,
        mode: Mode = "lower_bound",
        pessimism: float = 1.0,
        normalise: bool = True,
        name: str = "ensemble",
    ):
        """Load the members that are given as directories.

        Args:
            members: at least two reward models' directories, reward models or reward functions.
            mode: what is returned: the mean, mean - pessimism * std, or the least.
            pessimism: k of the lower bound.
            normalise: members' own statistics make their scales alike; refuse one without.
            name: in metrics and errors.

        Raises:
            RewardError: fewer than two members, a negative pessimism, or an unknown mode.
            ModelError: a member cannot be loaded, or lacks statistics that `normalise` wants.
        """
        if len(members) < 2:
            raise RewardError(
                f"ensemble {name!r} has {len(members)} member; disagreement needs at least 2."
            )
        super().__init__(EnsemblePosterior(), self._read, mode=mode, pessimism=pessimism, name=name)
        self.members: list[Callable[..., Any]] = [
            load_reward(member, normalise=normalise) if isinstance(member, str | Path) else member
            for member in members
        ]

    def scores(self, prompts: list[Text], completions: list[Text], **columns: Any) -> Tensor:
        """Each member's scores, (K, B) float64.

        Raises:
            RewardError: a member failed, see `reward.functions.call_reward`.
        """
        rows = [call_reward(member, prompts, completions, **columns) for member in self.members]
        return torch.tensor(rows, dtype=torch.float64)

    def _read(self, prompts: list[Text], completions: list[Text], **columns: Any) -> Tensor:
        return self.scores(prompts, completions, **columns).T
