"""One round of asking: what to ask, why, and what of it is the random holdout.

    selection = Acquirer(bald()).select(pool, posterior, 100, rng, labelled=asked)

Of k items a share is drawn from the holdout, by `feedback.acquisition.holdout`; the strategy
chooses the rest among what is neither labelled nor held out, with near-duplicates passed over.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from feedback.acquisition.arrays import Array, Index, check_count
from feedback.acquisition.budget import Budget
from feedback.acquisition.compose import Diversify
from feedback.acquisition.holdout import Holdout
from feedback.acquisition.pool import Pool, Posterior, View, margins_of
from feedback.acquisition.strategies import Picks, Strategy
from feedback.errors import DataError


@dataclass(frozen=True, eq=False)
class Selection:
    """What to ask, the holdout's items first; order them for people by `shuffled`."""

    ids: tuple[str, ...]
    scores: Array  # (n,) the strategy's own; NaN for the holdout's
    reasons: tuple[str, ...]  # why each was asked
    propensities: Array  # (n,) chance to have been asked by now; NaN where a strategy chose
    annotators: Mapping[str, str] = field(default_factory=dict)  # by id, where a Budget assigned
    note: str = ""  # why there are fewer than were asked for

    @property
    def held(self) -> tuple[str, ...]:
        """Ids of the holdout: never train on them."""
        known = zip(self.ids, self.propensities, strict=True)
        return tuple(one for one, chance in known if not math.isnan(chance))

    @property
    def chosen(self) -> tuple[str, ...]:
        """Ids that the strategy chose: train on them, and measure nothing."""
        known = zip(self.ids, self.propensities, strict=True)
        return tuple(one for one, chance in known if math.isnan(chance))

    def shuffled(self, rng: np.random.Generator) -> tuple[str, ...]:
        """All ids in random order, so that nobody can tell the two kinds apart."""
        return tuple(self.ids[i] for i in rng.permutation(len(self.ids)))

    def rows(self) -> list[dict[str, Any]]:
        """One JSON object for each item, for a journal or a report."""
        return [
            {
                "id": one,
                "score": None if math.isnan(score) else float(score),
                "reason": why,
                "propensity": None if math.isnan(chance) else float(chance),
                "annotator": self.annotators.get(one),
            }
            for one, score, why, chance in zip(
                self.ids, self.scores, self.reasons, self.propensities, strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class Acquirer:
    """A strategy with its holdout; the same arguments and generator give the same selection."""

    strategy: Strategy
    holdout: Holdout | None = field(default_factory=Holdout)  # None: accuracy cannot be measured
    holdout_share: float = 0.1  # of each selection, rounded up
    similarity: float | None = 0.98  # of near-duplicates (`Diversify`); None lets them in
    samples: int = 16  # functions drawn from a posterior
    prior: float = 1.0  # precision of the last layer, for D-optimal and error reduction

    def __post_init__(self) -> None:
        if not 0 < self.holdout_share < 1:
            raise DataError(
                f"holdout_share is {self.holdout_share}; a share in (0, 1) is expected. "
                "Fix: holdout=None gives up measuring accuracy."
            )
        check_count(self.samples, "samples")

    def select(
        self,
        pool: Pool,
        posterior: Posterior | ArrayLike,
        k: int,
        rng: np.random.Generator,
        labelled: Collection[str] = (),
    ) -> Selection:
        """Choose what to ask next.

        Args:
            pool: all pairs, labelled ones too.
            posterior: any `reward.posterior.RewardPosterior`, or margins (M, N) of M members.
            k: how many to ask.
            rng: decides ties, draws and the posterior's samples.
            labelled: ids that were asked already, chosen or held out.

        Returns:
            At most k items; `note` says why there are fewer.

        Raises:
            DataError: the pool or the posterior does not fit, or lacks what the strategy needs.
        """
        check_count(k)
        margins = margins_of(pool, posterior, self.samples, int(rng.integers(2**31)))
        done = pool.places(labelled)
        free = np.ones(len(pool), dtype=bool)
        free[done] = False
        drawn: Index = np.zeros(0, dtype=np.intp)
        trained = done
        if self.holdout is not None:
            held = self.holdout.held(pool)
            drawn = self._drawn(pool, k, labelled)
            free &= ~held
            trained = done[~held[done]]  # the model has not learnt from the holdout's labels
        view = View(pool, margins, np.flatnonzero(free), trained, self.prior)
        picks = self._chosen(view, k - len(drawn), drawn, rng)
        chances = np.full(len(drawn) + len(picks.index), np.nan)
        if self.holdout is not None and len(drawn):
            asked = {*labelled, *(pool.ids[int(i)] for i in drawn)}
            chances[: len(drawn)] = self.holdout.propensities(pool, asked)[drawn]
        places = np.concatenate([drawn, picks.index])
        ids = tuple(pool.ids[int(i)] for i in places)
        told = tuple(
            f"drawn at random for the holdout, to measure accuracy (chance {chance:.2%} so far)"
            for chance in chances[: len(drawn)]
        )
        who = self._assigned(pool, places)
        return Selection(
            ids,
            np.concatenate([np.full(len(drawn), np.nan), picks.scores]),
            told + picks.reasons,
            chances,
            dict(zip(ids, who, strict=True)) if who else {},
            self._note(k, len(ids), len(view.free) - len(picks.index)),
        )

    def _drawn(self, pool: Pool, k: int, labelled: Collection[str]) -> Index:
        """The holdout's next items, as far as the budget goes."""
        if self.holdout is None:
            return np.zeros(0, dtype=np.intp)
        drawn = self.holdout.draw(pool, math.ceil(self.holdout_share * k), labelled)
        if isinstance(self.strategy, Budget):
            # To pass over a dear one would leave a sample of the cheap: the draw ends there.
            bought, _ = self.strategy.assign(pool.cost[drawn], len(drawn))
            whole = [place for place, item in enumerate(bought) if place == item]
            drawn = drawn[: len(whole)]
        return drawn

    def _chosen(self, view: View, k: int, drawn: Index, rng: np.random.Generator) -> Picks:
        """What the strategy chooses beside the holdout's items."""
        if k < 1 or not len(view.free):
            return Picks(view.free[:0], np.zeros(0), ())
        budget = self.strategy if isinstance(self.strategy, Budget) else None
        strategy = budget.strategy if budget else self.strategy
        on = "differences" if view.pool.differences is not None else "prompts"
        if self.similarity is not None and (on == "differences" or view.pool.prompts is not None):
            strategy = Diversify(strategy, self.similarity, on)
        if budget is None:
            return strategy(view, k, rng)
        picks = strategy(view, 2 * k, rng)
        both = np.concatenate([drawn, picks.index])
        bought, _ = budget.assign(view.pool.cost[both], len(drawn) + k)
        return picks.at([place - len(drawn) for place in bought if place >= len(drawn)])

    def _assigned(self, pool: Pool, places: Index) -> list[str]:
        if not isinstance(self.strategy, Budget):
            return []
        return self.strategy.assign(pool.cost[places], len(places))[1]

    def _note(self, k: int, n: int, left: int) -> str:
        if n == k:
            return ""
        if not left:
            return f"{n} of {k}: every pair that may be chosen is."
        budget = ", or the budget ends there" if isinstance(self.strategy, Budget) else ""
        return f"{n} of {k}: the {left} others are near-duplicates of these{budget}."
