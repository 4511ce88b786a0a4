"""P(response_a is the better answer) of every pair, from its judgements.

Three methods: `majority` says 1, 0 or one half; `votes` is the share of the votes; `dawid-skene`
weighs each person by the reliability that Dawid and Skene's model finds. A tie is half a vote for
either side. Ready for `reward.preferences`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from feedback.aggregate import aggregate
from feedback.quality.dawid_skene import dawid_skene_pairs
from feedback.schema import Comparison

SoftMethod = Literal["majority", "votes", "dawid-skene"]


def soft_labels(
    comparisons: Iterable[Comparison], method: SoftMethod = "votes"
) -> dict[str, float]:
    """P(a better) by pair id, in [0, 1]; `a` is the first seen `response_a` of the pair.

    Args:
        comparisons: judgements; position is undone in them already. `dawid-skene` takes each
            person's first judgement of a pair, the other two every judgement.
        method: see the module.

    Raises:
        DataError: `dawid-skene` where no pair was judged by two people.
        ValueError: an unknown method.
    """
    items = list(comparisons)
    if method == "dawid-skene":
        if not items:
            return {}
        found = dawid_skene_pairs(items).posteriors()
        return {pair: min(p["a"] + p["tie"] / 2, 1.0) for pair, p in found.items()}
    if method not in get_args(SoftMethod):
        raise ValueError(f"method must be one of {get_args(SoftMethod)}, not {method!r}.")
    shares = {verdict.pair: verdict.share_a for verdict in aggregate(items)}
    if method == "votes":
        return shares
    return {pair: _side(share) for pair, share in shares.items()}


def _side(share: float) -> float:
    return 0.5 if share == 0.5 else float(share > 0.5)
