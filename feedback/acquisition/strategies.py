"""Every way to choose, under one form: `strategy(view, k, rng) -> Picks`, each with its reason.

A strategy is any function of that form. `Scorer` makes one of a score for each item, `Batch` of a
function that chooses places together; `STRATEGIES` makes each of ours by name. The mathematics is
in the modules named in the imports, on plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from feedback.acquisition import change, committee, coverage, design, explore, prompts, reduction
from feedback.acquisition.arrays import Array, Index, top
from feedback.acquisition.pool import View
from feedback.acquisition.uncertainty import pair_uncertainty
from feedback.errors import DataError


@dataclass(frozen=True, eq=False)
class Picks:
    """Places in the order chosen, with what was thought of each."""

    index: Index  # (n,) of the pool
    scores: Array  # (n,)
    reasons: tuple[str, ...]
    annotators: tuple[str, ...] | None = None  # who is to judge each, where a `Budget` says so

    def at(self, places: Sequence[int]) -> Picks:
        """Some of the picks, in this order."""
        who = None if self.annotators is None else tuple(self.annotators[i] for i in places)
        chosen = np.array(places, dtype=np.intp)
        said = tuple(self.reasons[i] for i in places)
        return Picks(self.index[chosen], self.scores[chosen], said, who)


class Strategy(Protocol):
    """Chooses at most k of `view.free`."""

    def __call__(self, view: View, k: int, rng: np.random.Generator, /) -> Picks:
        """The picks; fewer than k where fewer are worth it."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """The k greatest scores; equal ones in an order that chance decides."""

    name: str
    score: Callable[[View, np.random.Generator], Array]  # (len(view.free),), greatest first
    why: Callable[[View, int, float], str]  # of one place and its score

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The k greatest."""
        if not len(view.free):
            return Picks(view.free, np.zeros(0), ())
        scores = self.score(view, rng)
        return self.picks(view, top(scores, k, rng), scores)

    def picks(self, view: View, places: Index, scores: Array) -> Picks:
        """Picks of these places within `view.free`."""
        index = view.free[places]
        own = scores[places]
        said = tuple(self.why(view, int(i), float(s)) for i, s in zip(index, own, strict=True))
        return Picks(index, own, said)


@dataclass(frozen=True, eq=False)
class Batch:
    """Places chosen together, each in the light of those before it."""

    name: str
    choose: Callable[[View, int, np.random.Generator], tuple[Index, Array]]  # within view.free
    why: Callable[[View, int, float], str]

    def __call__(self, view: View, k: int, rng: np.random.Generator) -> Picks:
        """The batch."""
        if not len(view.free):
            return Picks(view.free, np.zeros(0), ())
        places, scores = self.choose(view, k, rng)
        index = view.free[places]
        said = tuple(self.why(view, int(i), float(s)) for i, s in zip(index, scores, strict=True))
        return Picks(index, scores, said)


def random() -> Scorer:
    """Each item is as likely as any other: what a strategy has to beat."""
    return Scorer(
        "random",
        lambda view, rng: rng.permutation(len(view.free)).astype(np.float64),
        lambda view, i, s: "drawn at random, whatever the model thinks",
    )


def uncertainty() -> Scorer:
    """Entropy of the committee's mean; `feedback.acquisition.uncertainty`."""
    return Scorer(
        "uncertainty",
        lambda view, rng: pair_uncertainty(view.p[view.free]),
        lambda view, i, s: (
            f"the model is unsure: it gives the first answer {view.p[i]:.0%} (entropy {s:.3f} nats)"
        ),
    )


def vote_entropy() -> Scorer:
    """Whether the members' votes differ; `feedback.acquisition.committee`."""

    def why(view: View, i: int, s: float) -> str:
        votes = int((view.margins[:, i] > 0).sum())
        return f"{votes} of {len(view.margins)} members prefer the first answer"

    return Scorer("vote_entropy", lambda v, rng: committee.vote_entropy(v.members[:, v.free]), why)


def bald() -> Scorer:
    """Information about which member is right; `feedback.acquisition.committee`."""
    return Scorer("bald", lambda v, rng: committee.bald(v.members[:, v.free]), _disagree)


def gradient_length() -> Scorer:
    """Expected gradient length; `feedback.acquisition.change`."""
    return Scorer(
        "gradient_length",
        lambda v, rng: change.expected_gradient_length(v.pool.z[v.free], v.p[v.free]),
        lambda view, i, s: f"its label is expected to move the model far (gradient {s:.3f})",
    )


def error_reduction(others: int = 500, shortlist: int = 2000) -> Scorer:
    """Expected error reduction, over a random sample of the pool.

    Args:
        others: pairs that the model is to be sure of.
        shortlist: candidates scored, those of the greatest uncertainty; the rest get the least
            score found.
    """

    def score(view: View, rng: np.random.Generator) -> Array:
        margins = view.margins.mean(axis=0)
        sample = rng.permutation(len(view.pool))[:others]
        short = top(pair_uncertainty(view.p[view.free]), shortlist, rng)
        at = view.free[short]
        gains = reduction.expected_error_reduction(
            view.pool.z[at], margins[at], view.precision(), view.pool.z[sample], margins[sample]
        )
        found = np.full(len(view.free), gains.min() if len(gains) else 0.0)
        found[short] = gains
        return found

    return Scorer(
        "error_reduction",
        score,
        lambda view, i, s: (
            f"its label is expected to lower the pool's mean entropy by {s:.2g} nats"
        ),
    )


def d_optimal() -> Batch:
    """Greedy D-optimal design; `feedback.acquisition.design`."""
    return Batch(
        "d_optimal",
        lambda v, k, rng: design.greedy_d_optimal(v.pool.z[v.free], v.p[v.free], k, v.precision()),
        lambda view, i, s: (
            f"it points where labels are few: {s / 2:.3f} nats about the reward, beyond the pairs "
            "before it"
        ),
    )


def badge() -> Batch:
    """BADGE; `feedback.acquisition.change`."""
    return Batch(
        "badge",
        lambda v, k, rng: change.badge(v.pool.z[v.free], v.p[v.free], k, rng),
        lambda view, i, s: (
            f"its label would move the model as no other of the batch (distance {s**0.5:.3f})"
        ),
    )


def k_center(on: str = "differences") -> Batch:
    """Farthest from all that is labelled; `on` is `differences` or `prompts`."""
    return Batch(
        "k_center",
        lambda v, k, rng: coverage.k_center(
            points(v, on)[v.free], k, points(v, on)[v.taken] if len(v.taken) else None
        ),
        lambda view, i, s: (
            "nothing is labelled yet, and it lies in the middle of the pool"
            if np.isinf(s)
            else f"it is far from everything labelled (distance {s:.3f})"
        ),
    )


def k_means(on: str = "prompts") -> Batch:
    """The middle of each of k clusters."""

    def choose(view: View, k: int, rng: np.random.Generator) -> tuple[Index, Array]:
        places = coverage.k_means(points(view, on)[view.free], k, rng)
        return places, np.arange(len(places), 0, -1, dtype=np.float64)

    return Batch("k_means", choose, lambda v, i, s: "it is the middle of a cluster of the pool")


def typical(on: str = "prompts", neighbours: int = 20) -> Batch:
    """The most typical of each cluster that nobody has asked from (TypiClust)."""
    return Batch(
        "typical",
        lambda v, k, rng: coverage.typical(
            points(v, on)[v.free], k, rng, points(v, on)[v.taken], neighbours
        ),
        lambda view, i, s: "it is typical of a part of the pool that has no label yet",
    )


def density(on: str = "prompts") -> Scorer:
    """Mean cosine to the candidates; for a `Mix`."""
    return Scorer(
        "density",
        lambda v, rng: coverage.density(points(v, on)[v.free]),
        lambda view, i, s: f"many others are like it (mean cosine {s:.2f})",
    )


def bal_pm(beta: float = 0.01, neighbours: int = 5, dimension: float | None = None) -> Batch:
    """BALD and the entropy of the prompts asked; `feedback.acquisition.prompts`."""

    def choose(view: View, k: int, rng: np.random.Generator) -> tuple[Index, Array]:
        where = view.pool.embeddings
        return prompts.bal_pm(
            committee.bald(view.members[:, view.free]),
            where[view.free],
            k,
            beta=beta,
            asked=where[view.taken],
            neighbours=neighbours,
            dimension=dimension,
        )

    return Batch(
        "bal_pm",
        choose,
        lambda v, i, s: _disagree(v, i, s, number=False) + ", on a prompt unlike those asked",
    )


def power_bald(power: float = 1.0) -> Batch:
    """BALD with chance; `feedback.acquisition.explore`."""
    return Batch(
        "power_bald",
        lambda v, k, rng: explore.power_sample(committee.bald(v.members[:, v.free]), k, rng, power),
        lambda v, i, s: "drawn with chances as BALD: " + _disagree(v, i, s, number=False),
    )


STRATEGIES: dict[str, Callable[..., Scorer | Batch]] = {
    maker.__name__: maker
    for maker in (
        random,
        uncertainty,
        vote_entropy,
        bald,
        gradient_length,
        error_reduction,
        d_optimal,
        badge,
        k_center,
        k_means,
        typical,
        density,
        bal_pm,
        power_bald,
    )
}


def points(view: View, on: str) -> Array:
    """(N, D) of the pool: its `differences` or its `prompts`.

    Raises:
        DataError: another name, or the pool has none.
    """
    if on not in ("differences", "prompts"):
        raise DataError(f"on is {on!r}; 'differences' or 'prompts' is expected.")
    return view.pool.z if on == "differences" else view.pool.embeddings


def _disagree(view: View, i: int, s: float, number: bool = True) -> str:
    said = view.members[:, i]
    told = f" ({s:.3f} nats to learn)" if number else ""
    return f"the members disagree: {said.min():.0%} to {said.max():.0%} for the first answer{told}"
