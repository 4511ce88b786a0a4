"""Which pairs to put before an adjudicator first.

By `votes`: the entropy of the judgements. By `posterior`: the entropy of the true label given who
said what (Dawid and Skene), which also finds the pair where one reliable person stands against two
careless ones, or where only careless ones agree. Both in [0, 1], 1 being three labels equally
likely. What one person judged is no disagreement: more votes are cheaper than an adjudicator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from feedback.aggregate import by_pair
from feedback.quality.dawid_skene import dawid_skene_pairs
from feedback.quality.votes import LABELS, label_votes
from feedback.schema import Comparison, Label, Text

Order = Literal["votes", "posterior"]
ORDERS: tuple[Order, ...] = get_args(Order)
# A posterior past it is settled: by the model its label is wrong less often than once in twenty.
BEYOND_DOUBT = 0.95


@dataclass(frozen=True)
class Disputed:
    """One pair and how disputed it is."""

    pair: str
    prompt: Text
    response_a: str
    response_b: str
    votes: Mapping[Label, int]  # each person's first judgement
    vote_entropy: float
    posterior_entropy: float | None  # None when ordered by votes


def disagreement_queue(
    comparisons: Iterable[Comparison],
    by: Order = "votes",
    *,
    done: Collection[str] = (),
    limit: int | None = None,
) -> list[Disputed]:
    """Disputed pairs, the most disputed first; ties go to the pair with more votes.

    Args:
        comparisons: judgements.
        by: what to order by. Pairs that one person judged are left out, by votes those of one mind
            too, and by posterior those of which one label is surer than `BEYOND_DOUBT`.
        done: ids of pairs that were adjudicated already.
        limit: how many at most.

    Raises:
        DataError: by posterior where no pair was judged by two people.
        ValueError: an unknown order, or a negative limit.
    """
    if by not in ORDERS:
        raise ValueError(f"by must be one of {ORDERS}, not {by!r}.")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be 0 or more, not {limit}.")
    groups = by_pair(comparisons)
    items = [item for group in groups.values() for item in group]
    said = Counter((pair, label) for pair, _, label in label_votes(items))
    doubt: dict[str, float] = {}
    if by == "posterior" and items:
        model = dawid_skene_pairs(items)
        doubt = {
            name: _entropy(row) for name, row in zip(model.items, model.posterior, strict=True)
        }
    queue = []
    for pair, group in groups.items():
        if pair in done:
            continue
        counts = {label: said[pair, label] for label in LABELS}
        first = group[0]
        queue.append(
            Disputed(
                pair=pair,
                prompt=first.prompt,
                response_a=first.response_a,
                response_b=first.response_b,
                votes=counts,
                vote_entropy=_entropy(list(counts.values())),
                posterior_entropy=doubt.get(pair),
            )
        )
    # Two labels at the threshold; with three the entropy is greater still, so none is lost.
    least = 0.0 if by == "votes" else _entropy([BEYOND_DOUBT, 1 - BEYOND_DOUBT])
    queue = [e for e in queue if sum(e.votes.values()) > 1 and _score(e, by) > least]
    queue.sort(key=lambda entry: (-_score(entry, by), -sum(entry.votes.values()), entry.pair))
    return queue[:limit]


def _score(entry: Disputed, by: Order) -> float:
    score = entry.vote_entropy if by == "votes" else entry.posterior_entropy
    return round(score or 0.0, 12)  # equal up to rounding is equal


def _entropy(weights: Iterable[float]) -> float:
    """Entropy of normalised weights over the three labels, in units of log 3."""
    shares = np.asarray(list(weights), dtype=np.float64)
    shares = shares[shares > 0] / shares.sum()
    return float(abs(-(shares * np.log(shares)).sum()) / np.log(len(LABELS)))
