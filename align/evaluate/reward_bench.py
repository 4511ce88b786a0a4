"""A reward on a labelled set, by category: accuracy with intervals, baselines, rankings.

As in RewardBench (Lambert et al. 2024, arXiv 2403.13787) every category counts the same in the
macro figure. A set of K answers counts once, however many pairs it makes. Log-loss, calibration and
the length baseline over single pairs come from `align.evaluate.reward_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from align.evaluate.reward_model import RewardModelReport, evaluate_reward_model
from align.evaluate.reward_pairs import (
    Pairs,
    decided_rows,
    macro_interval,
    make_pairs,
    prompt_sums,
)
from align.evaluate.reward_rankings import RankingResult, measure_rankings
from align.evaluate.reward_sets import AnswerSet
from align.types import RewardFn, Text
from reward.functions import call_reward, plain
from reward.losses import preference_loss
from reward.metrics import correctness
from reward.ranking_metrics import weighted_share
from reward.statistics import Interval

FEW = 20  # prompts of a category below which its interval says little
TIES = 0.05  # share of pairs with equal scores beyond which a reward hardly ranks


@dataclass(frozen=True)
class CategoryResult:
    """Accuracy within one category."""

    name: str
    accuracy: Interval  # each set counts by its weight; equal scores are half right
    sets: int
    pairs: int
    prompts: int
    longer_wins: float  # what "the longer answer is better" scores there


@dataclass(frozen=True)
class RewardBench:
    """A reward on a labelled set; see docs/reward_evaluation.md for how to read it."""

    reward: str
    sets: int  # that say something
    pairs: int
    prompts: int
    undecided: int  # sets whose answers are all graded alike: left out
    ties: float  # share of pairs with equal scores
    micro: Interval  # accuracy over all sets
    macro: Interval | None  # mean over categories, bootstrap over prompts; None below two
    categories: list[CategoryResult]
    longer_wins: float
    random: float  # what a drawn order scores
    pair_report: RewardModelReport  # every pair counts once, without weights
    rankings: RankingResult | None
    soft_log_loss: float | None  # cross-entropy with soft labels, ties included
    level: float
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def score_sets(
    reward_fn: RewardFn | Callable[..., Any], sets: Sequence[AnswerSet], batch_size: int = 256
) -> list[np.ndarray]:
    """Scores of every answer, one array (K,) per set.

    Args:
        reward_fn: scores a completion.
        sets: their columns are handed to it, None where a set lacks one.
        batch_size: answers per call.

    Raises:
        RewardError: the reward failed.
    """
    rows = [(one, answer) for one in sets for answer in one.answers]
    names = column_names(sets)
    found: list[float] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        columns = {name: [one.columns.get(name) for one, _ in batch] for name in names}
        prompts = [one.prompt for one, _ in batch]
        found += call_reward(reward_fn, prompts, [answer for _, answer in batch], **columns)
    ends = np.cumsum([len(one.answers) for one in sets])[:-1]
    return list(np.split(np.array(found), ends))


def column_names(sets: Sequence[AnswerSet]) -> list[str]:
    """The columns that any set has for the reward function."""
    return list(dict.fromkeys(name for one in sets for name in one.columns))


def evaluate_sets(
    sets: Sequence[AnswerSet],
    scores: Sequence[np.ndarray],
    name: str = "reward",
    *,
    length: Callable[[Text], int] | None = None,
    unit: str = "characters",
    bins: int = 10,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> RewardBench:
    """Measure scores against grades.

    Args:
        sets: labelled answers; those graded alike are left out and counted.
        scores: (K,) for each set, from `score_sets`. For log-loss and calibration their differences
            must be log-odds: raw scores of a reward model, not normalised ones.
        name: of the reward.
        length: of an answer; default: its characters.
        unit: what `length` counts.
        bins: of the reliability diagram.
        level: confidence level.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: numbers that differ, or no set says that an answer is better.
    """
    kept = decided_rows(sets, scores)
    decided = [sets[row] for row in kept]
    values = [np.asarray(scores[row], dtype=np.float64) for row in kept]
    pairs = make_pairs(decided)
    margins = pairs.margins(values)
    right = pairs.means(correctness(margins))
    measure = length or (lambda text: len(plain(text)))
    lengths = [np.array([measure(text) for text in one.answers], dtype=float) for one in decided]
    longer = pairs.means(correctness(pairs.margins(lengths)))
    categories = [_category(one, pairs, right, longer, level) for one in pairs.names]
    parts = [_sums(pairs.of(one), pairs, right) for one in pairs.names]
    ties = float((margins == 0).mean())
    return RewardBench(
        reward=name,
        sets=len(decided),
        pairs=len(pairs),
        prompts=len(set(pairs.prompts)),
        undecided=len(sets) - len(decided),
        ties=ties,
        micro=weighted_share(right, pairs.weights, pairs.prompts, level),
        macro=macro_interval(parts, level, resamples, seed) if len(parts) > 1 else None,
        categories=categories,
        longer_wins=float(pairs.weights @ longer / pairs.weights.sum()),
        random=0.5,
        pair_report=_pair_report(decided, values, pairs, measure, unit, bins, level),
        rankings=measure_rankings(decided, values, lengths, level, resamples, seed),
        soft_log_loss=_soft_log_loss(sets, scores),
        level=level,
        warnings=_warnings(categories, ties),
    )


def _category(
    name: str, pairs: Pairs, right: np.ndarray, longer: np.ndarray, level: float
) -> CategoryResult:
    inside = pairs.of(name)
    weights = pairs.weights[inside]
    prompts = [pairs.prompts[row] for row in inside]
    return CategoryResult(
        name=name or "(none)",
        accuracy=weighted_share(right[inside], weights, prompts, level),
        sets=len(inside),
        pairs=int(np.isin(pairs.index, inside).sum()),
        prompts=len(set(prompts)),
        longer_wins=float(weights @ longer[inside] / weights.sum()),
    )


def _sums(inside: np.ndarray, pairs: Pairs, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prompts = [pairs.prompts[row] for row in inside]
    return prompt_sums(right[inside], pairs.weights[inside], prompts)


def _pair_report(
    sets: Sequence[AnswerSet],
    scores: Sequence[np.ndarray],
    pairs: Pairs,
    measure: Callable[[Text], int],
    unit: str,
    bins: int,
    level: float,
) -> RewardModelReport:
    """The report on single pairs, from scores that are there already."""
    rows = [
        {"prompt": sets[i].prompt, "chosen": sets[i].answers[b], "rejected": sets[i].answers[w]}
        for i, b, w in zip(pairs.index, pairs.better, pairs.worse, strict=True)
    ]
    chosen, rejected = (
        [float(scores[i][a]) for i, a in zip(pairs.index, side, strict=True)]
        for side in (pairs.better, pairs.worse)
    )
    first = [row["chosen"] for row in rows]

    def scored(prompts: list[Text], completions: list[Text]) -> list[float]:
        return chosen if completions == first else rejected  # all rows at once

    return evaluate_reward_model(
        rows, scored, length=measure, unit=unit, batch_size=len(rows), bins=bins, level=level
    )


def _soft_log_loss(sets: Sequence[AnswerSet], scores: Sequence[np.ndarray]) -> float | None:
    rows = [row for row, one in enumerate(sets) if one.soft is not None]
    if not rows:
        return None
    margins = torch.tensor([float(scores[row][0] - scores[row][1]) for row in rows]).double()
    labels = torch.tensor([float(sets[row].soft or 0.0) for row in rows]).double()
    weights = torch.tensor([sets[row].weight for row in rows]).double()
    return float((preference_loss(margins, labels) * weights).sum() / weights.sum())


def _warnings(categories: Sequence[CategoryResult], ties: float) -> list[str]:
    found = []
    few = [one.name for one in categories if one.prompts < FEW]
    if few:
        shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
        found.append(
            f"{len(few)} of {len(categories)} categories have fewer than {FEW} prompts ({shown}): "
            "the macro figure's interval is too narrow."
        )
    flat = sum(one.accuracy.value in (0.0, 1.0) for one in categories)
    if flat and len(categories) > 1:
        found.append(
            f"in {flat} of {len(categories)} categories every row is judged alike: to the macro "
            "figure's bootstrap they are certain."
        )
    if ties > TIES:
        found.append(f"{ties:.0%} of the pairs get equal scores, which count as half right.")
    return found
