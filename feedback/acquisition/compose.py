"""Strategies made of strategies: `Mix`, `Epsilon`, `Diversify`, `Stratify`.

Each is called as any strategy is, so they nest, a `feedback.acquisition.budget.Budget` outside:
`Budget(Diversify(Mix(...)), 120.0)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from feedback.acquisition.arrays import Array, Index, chunks, top
from feedback.acquisition.budget import Budget
from feedback.acquisition.explore import epsilon_mix
from feedback.acquisition.geometry import directions
from feedback.acquisition.pool import View
from feedback.acquisition.strategies import Picks, Scorer, Strategy, points
from feedback.errors import DataError


@dataclass(frozen=True, eq=False)
class Mix:
    """The weighted mean of several scores' ranks, in [0, 1].

    Ranks, because nats, distances and cosines have no common unit. The reason is that of the part
    that counted most.
    """

    parts: Sequence[tuple[Scorer, float]]  # weights > 0

    def __post_init__(self) -> None:
        if not self.parts or min(weight for _, weight in self.parts) <= 0:
            raise DataError("a Mix is of at least one scorer, each with a weight > 0.")
        odd = [part for part, _ in self.parts if not isinstance(part, Scorer)]
        if odd:
            name = getattr(odd[0], "name", type(odd[0]).__name__)
            raise DataError(
                f"a Mix weighs scores of single items, and {name} chooses a batch together. "
                "Fix: Diversify or Stratify the mix instead."
            )

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The k greatest."""
        if not len(view.free):
            return Picks(view.free, np.zeros(0), ())
        raw = np.stack([part.score(view, rng) for part, _ in self.parts])
        weight = np.array([weight for _, weight in self.parts])
        share = (weight / weight.sum())[:, None] * ranks(raw)
        scores = share.sum(axis=0)
        places = top(scores, k, rng)
        most = share[:, places].argmax(axis=0)
        said = tuple(
            self.parts[m][0].why(view, int(view.free[place]), float(raw[m, place]))
            for m, place in zip(most, places, strict=True)
        )
        return Picks(view.free[places], scores[places], said)


def ranks(scores: Array) -> Array:
    """Ranks of each row in [0, 1], equal scores sharing theirs; (S, N)."""
    count = scores.shape[1]
    if count == 1:
        return np.ones_like(scores)
    found: Array = (rankdata(scores, axis=1) - 1) / (count - 1)
    return found


@dataclass(frozen=True, eq=False)
class Epsilon:
    """A scorer's best, but each place drawn evenly with chance `epsilon`."""

    scorer: Scorer
    epsilon: float = 0.1

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The picks, those drawn by chance last."""
        if not len(view.free):
            return Picks(view.free, np.zeros(0), ())
        scores = self.scorer.score(view, rng)
        places, lucky = epsilon_mix(scores, k, self.epsilon, rng)
        picks = self.scorer.picks(view, places, scores)
        said = [
            f"drawn at random to explore (chance {self.epsilon:.0%} a place)" if luck else why
            for why, luck in zip(picks.reasons, lucky, strict=True)
        ]
        return Picks(picks.index, picks.scores, tuple(said))


@dataclass(frozen=True, eq=False)
class Diversify:
    """No two of a batch alike: near-duplicates of what was chosen are passed over.

    Alike is a cosine of at least `similarity`; of feature differences its size counts, since a
    pair turned round is the same pair. Where too few different pairs are left, the batch is
    smaller. `labelled` passes over near-duplicates of labelled pairs as well.
    """

    strategy: Strategy
    similarity: float = 0.98
    on: str = "differences"  # or "prompts"
    labelled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise DataError(f"similarity is {self.similarity}; a cosine in (0, 1] is expected.")
        _refuse_budget(self.strategy, "Diversify")

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The picks; the strategy is asked again for each place that a near-duplicate lost."""
        where = points(view, self.on)
        if self.labelled:
            view = view.narrow(self._unlike(where, view.free, view.taken))
        kept: list[Picks] = []
        wanted = k
        while wanted > 0 and len(view.free):
            picks = self.strategy(view, wanted, rng)
            if not len(picks.index):
                break
            good: list[int] = []
            for place, item in enumerate(picks.index):
                so_far = picks.index[good]
                if len(self._unlike(where, np.array([item]), so_far)):
                    good.append(place)
            chosen = picks.index[good]
            kept.append(picks.at(good))
            wanted -= len(good)
            rest = self._unlike(where, np.setdiff1d(view.free, picks.index), chosen)
            view = view.choose(chosen).narrow(rest)
        return join(kept, view)

    def _unlike(self, where: Array, these: Index, chosen: Index) -> Index:
        """Those of `these` that are like none chosen."""
        if not len(chosen) or not len(these):
            return these
        towards = directions(where[chosen]).T
        keep = np.empty(len(these), dtype=bool)
        for rows in chunks(len(these)):  # no second copy of a great pool
            cosine = directions(where[these[rows]]) @ towards
            if self.on == "differences":
                cosine = np.abs(cosine)
            keep[rows] = cosine.max(axis=1) < self.similarity
        return these[keep]


@dataclass(frozen=True, eq=False)
class Stratify:
    """A share of the batch for each stratum of the pool, chosen by one strategy within each.

    `shares` are by stratum; None: as the candidates are divided. Rounded by largest remainders.
    What a stratum cannot fill goes to the others.
    """

    strategy: Strategy
    shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _refuse_budget(self.strategy, "Stratify")

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The picks, stratum by stratum."""
        if view.pool.strata is None:
            raise DataError("Stratify needs strata, and the pool has none. Fix: Pool(strata=...).")
        of = np.array([str(view.pool.strata[i]) for i in view.free], dtype=object)
        held = Counter(of.tolist())
        shares = self.shares if self.shares is not None else held
        unknown = set(shares) - {str(one) for one in view.pool.strata}
        if unknown:
            raise DataError(
                f"there is no stratum {min(unknown)!r} in the pool; there are "
                f"{', '.join(sorted({str(one) for one in view.pool.strata}))}."
            )
        kept: list[Picks] = []
        for name, count in quotas(shares, held, k).items():
            if count:
                picks = self.strategy(view.narrow(view.free[of == name]), count, rng)
                said = tuple(f"{why} (of stratum {name})" for why in picks.reasons)
                kept.append(Picks(picks.index, picks.scores, said, picks.annotators))
        return join(kept, view)


def quotas(shares: Mapping[str, float], held: Mapping[str, int], k: int) -> dict[str, int]:
    """K divided by shares with largest remainders, none above what is held.

    Raises:
        DataError: a negative share, or none above 0.
    """
    if min(shares.values(), default=0) < 0 or sum(shares.values()) <= 0:
        raise DataError("shares are numbers >= 0, one at least above 0.")
    found = dict.fromkeys(shares, 0)
    left = min(k, sum(held.get(name, 0) for name, share in shares.items() if share > 0))
    while left:
        room = {n: s for n, s in shares.items() if s > 0 and held.get(n, 0) > found[n]}
        total = sum(room.values())
        exact = {n: min(left * s / total, held[n] - found[n]) for n, s in room.items()}
        for name in room:
            found[name] += int(exact[name])
            left -= int(exact[name])
        rest = sorted(room, key=lambda n: (-(exact[n] % 1), n))
        for name in rest:
            if left and held[name] > found[name]:
                found[name] += 1
                left -= 1
    return found


def _refuse_budget(strategy: Strategy, outside: str) -> None:
    if isinstance(strategy, Budget):
        raise DataError(
            f"{outside} asks its strategy several times, and a Budget within it would be spent "
            f"each time. Fix: Budget({outside}(...), limit)."
        )


def join(parts: Sequence[Picks], view: View) -> Picks:
    """Picks one after the other."""
    if not parts:
        return Picks(view.free[:0], np.zeros(0), ())
    named = [p.annotators for p in parts]
    who = None if None in named else tuple(one for p in parts for one in p.annotators or ())
    return Picks(
        np.concatenate([p.index for p in parts]),
        np.concatenate([p.scores for p in parts]),
        tuple(why for p in parts for why in p.reasons),
        who,
    )
