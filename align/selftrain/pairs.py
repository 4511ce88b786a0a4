"""A pool's pairs as the rows that reward models learn from, and which of them a round takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from align.active.open import as_given
from align.active.pool import PairPool
from align.data.rows import plain_text
from align.selftrain.alike import different, embed_pairs, spread
from align.selftrain.balance import balanced, shares_of
from align.selftrain.pseudo import Labels

Row = dict[str, Any]
Sides = tuple[list[Any], list[Any], list[Any]]  # prompts, first and second answers


def pair_row(pool: PairPool, name: str, first: bool) -> Row:
    """A preference row of a pair.

    Args:
        pool: the pairs.
        name: of the pair.
        first: whether its first answer is the better one.
    """
    pair = pool.pairs[pool.place[name]]
    group = pool.groups[pair.group]
    given = as_given(group.prompt, group.answers)
    better, worse = (pair.first, pair.second) if first else (pair.second, pair.first)
    row = {"pair": name, "prompt": group.prompt, "chosen": given[better]}
    return row | {"rejected": given[worse], "first": first}


def pool_sides(pool: PairPool) -> Sides:
    """Prompt, first and second answer of every pair."""
    return sides_of([pair_row(pool, pair.id, True) for pair in pool.pairs])


def sides_of(rows: Sequence[Mapping[str, Any]]) -> Sides:
    """Prompts, better and worse answers of rows."""
    prompts, chosen, rejected = (
        [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")
    )
    return prompts, chosen, rejected


def longer(row: Mapping[str, Any]) -> str:
    """Whether the better answer is the longer one, in characters."""
    better, worse = len(plain_text(row["chosen"])), len(plain_text(row["rejected"]))
    return "longer" if better > worse else "shorter" if better < worse else "equal"


def new_pairs(
    pool: PairPool,
    places: Sequence[int],
    human: Sequence[Row],
    similarity: float | None,
    near: float | None,
    most: int | None,
) -> list[int]:
    """The pairs that say something new; at most so many, spread over what there is.

    Args:
        pool: the pairs.
        places: of the candidates, the surest first.
        human: people's rows.
        similarity: cosine of near-duplicates; None: they are let in.
        near: cosine to the nearest of people's that is needed; None: none.
        most: labels that are wanted; None: all.
    """
    if not places:
        return []
    texts = [_words(pair_row(pool, pool.pairs[place].id, True)) for place in places]
    points, known = embed_pairs(texts, [_words(row) for row in human])
    rows = different(points, known, similarity, near)
    if most is not None and len(rows) > most:
        rows = [rows[n] for n in spread(points[rows], known, most)]
    return [places[n] for n in rows]


def in_proportion(
    pool: PairPool,
    places: Sequence[int],
    labels: Labels,
    human: Sequence[Row],
    dimensions: Sequence[str],
    slack: float,
) -> list[int]:
    """The labels with people's share of longer answers, the pool's of classes, even positions.

    What people labelled says nothing of classes, and a pair's first answer is first by a hash.

    Args:
        pool: the pairs.
        places: of the candidates.
        labels: of all pairs.
        human: people's rows.
        dimensions: of class, position and length.
        slack: how far a group may exceed its share.
    """
    rows = [pair_row(pool, pool.pairs[n].id, bool(labels.first[n])) for n in places]
    classes = [pool.groups[pair.group].stratum for pair in pool.pairs]
    offered: dict[str, Any] = {
        "class": ([classes[n] for n in places], shares_of(classes)),
        "position": ([row["first"] for row in rows], {True: 0.5, False: 0.5}),
        "length": ([longer(row) for row in rows], shares_of([longer(row) for row in human])),
    }
    chosen = [offered[name] for name in dimensions]
    groups, shares = [one for one, _ in chosen], [wanted for _, wanted in chosen]
    kept = balanced(groups, shares, labels.confidence[list(places)], slack)
    return [places[n] for n in kept]


def _words(row: Mapping[str, Any]) -> str:
    return "\n".join(plain_text(row[name]) for name in ("prompt", "chosen", "rejected"))
