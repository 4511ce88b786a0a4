"""A round's questions: which, in which order, and why.

The holdout's pairs are always among them, drawn at random and put at random places in the queue, so
that nobody can tell them from the others. What a prompt's pairs have in common (its holdout, its
rankings) goes by the prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.active.belief import Belief
from align.active.pool import PairPool
from align.active.said import Said
from align.active.worth import MOST, better_kind, ranking_information, seconds_of
from align.data.rows import plain_text
from align.errors import ConfigError, Problem
from feedback.acquisition import (
    Acquirer,
    Annotator,
    Budget,
    Holdout,
    Pool,
    Scorer,
    Selection,
    Strategy,
    build_pairs,
)
from feedback.acquisition.committee import bald
from feedback.acquisition.prompts import embed_texts

Row = dict[str, Any]


@dataclass(frozen=True)
class Chooser:
    """How a round is chosen; the same arguments and generator choose the same."""

    strategy: Strategy
    first: Strategy  # while there is no belief
    holdout: Holdout
    batch: int = 50
    holdout_share: float = 0.1
    similarity: float | None = 0.98
    cost: str = "one"  # or "reading"
    budget: float | None = None
    people: tuple[Annotator, ...] = ()
    build: str = "all"  # or a rule of `feedback.acquisition.duels`
    rankings: bool = False

    def held(self, pool: PairPool) -> set[str]:
        """Ids of the pairs that are never trained on."""
        mask = self.holdout.held(pool.names())
        return {pair.id for pair, out in zip(pool.pairs, mask, strict=True) if out}

    def __call__(
        self,
        pool: PairPool,
        belief: Belief | None,
        asked: Collection[str],
        said: Said,
        rng: np.random.Generator,
        batch: int | None = None,
    ) -> dict[str, Any]:
        """Choose what to ask next.

        Args:
            pool: all pairs.
            belief: of the newest model; None before there is one.
            asked: ids of the pairs that were asked, or answered, already.
            said: what people said so far, and how long it took them.
            rng: decides draws and ties.
            batch: at most so many questions; None: the chooser's own.

        Returns:
            `rows` in the order of asking, each with its `reason`; `kind`, `why` that kind, and
            `note` where there are fewer than a batch.

        Raises:
            DataError: the strategy lacks what it needs.
        """
        selection, places = self._pairs(pool, belief, asked, rng, batch or self.batch)
        rows = [_pair_row(pool, *one) for one in _listed(selection)]
        drawn = [row for row in rows if row["held"]]
        chosen = [row for row in rows if not row["held"]]
        kind, why = "pair", ""
        if self.rankings and belief is not None and chosen:
            kind, why, ranked = self._rankings(pool, belief, asked, said, len(chosen), rng)
            chosen = ranked if kind == "ranking" else chosen
        chosen.sort(key=lambda row: -row["score"])
        queue = _mixed_in(chosen, drawn, rng)
        for place, row in enumerate(queue):
            row["queue"] = len(queue) - place  # the greatest is asked first
        free = len(places) - len(rows)
        return {"rows": queue, "kind": kind, "why": why, "note": selection.note, "left": free}

    def _pairs(
        self,
        pool: PairPool,
        belief: Belief | None,
        asked: Collection[str],
        rng: np.random.Generator,
        batch: int,
    ) -> tuple[Selection, list[int]]:
        places = list(range(len(pool.pairs)))
        if self.build != "all" and belief is not None:
            places = self._built(pool, belief, asked, rng)
        differences = None if belief is None else belief.differences(pool)
        candidates = pool.acquisition(places, differences, self.cost)
        nothing = np.zeros((1, len(places)))
        margins = nothing if belief is None else belief.margins(pool)[:, places]
        strategy = self.first if belief is None else self.strategy
        if self.budget is not None:
            people = self.people or (Annotator("anyone", 1.0),)
            strategy = Budget(strategy, self.budget, people)
        acquirer = Acquirer(
            strategy,
            self.holdout,
            self.holdout_share,
            self.similarity,
            prior=1.0 if belief is None else belief.prior,
        )
        done = [pool.pairs[i].id for i in places if pool.pairs[i].id in asked]
        return acquirer.select(candidates, margins, batch, rng, done), places

    def _built(
        self, pool: PairPool, belief: Belief, asked: Collection[str], rng: np.random.Generator
    ) -> list[int]:
        """Places of what is asked already, of the holdout, and of one pair of each other prompt."""
        held = self.held(pool)
        kept = {pair.id for pair in pool.pairs if pair.id in asked or pair.id in held}
        groups = range(len(pool.groups))
        picked = build_pairs([belief.rewards(pool, group) for group in groups], self.build, rng)
        wanted = {(n, min(two), max(two)) for n, two in zip(groups, picked, strict=True)}
        return [
            place
            for place, pair in enumerate(pool.pairs)
            if pair.id in kept or (pair.group, pair.first, pair.second) in wanted
        ]

    def _rankings(
        self,
        pool: PairPool,
        belief: Belief,
        asked: Collection[str],
        said: Said,
        count: int,
        rng: np.random.Generator,
    ) -> tuple[str, str, list[Row]]:
        """The kind that is worth more, why, and the best rankings."""
        barred = {*self.held(pool), *asked}
        touched = {pool.pairs[pool.place[name]].group for name in barred if name in pool.place}
        sizes = [len(group.answers) for group in pool.groups]
        own = Counter(pair.group for pair in pool.pairs)
        able = [
            n
            for n, size in enumerate(sizes)
            # A group that shares pairs with another would have them asked twice.
            if 3 <= size <= MOST and own[n] == size * (size - 1) // 2 and n not in touched
        ]
        if not able:
            return "pair", "pairs: no prompt with three to six answers is untouched", []
        size = max({sizes[n] for n in able}, key=lambda k: sum(sizes[n] == k for n in able))
        able = [n for n in able if sizes[n] == size]
        told = {n: ranking_information(belief.rewards(pool, n)) for n in able}
        free = [pair for pair in pool.pairs if pair.group not in touched]
        margins = belief.margins(pool)[:, [pool.place[pair.id] for pair in free]]
        best: dict[int, float] = {}
        for pair, nats in zip(free, bald(1 / (1 + np.exp(-margins))), strict=True):
            best[pair.group] = max(best.get(pair.group, 0.0), float(nats))
        worth = better_kind(list(best.values()), list(told.values()), size, count, said.times)
        if worth.kind == "pair":
            return "pair", worth.reason, []
        pair_seconds, _ = seconds_of("pair", said.times, size)
        ranking_seconds, _ = seconds_of("ranking", said.times, size)
        room = max(1, int(count * pair_seconds / ranking_seconds))
        scorer = Scorer(
            "ranking",
            lambda view, rng: np.array([told[able[int(i)]] for i in view.free]),
            lambda view, i, s: f"the order of its {size} answers tells {s:.3f} nats",
        )
        groups = [pool.groups[n] for n in able]
        vectors = embed_texts([plain_text(group.prompt) for group in groups])
        names = [pool.ranking_id(n) for n in able]
        question = Pool(ids=names, prompts=vectors)
        picked = Acquirer(scorer, None, similarity=self.similarity).select(
            question, np.zeros((1, len(able))), room, rng
        )
        rows = []
        for name, score, reason in zip(picked.ids, picked.scores, picked.reasons, strict=True):
            group = able[names.index(name)]
            pairs = [pair.id for pair in pool.pairs if pair.group == group]
            rows.append(
                _row(name, "ranking", group, range(size), pairs, float(score), reason, None, None)
            )
        return "ranking", worth.reason, rows


def check_pool(pool: PairPool, holdout: Holdout) -> None:
    """Refuse a pool that has nothing to choose from, or nothing to measure on.

    Raises:
        ConfigError: fewer than two held-out prompts, or no other pair.
    """
    mask = holdout.held(pool.names())
    prompts = {key for key, out in zip(pool.keys, mask, strict=True) if out}
    if len(prompts) < 2:
        what = f"{holdout.fraction:g} of {len(set(pool.keys))} prompts holds {len(prompts)} out."
        raise ConfigError([Problem("acquisition.holdout", what, "raise it, or give more prompts.")])
    if mask.all():
        what = f"{holdout.fraction:g} holds every pair out."
        raise ConfigError([Problem("acquisition.holdout", what, "lower it.")])


def least_sure(pool: PairPool, belief: Belief, barred: Collection[str], count: int) -> list[int]:
    """Groups whose pairs the members disagree on most, one for each prompt.

    Args:
        pool: all pairs.
        belief: of the newest model.
        barred: ids of pairs whose prompts are left alone: the holdout.
        count: how many prompts.
    """
    told = bald(1 / (1 + np.exp(-belief.margins(pool))))
    sums: dict[str, list[float]] = {}
    where: dict[str, int] = {}
    for pair, key, nats in zip(pool.pairs, pool.keys, told, strict=True):
        if pair.id not in barred:
            sums.setdefault(key, []).append(float(nats))
            where.setdefault(key, pair.group)
    mean = {key: sum(found) / len(found) for key, found in sums.items()}
    order = sorted(mean, key=lambda key: (-mean[key], key))
    return [where[key] for key in order[:count]]


def _listed(selection: Selection) -> list[tuple[str, float, str, float, str | None]]:
    names = [selection.annotators.get(one) for one in selection.ids]
    rows = zip(
        selection.ids,
        selection.scores.tolist(),
        selection.reasons,
        selection.propensities.tolist(),
        names,
        strict=True,
    )
    return list(rows)


def _pair_row(
    pool: PairPool, name: str, score: float, reason: str, chance: float, person: str | None
) -> Row:
    pair = pool.pairs[pool.place[name]]
    held = None if math.isnan(chance) else chance
    places = (pair.first, pair.second)
    return _row(name, "pair", pair.group, places, [name], score, reason, held, person)


def _row(
    name: str,
    kind: str,
    group: int,
    places: Sequence[int],
    pairs: list[str],
    score: float,
    reason: str,
    chance: float | None,
    person: str | None,
) -> Row:
    return {
        "id": name,
        "kind": kind,
        "group": group,
        "places": list(places),
        "pairs": pairs,
        "score": None if math.isnan(score) else score,
        "reason": reason,
        "held": chance is not None,
        "propensity": chance,
        "annotator": person,
    }


def _mixed_in(chosen: list[Row], drawn: list[Row], rng: np.random.Generator) -> list[Row]:
    """The chosen in their order, the drawn ones at random places among them."""
    total = len(chosen) + len(drawn)
    places = set(rng.permutation(total)[: len(drawn)].tolist())
    given, random = iter(chosen), iter([drawn[i] for i in rng.permutation(len(drawn))])
    return [next(random) if place in places else next(given) for place in range(total)]
