"""Money: items ranked by what they give per cost, and as many as a sum buys.

The cost of an item (`Pool.costs`) is work in any unit, such as minutes of reading; an annotator's
price is per unit. Leaves out that one person may judge better than another: that is for
`feedback.quality.annotators` to find, and for the price to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feedback.acquisition.arrays import Array
from feedback.acquisition.pool import View
from feedback.acquisition.strategies import Picks, Scorer, Strategy
from feedback.errors import DataError


def per_cost(scorer: Scorer) -> Scorer:
    """The same score for each unit of an item's cost: two cheap pairs may win over a dear one.

    Raises:
        DataError: when it is asked and a score is negative, which per cost means nothing.
    """

    def score(view: View, rng: np.random.Generator) -> Array:
        found = scorer.score(view, rng)
        if len(found) and found.min() < 0:
            raise DataError(
                f"{scorer.name} gives {found.min():.4g}, and a negative score per cost means "
                "nothing. Fix: a score that is >= 0, such as bald or uncertainty."
            )
        return found / view.pool.cost[view.free]

    def why(view: View, i: int, s: float) -> str:
        cost = float(view.pool.cost[i])
        return f"{scorer.why(view, i, s * cost)}, at a cost of {cost:g}"

    return Scorer(f"{scorer.name} per cost", score, why)


@dataclass(frozen=True)
class Annotator:
    """One person, or one kind of judge."""

    name: str
    price: float  # per unit of an item's cost: a minute, say
    capacity: float = math.inf  # units they can take on


@dataclass(frozen=True, eq=False)
class Budget:
    """As much of a strategy's batch as a sum buys; the outermost of what strategies are made of.

    Each item goes to the cheapest annotator who has room for it. Items that do not fit are passed
    over for those that come next, up to twice as many as were asked for.
    """

    strategy: Strategy
    limit: float
    annotators: Sequence[Annotator] = (Annotator("anyone", 1.0),)

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise DataError(f"limit is {self.limit}; a sum > 0 is expected.")
        if not self.annotators:
            raise DataError("a Budget needs at least one annotator.")
        names = [one.name for one in self.annotators]
        for one in self.annotators:
            if not (one.price >= 0 and one.capacity > 0) or names.count(one.name) > 1:
                raise DataError(
                    f"annotator {one.name!r} has price {one.price} and capacity {one.capacity}; a "
                    "price >= 0, a capacity > 0 and a name of their own are expected."
                )

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The picks, each with its annotator."""
        picks = self.strategy(view, min(2 * k, max(len(view.free), 1)), rng)
        good, who = self.assign(view.pool.cost[picks.index], k)
        kept = picks.at(good)
        return Picks(kept.index, kept.scores, kept.reasons, tuple(who))

    def assign(self, costs: Array, k: int) -> tuple[list[int], list[str]]:
        """Which of these items are bought, at most k, and who judges each.

        Args:
            costs: (n,) in the order of what is wanted most.
            k: at most so many.
        """
        people = sorted(self.annotators, key=lambda one: one.price)
        room = {one.name: one.capacity for one in people}
        money = self.limit
        good: list[int] = []
        who: list[str] = []
        for place, cost in enumerate(costs.tolist()):
            if len(good) == k:
                break
            able = [p for p in people if room[p.name] >= cost and p.price * cost <= money + 1e-9]
            if able:
                good.append(place)
                who.append(able[0].name)
                room[able[0].name] -= cost
                money -= able[0].price * cost
        return good, who
