"""What may be asked, what is believed of it, and what a strategy sees of both.

`Pool` holds the pairs, labelled or not; `Posterior` is what any `reward.posterior.RewardPosterior`
is; `View` is what a strategy reads: each member's margins, which pairs are free, and which are
asked already or chosen in this batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from feedback.acquisition.arrays import Array, Index, finite
from feedback.acquisition.design import information
from feedback.errors import DataError


class Posterior(Protocol):
    """A distribution over reward functions: `reward.posterior.RewardPosterior`, or alike."""

    def mean(self, features: Any, /) -> Any:
        """Mean score of each row, (B,)."""

    def std(self, features: Any, /) -> Any:
        """Deviation of each row's score, (B,)."""

    def sample(self, features: Any, n: int, seed: int = 0) -> Any:
        """Scores by n functions, (n, B); the same seed draws the same functions for all rows."""


@dataclass(frozen=True, eq=False)
class Pool:
    """N pairs. What a strategy does not use may be left out; one that misses it says so."""

    ids: Sequence[str]  # of the items, as in the store
    first: Any = None  # (N, F) features of the first answers, as the posterior reads them
    second: Any = None  # (N, F) of the second answers
    differences: ArrayLike | None = None  # (N, D) z: pooled states of first less second
    prompts: ArrayLike | None = None  # (N, E) embeddings of the prompts
    prompt_ids: Sequence[str] | None = None  # which pairs share a prompt: the holdout splits by it
    strata: Sequence[str] | None = None  # a group of each item: language, source, topic
    costs: ArrayLike | None = None  # (N,) work per item, in minutes or any unit; None: 1 each

    def __post_init__(self) -> None:
        count = len(self.ids)
        if len(set(self.ids)) < count:
            twice = Counter(self.ids).most_common(1)[0][0]
            raise DataError(f"the pool holds item {twice!r} twice. Fix: give each pair once.")
        if (self.first is None) != (self.second is None):
            raise DataError("the pool has features of one side only. Fix: give first and second.")
        for name in ("first", "second", "differences", "prompts", "prompt_ids", "strata", "costs"):
            given = getattr(self, name)
            if given is not None and len(given) != count:
                raise DataError(
                    f"the pool has {count} ids and {len(given)} rows of {name}. "
                    "Fix: one row for each id."
                )
        if self.costs is not None:
            costs = finite(self.costs, "costs", 1)
            if count and costs.min() <= 0:
                raise DataError(
                    f"the cost of item {self.ids[int(costs.argmin())]!r} is {costs.min()}; "
                    "a number > 0 is expected."
                )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def z(self) -> Array:
        """(N, D) feature differences.

        Raises:
            DataError: the pool has none.
        """
        if self.differences is None:
            raise DataError(
                "this strategy needs feature differences, and the pool has none. Fix: give "
                "differences=(N, D), pooled states of the first answers less the second. Scores "
                "of an ensemble are no such states."
            )
        return finite(self.differences, "differences", 2)

    @cached_property
    def embeddings(self) -> Array:
        """(N, E) of the prompts.

        Raises:
            DataError: the pool has none.
        """
        if self.prompts is None:
            raise DataError(
                "this strategy needs prompt embeddings, and the pool has none. Fix: give "
                "prompts=(N, E), such as feedback.acquisition.prompts.embed_texts makes."
            )
        return finite(self.prompts, "prompts", 2)

    @cached_property
    def cost(self) -> Array:
        """(N,) of the items."""
        return np.ones(len(self)) if self.costs is None else finite(self.costs, "costs", 1)

    def places(self, ids: Collection[str]) -> Index:
        """Places of these ids, in the pool's order.

        Raises:
            DataError: an id that the pool does not hold.
        """
        wanted = set(ids)
        missing = wanted - set(self.ids)
        if missing:
            raise DataError(
                f"item {min(missing)!r} is labelled and not in the pool ({len(missing)} such). "
                "Fix: keep labelled pairs in the pool; they are never asked again, and tell what "
                "is covered."
            )
        return np.array([i for i, one in enumerate(self.ids) if one in wanted], dtype=np.intp)


@dataclass(frozen=True, eq=False)
class View:
    """What a strategy reads. Arrays are over the whole pool; `free` says what may be chosen."""

    pool: Pool
    margins: Array  # (M, N) r(first) - r(second) by each member
    free: Index  # places that may be chosen
    taken: Index  # places labelled already, or chosen in this batch
    prior: float = 1.0  # precision of the last layer's prior

    @cached_property
    def members(self) -> Array:
        """(M, N) P(the first answer is better) by each member."""
        found: Array = expit(self.margins)
        return found

    @cached_property
    def p(self) -> Array:
        """(N,) the committee's."""
        return self.members.mean(axis=0)

    def precision(self) -> Array:
        """(D, D) of the last layer, given what is taken."""
        return information(self.pool.z[self.taken], self.p[self.taken], self.prior)

    def choose(self, places: Index) -> View:
        """The view once these places are chosen."""
        return self.narrow(np.setdiff1d(self.free, places), np.append(self.taken, places))

    def narrow(self, free: Index, taken: Index | None = None) -> View:
        """The view of fewer candidates."""
        found = replace(self, free=free, taken=self.taken if taken is None else taken)
        for name in ("members", "p"):  # the same margins: no need to compute them again
            if name in self.__dict__:
                found.__dict__[name] = self.__dict__[name]
        return found


def margins_of(pool: Pool, posterior: Posterior | ArrayLike, samples: int, seed: int) -> Array:
    """Each member's margins, (M, N).

    Args:
        pool: with `first` and `second`, unless margins are given.
        posterior: draws `samples` functions; or (M, N) margins of M members, or (N,) of one.
            For probabilities use `feedback.acquisition.arrays.to_margins`.
        samples: M, for a posterior that is drawn from.
        seed: of the draw.

    Raises:
        DataError: margins of another shape, no features to score, or what is neither a posterior
            nor an array.
    """
    if hasattr(posterior, "sample"):
        if pool.first is None:
            raise DataError(
                "the posterior scores features, and the pool has none. Fix: give first= and "
                "second=, or margins (M, N) in place of the posterior."
            )
        drawn = [
            finite(posterior.sample(side, samples, seed=seed), "the posterior's sample", 2)
            for side in (pool.first, pool.second)
        ]
        margins = drawn[0] - drawn[1]
    elif callable(posterior):
        raise DataError(
            f"{type(posterior).__name__} has no `sample`. Fix: give a RewardPosterior or margins."
        )
    else:
        margins = np.atleast_2d(finite(posterior, "margins", 1, 2))
    if margins.shape[1] != len(pool):
        raise DataError(
            f"margins have shape {margins.shape} for a pool of {len(pool)}; (M, {len(pool)}) is "
            "expected. Fix: one column for each pair, one row for each member."
        )
    return margins
