"""Pseudo-labels in the proportions of people's: a model's leanings are not to grow by themselves.

A reward model that likes long answers is surest where the longer one wins, so its sure labels teach
it to like them more. Each label falls into a group of every dimension (the class of its prompt,
which answer stands first, whether the longer one won), and no group may take much more than the
share that it has in people's labels; distribution alignment, as in ReMixMatch (Berthelot et al.
2020, arXiv 1911.09785), by leaving labels out instead of by bending them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

Shares = Mapping[Hashable, float]


def shares_of(groups: Sequence[Hashable], weights: Sequence[float] | None = None) -> Shares:
    """The share of each group; none of nothing."""
    total: Counter[Hashable] = Counter()
    for group, weight in zip(groups, weights or [1.0] * len(groups), strict=True):
        total[group] += weight  # type: ignore[assignment]
    whole = sum(total.values())
    return {group: count / whole for group, count in total.items()} if whole else {}


def quotas(counts: Mapping[Hashable, int], shares: Shares, slack: float) -> dict[Hashable, int]:
    """The most that may be kept of each group, so that none exceeds (1 + slack) times its share.

    The greatest counts with n_g <= (1 + slack) * share_g * sum of n: a smaller total allows less,
    so taking away until nothing changes finds them. Where one group is missing altogether and the
    slack does not cover it, nothing may be kept: labels that all say one thing teach that thing.

    Args:
        counts: labels at hand, by group.
        shares: what each group's share should be; a group that is not named has none.
        slack: 0 or more.
    """
    kept = dict(counts)
    while True:
        total = sum(kept.values())
        less = {
            group: min(count, math.floor((1 + slack) * shares.get(group, 0.0) * total + 1e-9))
            for group, count in kept.items()
        }
        if less == kept:
            return kept
        kept = less


def balanced(
    dimensions: Sequence[Sequence[Hashable]],
    shares: Sequence[Shares],
    certainty: Sequence[float] | np.ndarray,
    slack: float = 0.25,
) -> list[int]:
    """Which labels to keep, so that every dimension has the proportions asked for.

    Args:
        dimensions: D dimensions, each with the group of all n labels.
        shares: D times what the groups' shares should be.
        certainty: (n,) the least certain go first; of equal ones the later.
        slack: see `quotas`.

    Returns:
        Places, rising.

    Raises:
        ValueError: lengths that differ, or a negative slack.
    """
    n = len(certainty)
    if len(dimensions) != len(shares) or any(len(one) != n for one in dimensions) or slack < 0:
        raise ValueError("one group of each dimension for each label, and no negative slack.")
    kept = sorted(range(n), key=lambda place: (-certainty[place], place))
    while True:
        before = len(kept)
        for groups, wanted in zip(dimensions, shares, strict=True):
            most = quotas(Counter(groups[place] for place in kept), wanted, slack)
            taken: Counter[Hashable] = Counter()
            held = []
            for place in kept:
                if taken[groups[place]] < most[groups[place]]:
                    taken[groups[place]] += 1
                    held.append(place)
            kept = held
        if len(kept) == before:
            return sorted(kept)
