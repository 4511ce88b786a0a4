"""Several reward models as one: their mean, a pessimistic bound, or the worst of them.

A policy that over-optimises finds answers on which reward models err, and there independent models
disagree; taking disagreement off the reward closes that way (Coste et al. 2023, arXiv 2310.02743;
Eisenstein et al. 2023, arXiv 2312.09244: it helps, and does not help where all members err alike).
Leaves out training the members: `align reward` with different seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from feedback.schema import Text
from reward.errors import RewardError
from reward.functions import RewardFn, call_reward
from reward.model import RewardModel

Mode = Literal["mean", "lower_bound", "worst"]


def lower_bound(scores: Tensor, pessimism: float = 1.0) -> Tensor:
    """Mean less `pessimism` standard deviations over members.

    Coste et al. (2023), eq. 5, take the variance off; a standard deviation is in the units of the
    reward, so that one `pessimism` fits every scale.

    Args:
        scores: (K, B), one row per member.
        pessimism: k >= 0.

    Returns:
        (B,).
    """
    return scores.mean(dim=0) - pessimism * disagreement(scores)


def disagreement(scores: Tensor) -> Tensor:
    """Biased standard deviation over members, (K, B) to (B,)."""
    return scores.std(dim=0, unbiased=False)


class EnsembleReward:
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
        if mode not in ("mean", "lower_bound", "worst") or pessimism < 0:
            raise RewardError(
                f"ensemble {name!r}: mode is one of mean, lower_bound, worst and pessimism is at "
                f"least 0; got {mode!r} and {pessimism}."
            )
        self.members: list[Callable[..., Any]] = [
            RewardModel.load(member, normalise=normalise)
            if isinstance(member, str | Path)
            else member
            for member in members
        ]
        self.mode, self.pessimism = mode, pessimism
        self.__name__ = name

    def scores(self, prompts: list[Text], completions: list[Text], **columns: Any) -> Tensor:
        """Each member's scores, (K, B) float64.

        Raises:
            RewardError: a member failed, see `reward.functions.call_reward`.
        """
        rows = [call_reward(member, prompts, completions, **columns) for member in self.members]
        return torch.tensor(rows, dtype=torch.float64)

    def __call__(
        self,
        prompts: list[Text],
        completions: list[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """One float per completion, in the mode; disagreement and bound go to `log_metric`."""
        scores = self.scores(prompts, completions, **columns)
        bound = lower_bound(scores, self.pessimism)
        if log_metric is not None and len(completions):
            log_metric("reward/disagreement", float(disagreement(scores).mean()))
            log_metric("reward/lower_bound", float(bound.mean()))
        if self.mode == "mean":
            return scores.mean(dim=0).tolist()
        return (bound if self.mode == "lower_bound" else scores.amin(dim=0)).tolist()
