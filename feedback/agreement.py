"""How far annotators agree: with each other, with the majority, with themselves.

Rates carry 95% intervals: Wilson's where trials are independent, a bootstrap over pairs where one
pair gives several trials. Leaves out chance-corrected coefficients (alpha, kappa).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import binomtest

from feedback.aggregate import by_pair, signed
from feedback.schema import Comparison


@dataclass(frozen=True)
class Rate:
    """A share of n trials with its 95% interval; all NaN when n is 0."""

    rate: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Rate:
    """A rate of independent trials with Wilson's 95% interval."""
    if n == 0:
        return Rate(float("nan"), float("nan"), float("nan"), 0)
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return Rate(successes / n, float(interval.low), float(interval.high), n)


def pairwise_agreement(comparisons: Iterable[Comparison], *, draws: int = 1000) -> Rate:
    """How often two different annotators say the same of a pair.

    Ties are left out, as they are from training. The interval is a bootstrap over pairs. This is
    the annotators' own consistency, against which a reward model's accuracy is to be read.
    """
    hits, trials = [], []
    for group in by_pair(comparisons).values():
        votes = _votes(group)
        same = [x == y for (p, x), (q, y) in combinations(votes, 2) if p != q and x != 0 and y != 0]
        if same:
            hits.append(sum(same))
            trials.append(len(same))
    return _clustered(hits, trials, draws)


def majority_agreement(comparisons: Iterable[Comparison]) -> dict[str, Rate]:
    """How often each annotator sides with the majority of the *others* on a pair.

    The annotator's own vote is left out of the majority; ties on either side are no trial.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for group in by_pair(comparisons).values():
        votes = _votes(group)
        for name, vote in votes:
            others = sum(v for other, v in votes if other != name)
            outcomes[name]  # an annotator without a trial is listed too
            if vote and others:
                outcomes[name].append((vote > 0) == (others > 0))
    return {name: wilson(sum(found), len(found)) for name, found in sorted(outcomes.items())}


def position_bias(comparisons: Iterable[Comparison]) -> dict[str, Rate]:
    """How often each annotator chose the answer shown first; ties left out.

    With the display order drawn by a fair coin, an unbiased annotator is at 0.5.
    """
    first: dict[str, list[bool]] = defaultdict(list)
    for item in comparisons:
        first[item.annotator]
        if item.label != "tie":
            first[item.annotator].append((item.label == "a") != item.swapped)
    return {name: wilson(sum(found), len(found)) for name, found in sorted(first.items())}


def self_consistency(comparisons: Iterable[Comparison]) -> dict[str, Rate]:
    """How often an annotator who saw a pair again repeated the first verdict (ties count)."""
    same: dict[str, list[bool]] = defaultdict(list)
    for group in by_pair(comparisons).values():
        firsts: dict[str, int] = {}
        for name, vote in _votes(group):
            if name in firsts:
                same[name].append(vote == firsts[name])
            else:
                firsts[name] = vote
    return {name: wilson(sum(found), len(found)) for name, found in sorted(same.items())}


def _votes(group: Sequence[Comparison]) -> list[tuple[str, int]]:
    answer = group[0].response_a
    return [(item.annotator, signed(item, answer)) for item in group]


def _clustered(hits: Sequence[int], trials: Sequence[int], draws: int) -> Rate:
    """A ratio of sums with a bootstrap interval over its clusters."""
    if not trials:
        return wilson(0, 0)
    hit, total = np.asarray(hits), np.asarray(trials)
    rows = np.random.default_rng(0).integers(len(total), size=(draws, len(total)))
    ratios = hit[rows].sum(axis=1) / total[rows].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Rate(float(hit.sum() / total.sum()), float(low), float(high), int(total.sum()))
