"""A reward's order of three or more answers against the order that people gave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from align.evaluate.reward_pairs import prompt_sums
from align.evaluate.reward_sets import AnswerSet
from align.evaluate.significance import bootstrap_interval
from reward import ranking_metrics
from reward.statistics import Interval

Measure = Callable[[Sequence[float], np.ndarray], float]
MEASURES: dict[str, Measure] = {
    "best_of": ranking_metrics.best_of,
    "ndcg": ranking_metrics.ndcg,
    "kendall_tau": ranking_metrics.kendall_tau,
}


@dataclass(frozen=True)
class RankingResult:
    """Agreement with the order of three or more answers; a set counts by its weight."""

    sets: int
    prompts: int
    best_of: Interval  # the highest score has the best grade
    ndcg: Interval
    kendall_tau: Interval
    random: dict[str, float]  # what each measure gives to a drawn order, on average
    longer: dict[str, float]  # to the longest first
    shorter: dict[str, float]


def measure_rankings(
    sets: Sequence[AnswerSet],
    scores: Sequence[np.ndarray],
    lengths: Sequence[np.ndarray],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> RankingResult | None:
    """Measures over the sets of three or more answers; None without any.

    Args:
        sets: that say something.
        scores: (K,) for each.
        lengths: (K,) of the answers.
        level: confidence level.
        resamples: of the bootstrap over prompts (NDCG and tau; shares have Wilson's interval).
        seed: of the bootstrap.
    """
    rows = [row for row, one in enumerate(sets) if len(one.answers) > 2]
    if not sum(sets[row].weight for row in rows) > 0:
        return None
    weights = np.array([sets[row].weight for row in rows])
    prompts = [json.dumps(sets[row].prompt, sort_keys=True) for row in rows]

    def values(name: str, by: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([MEASURES[name](sets[row].grades, by[row]) for row in rows])

    def mean(each: np.ndarray) -> float:
        return float(weights @ each / weights.sum())

    found = values("best_of", scores)
    intervals = {"best_of": ranking_metrics.weighted_share(found, weights, prompts, level)}
    for name in ("ndcg", "kendall_tau"):
        above, below = prompt_sums(values(name, scores), weights, prompts)
        intervals[name] = bootstrap_interval(above, below, level, resamples, seed)
    grades = [np.array(sets[row].grades) for row in rows]
    drawn = {
        "best_of": mean(np.array([(g == g.max()).mean() for g in grades])),
        "ndcg": mean(np.array([ranking_metrics.expected_ndcg(g) for g in grades])),
        "kendall_tau": 0.0,
    }
    backwards = [-found for found in lengths]
    return RankingResult(
        sets=len(rows),
        prompts=len(set(prompts)),
        random=drawn,
        longer={name: mean(values(name, lengths)) for name in MEASURES},
        shorter={name: mean(values(name, backwards)) for name in MEASURES},
        **intervals,
    )
