"""Several reward functions as one: a weighted sum, each logged apart, some logged only.

The mathematics is in `reward.combine`, time-outs and retries in `reward.call`.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerState

from align.errors import ConfigError, NonFiniteError, Problem, RewardError
from align.types import RewardFn, Rollout
from reward.call import RewardCall, call_together
from reward.combine import (
    Reduce,
    RewardTerm,
    RunningStatistics,
    clipped,
    group_zscore,
    groups_of,
    mean_of,
    weighted_sum,
)

ScoreFn = Callable[[Rollout], tuple[list[float], dict[str, float]]]

# `reward/<name>` must not be one of the trainer's or the scorer's own metrics.
RESERVED = ("mean", "std", "kl_shaped", "disagreement", "lower_bound", "unscaled")


class RewardScorer:
    """Scores rollouts by a sum of rewards; a `ScoreFn` with a state.

    The trainer sets `update` (updates before this rollout, for schedules) and, on several ranks,
    `reduce`; `trainer_state` is what reward functions get under that name, as in TRL.
    """

    def __init__(
        self,
        terms: Sequence[RewardTerm],
        *,
        group_size: int | None = None,
        reduce: Reduce | None = None,
    ):
        """Set up.

        Args:
            terms: the rewards; those that are `gold` are logged and left out of the sum.
            group_size: completions per prompt; None: neighbours with equal prompts are a group.
            reduce: sums a tensor over ranks, for running statistics.

        Raises:
            ConfigError: two rewards of one name, a reserved name, or nothing to train on.
        """
        check_terms(terms)
        self.terms = list(terms)
        self.group_size, self.reduce = group_size, reduce
        self.update = 0
        self.trainer_state: TrainerState | None = None
        self.statistics = {t.name: RunningStatistics() for t in terms if t.normalise == "running"}

    def __call__(
        self, rollout: Rollout, *, learn: bool = True
    ) -> tuple[list[float], dict[str, float]]:
        """The rewards of B completions, and what to log about them.

        Args:
            rollout: B completions.
            learn: take them into the running statistics; False only to look.

        Returns:
            B floats, and metrics: `reward/<name>` or `gold/<name>`, the mean of the raw values;
            and where a reward is normalised or its weight scheduled, `reward/unscaled`: their sum
            as it would be without, which moves as the answers do.

        Raises:
            RewardError: a reward failed, none applies to a completion, or groups of one
                completion were to be normalised.
            NonFiniteError: the sum is not finite.
        """
        noted: dict[str, list[float]] = defaultdict(list)
        arguments = self._arguments(rollout) | {"log_metric": lambda k, v: noted[k].append(v)}
        calls = [
            RewardCall(t.name, t.function, arguments, t.timeout, t.retries) for t in self.terms
        ]
        parts, metrics, unscaled = [], dict[str, float](), 0.0
        for term, outcome in zip(self.terms, call_together(calls), strict=True):
            mean = mean_of(outcome.values)
            if mean is not None:
                metrics[f"{'gold' if term.gold else 'reward'}/{term.name}"] = mean
            if outcome.retries:
                metrics[f"reward_retries/{term.name}"] = float(outcome.retries)
            if term.gold:
                continue
            weight = term.weight_at(self.update)
            if term.schedule is not None:
                metrics[f"reward_weight/{term.name}"] = weight
            unscaled += term.weight * (mean or 0.0)
            values = self._scaled(term, outcome.values, rollout, learn)
            parts.append((term.name, clipped(values, term.clip), weight))
        total = weighted_sum(parts)
        if not all(map(math.isfinite, total)):
            raise NonFiniteError("the weighted sum of rewards is not finite; check reward weights.")
        if any(t.normalise != "none" or t.schedule for t in self.terms if not t.gold):
            metrics["reward/unscaled"] = unscaled
        own = {key: math.fsum(values) / len(values) for key, values in noted.items()}
        return total, own | metrics

    def _scaled(
        self, term: RewardTerm, values: Sequence[float | None], rollout: Rollout, learn: bool
    ) -> Sequence[float | None]:
        if term.normalise == "group":
            # What is only looked at may come in other groups than training's.
            groups = groups_of(rollout.prompts, self.group_size if learn else None)
            if learn and len(groups) == len(rollout) > 1:
                raise RewardError(
                    f"reward {term.name!r} is normalised in groups, but every prompt has one "
                    "completion. Fix: raise trainer.group_size, or use normalise: running."
                )
            return group_zscore(values, groups)
        if term.normalise == "running":
            seen = self.statistics[term.name]
            if not learn:
                seen = copy.copy(seen)
            if learn or not seen.count:
                seen.update(values, self.reduce if learn else None)
            return seen.apply(values)
        return values

    def _arguments(self, rollout: Rollout) -> dict[str, Any]:
        """What TRL hands a reward function."""
        real = (rollout.mask if rollout.real is None else rollout.real).bool()
        rows = zip(rollout.completion_ids, real, strict=True)
        state = self.trainer_state or TrainerState(global_step=self.update)
        return {
            "prompts": rollout.prompts,
            "completions": rollout.completions,
            "completion_ids": [ids[kept].tolist() for ids, kept in rows],
            "trainer_state": state,
            **rollout.columns,
        }

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The running statistics, by reward."""
        return {name: seen.state_dict() for name, seen in self.statistics.items()}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        """Restore `state_dict`; a reward without saved statistics begins anew."""
        for name, saved in state.items():
            if name in self.statistics:
                self.statistics[name].load_state_dict(saved)


def reward_scorer(rewards: Sequence[tuple[str, RewardFn, float]]) -> RewardScorer:
    """Weighted sum of named reward functions, each logged apart.

    Args:
        rewards: (name, function, weight).

    Returns:
        A function from a rollout to B floats and metrics `reward/<name>`.
    """
    return RewardScorer([RewardTerm(name, function, weight) for name, function, weight in rewards])


def check_terms(terms: Sequence[RewardTerm]) -> None:
    """Names tell rewards apart, and something is left to train on.

    Raises:
        ConfigError: with every problem found.
    """
    problems = []
    names = [term.name for term in terms]
    for index, name in enumerate(names):
        fix = "give each its own `name`."
        if name in names[:index]:
            problems.append(Problem(f"reward.{index}", f"a second reward is named {name!r}.", fix))
        if name in RESERVED:
            what = f"the metric reward/{name} exists already."
            problems.append(Problem(f"reward.{index}", what, "give it another `name`."))
    if not any(not term.gold for term in terms):
        what = "every reward is `gold`, which is logged only; nothing is left to train on."
        problems.append(Problem("reward", what, "add one without `gold: true`."))
    if problems:
        raise ConfigError(problems)
