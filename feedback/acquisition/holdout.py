"""A part of the pool that no strategy touches, asked in random order: where accuracy is measured.

Accuracy on pairs that were chosen for being hard says nothing of the pool. So each item gets a
number u in [0, 1) that a keyed hash of its id (or its prompt's) decides: a permanent random number
(Ohlsson 1995). Items with u < fraction are held out for ever: strategies never see them, and
they are asked in the order of u / fraction, so at any time those that are labelled are a random
sample of the pool. Nothing is to be saved or lost: the same ids give the same holdout in every
process, and a pool may grow between rounds.

What was asked has a known chance of having been asked, its propensity, which
`feedback.acquisition.accuracy` needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feedback.acquisition.arrays import Array, Index
from feedback.acquisition.pool import Pool
from feedback.errors import DataError


@dataclass(frozen=True)
class Holdout:
    """A share of the pool; by stratum where some are to be measured more closely than others."""

    fraction: float | Mapping[str, float] = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        given = self.fraction
        for name, share in given.items() if isinstance(given, Mapping) else [("", given)]:
            if not 0 < share < 1:
                of = f" of stratum {name!r}" if name else ""
                raise DataError(
                    f"the holdout's fraction{of} is {share}; a share in (0, 1) is expected."
                )

    def fractions(self, pool: Pool) -> Array:
        """(N,) chance of each item to be held out.

        Raises:
            DataError: fractions are by stratum, and the pool has none, or one without a fraction.
        """
        if not isinstance(self.fraction, Mapping):
            return np.full(len(pool), self.fraction)
        if pool.strata is None:
            raise DataError(
                "the holdout's fractions are by stratum, and the pool has no strata. "
                "Fix: Pool(strata=...), or one fraction for all."
            )
        missing = {str(one) for one in pool.strata} - set(self.fraction)
        if missing:
            raise DataError(f"stratum {min(missing)!r} has no holdout fraction. Fix: give one.")
        return np.array([self.fraction[str(one)] for one in pool.strata])

    def keys(self, pool: Pool) -> Array:
        """(N,) u / fraction: held out where below 1, and asked in this order."""
        names = pool.ids if pool.prompt_ids is None else pool.prompt_ids
        return np.array([_uniform(f"{self.seed}|{name}") for name in names]) / self.fractions(pool)

    def held(self, pool: Pool) -> NDArray[np.bool_]:
        """(N,) whether an item is held out. Pairs of one prompt (`prompt_ids`) go together."""
        return self.keys(pool) < 1

    def draw(self, pool: Pool, k: int, labelled: Collection[str] = ()) -> Index:
        """Places of the next k items to ask, fewer when the holdout is used up."""
        keys = self.keys(pool)
        keys[pool.places(labelled)] = np.inf
        # Pairs of one prompt share a key: their order is by id, which is no more than a name.
        order = sorted(np.flatnonzero(keys < 1).tolist(), key=lambda i: (keys[i], pool.ids[i]))
        return np.array(order[:k], dtype=np.intp)

    def propensities(self, pool: Pool, labelled: Collection[str]) -> Array:
        """Chance of each held-out item to be among those labelled by now, (N,).

        fraction x labelled / held. It is for *all* labelled items of the holdout, of every round:
        use the newest, not what each round logged. NaN for items that are not held out, whose
        chance nobody knows.
        """
        held = self.held(pool)
        done = np.zeros(len(pool), dtype=bool)
        done[pool.places(labelled)] = True
        share = (done & held).sum() / max(int(held.sum()), 1)
        return np.where(held, self.fractions(pool) * share, np.nan)


def _uniform(name: str) -> float:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
