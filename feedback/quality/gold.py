"""Hidden gold questions: pairs whose answer was known before anybody was asked.

Nothing in a task tells them from others. They are adjudications that are older than every label of
their pair; adjudications made later settle what people disagreed on, which are the hard pairs, and
holding people to those would be unfair.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from feedback.aggregate import by_pair, signed
from feedback.schema import Comparison, Label

_NAMES: dict[int, Label] = {1: "a", 0: "tie", -1: "b"}


def gold_answers(
    adjudications: Iterable[Comparison], comparisons: Iterable[Comparison]
) -> dict[str, Label]:
    """The right label by pair id, for `annotator_quality`.

    Args:
        adjudications: what was settled; of several on a pair the first counts.
        comparisons: annotators' judgements. Labels speak of a pair's `response_a` as it was first
            seen here.
    """
    groups = by_pair(comparisons)
    gold: dict[str, Label] = {}
    for pair, settled in by_pair(adjudications).items():
        known = min(settled, key=_moment)
        judged = groups.get(pair, [])
        if all(_moment(known) < _moment(one) for one in judged):
            answer = judged[0].response_a if judged else known.response_a
            gold[pair] = _NAMES[signed(known, answer)]
    return gold


def _moment(comparison: Comparison) -> datetime:
    return comparison.created_at
