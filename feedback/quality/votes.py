"""Votes as plain triples, and as the integer arrays that the coefficients count with.

A vote is (item, annotator, label). Judgements become votes about the pair's first seen
`response_a`; a person's repeats are left to self-consistency, so one vote per person and pair
stays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feedback.aggregate import by_pair, signed
from feedback.errors import DataError
from feedback.schema import Comparison, Label

Vote = tuple[str, str, Hashable]  # item, annotator, label

LABELS: tuple[Label, ...] = ("a", "tie", "b")
LEVELS = (-2, -1, 0, 1, 2)  # from "b is much better" to "a is much better"
_NAMES: dict[int, Label] = {1: "a", 0: "tie", -1: "b"}


@dataclass(frozen=True)
class VoteTable:
    """Votes as indices; row v says that `annotator[v]` gave `item[v]` the label `label[v]`."""

    items: tuple[str, ...]  # N names, first seen first
    annotators: tuple[str, ...]  # K names, sorted
    labels: tuple[Hashable, ...]  # L values, in the order asked for
    item: NDArray[np.intp]  # (V,)
    annotator: NDArray[np.intp]  # (V,)
    label: NDArray[np.intp]  # (V,)

    def counts(self) -> NDArray[np.float64]:
        """How often each item got each label, shape (N, L)."""
        shape = (len(self.items), len(self.labels))
        cells = np.bincount(self.item * shape[1] + self.label, minlength=shape[0] * shape[1])
        return cells.reshape(shape).astype(np.float64)


def label_votes(comparisons: Iterable[Comparison]) -> list[Vote]:
    """Each person's first judgement of each pair as `a`, `tie` or `b`."""
    return [(pair, name, _NAMES[sign]) for pair, name, sign, _ in _firsts(comparisons)]


def level_votes(comparisons: Iterable[Comparison]) -> list[Vote]:
    """Each person's first judgement of each pair as a level of `LEVELS`, from label and strength.

    A strength beyond 2 counts as 2 and a better answer's strength of 0 as 1.
    """
    return [
        (pair, name, sign * min(max(item.strength, 1), 2))
        for pair, name, sign, item in _firsts(comparisons)
    ]


def vote_table(
    votes: Iterable[Vote], labels: Sequence[Hashable] | None = None, *, once: bool = False
) -> VoteTable:
    """Votes as indices.

    Args:
        votes: (item, annotator, label) triples.
        labels: every label there is, in order; default: those that occur, sorted by their text.
        once: refuse a second vote of one annotator on one item.

    Raises:
        DataError: a label is not among `labels`, or a vote is repeated where it may not be.
    """
    rows = list(votes)
    domain = tuple(labels) if labels is not None else tuple(sorted({v[2] for v in rows}, key=str))
    items = {name: i for i, name in enumerate(dict.fromkeys(vote[0] for vote in rows))}
    people = {name: i for i, name in enumerate(sorted({vote[1] for vote in rows}))}
    codes = {label: i for i, label in enumerate(domain)}
    seen: set[tuple[str, str]] = set()
    for name, person, label in rows:
        if label not in codes:
            raise DataError(
                f"annotator {person!r} gave item {name!r} the label {label!r}, which is none of "
                f"{list(domain)}. Fix: name every label in `labels`."
            )
        if once and (name, person) in seen:
            raise DataError(
                f"annotator {person!r} voted twice on item {name!r}, and agreement with oneself is "
                "no agreement. Fix: keep one vote, as label_votes() does."
            )
        seen.add((name, person))
    return VoteTable(
        items=tuple(items),
        annotators=tuple(people),
        labels=domain,
        item=np.array([items[vote[0]] for vote in rows], dtype=np.intp),
        annotator=np.array([people[vote[1]] for vote in rows], dtype=np.intp),
        label=np.array([codes[vote[2]] for vote in rows], dtype=np.intp),
    )


def _firsts(comparisons: Iterable[Comparison]) -> list[tuple[str, str, int, Comparison]]:
    found = []
    for pair, group in by_pair(comparisons).items():
        answer = group[0].response_a
        firsts: dict[str, Comparison] = {}
        for item in group:
            firsts.setdefault(item.annotator, item)
        found += [(pair, name, signed(item, answer), item) for name, item in firsts.items()]
    return found
