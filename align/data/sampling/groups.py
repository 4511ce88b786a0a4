"""An order in which rows of one group stand in one batch: what a batch shares is computed once.

A pure function of the groups, the batch size and a seed. Rows of one prompt share its tokens
(`align.engine.prefix`) only where they are in the same batch, which random order rarely gives.
Leaves out prefixes that rows of different groups have in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from align.data.curriculum.rank import Ints
from feedback.schema import Text

Piece = tuple[int, int]  # of a group: its first place, and its rows


def prompt_groups(prompts: Iterable[Text]) -> Ints:
    """(N,), a number for each row: that of its prompt, letter by letter, counted from 0."""
    numbers: dict[str, int] = {}
    texts = (text if isinstance(text, str) else json.dumps(text) for text in prompts)
    return np.asarray([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


def grouped_order(
    groups: Sequence[int] | Ints, batch_size: int, seed: int | Sequence[int] = 0
) -> Ints:
    """Every row once, so that each `batch_size` rows in turn are a batch of as few groups as fit.

    A group larger than a batch is cut into whole batches and a rest. A batch takes the largest
    group that still fits, by chance among equals; where none fits it is filled from the smallest.
    Batches come in random order, but the last, which may be short. O(N log N).

    Args:
        groups: (N,), equal numbers for rows of one group.
        batch_size: B, rows of a batch.
        seed: of everything random, one number of 0 or more or several.

    Returns:
        (N,), row numbers.

    Raises:
        ValueError: a batch of no rows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
    draw = np.random.default_rng(seed)
    keys = np.asarray(groups, dtype=np.int64)
    mixed = draw.permutation(len(keys))
    rows = mixed[np.argsort(keys[mixed], kind="stable")]  # (N,), groups side by side
    sorted_keys = keys[rows]
    firsts = np.flatnonzero(np.append(True, sorted_keys[1:] != sorted_keys[:-1]))
    sizes = np.diff(firsts, append=len(rows))
    alone = _whole_batches(firsts, sizes // batch_size, batch_size)
    piles = _piles(firsts + sizes // batch_size * batch_size, sizes % batch_size, batch_size, draw)
    pieces: list[Piece] = [(first, batch_size) for first in alone]
    left = len(rows) - len(alone) * batch_size
    while left:
        room = min(batch_size, left)
        pieces += _fill(piles, room)
        left -= room
    return _shuffled(rows[_places(pieces)], batch_size, draw)


def groups_per_batch(groups: Ints, batch_size: int) -> float:
    """Different groups in a batch, on average: `groups` (N,) in the order of training."""
    batches = np.arange(len(groups)) // batch_size
    pairs = np.unique(np.stack([batches, groups]), axis=1)
    return pairs.shape[1] / (int(batches[-1]) + 1)


def groups_per_random_batch(groups: Ints, batch_size: int) -> float:
    """The expectation of `groups_per_batch` over all orders."""
    whole, rest = divmod(len(groups), batch_size)
    _, sizes = np.unique(groups, return_counts=True)
    found = 0.0
    for size, many in zip(*np.unique(sizes, return_counts=True), strict=True):
        each = whole * _met(len(groups), int(size), batch_size)
        found += int(many) * (each + _met(len(groups), int(size), rest))
    return found / (whole + (rest > 0))


def _met(count: int, size: int, drawn: int) -> float:
    """The chance that some of a group's rows are among those drawn of all `count`.

    It is 1 - C(count - size, drawn) / C(count, drawn).
    """
    if count - size < drawn:
        return 1.0
    return float(-np.expm1(np.log1p(-size / (count - np.arange(drawn))).sum()))


def _whole_batches(firsts: Ints, wholes: Ints, batch_size: int) -> list[int]:
    """Where the batches begin that one group fills: `wholes` (G,) of each group."""
    before = np.repeat(np.cumsum(wholes) - wholes, wholes)
    places = np.repeat(firsts, wholes) + batch_size * (np.arange(len(before)) - before)
    found: list[int] = places.tolist()
    return found


def _piles(
    firsts: Ints, sizes: Ints, batch_size: int, draw: np.random.Generator
) -> list[list[int]]:
    """First places of groups by their size, from 0 to B - 1 rows, in random order."""
    order = draw.permutation(len(sizes))
    order = order[np.argsort(sizes[order], kind="stable")]
    ends = np.searchsorted(sizes[order], np.arange(1, batch_size))
    piles: list[list[int]] = [part.tolist() for part in np.split(firsts[order], ends)]
    piles[0] = []  # nothing is left of these
    return piles


def _fill(piles: list[list[int]], room: int) -> list[Piece]:
    """Take a batch of `room` rows from the piles, which hold as many at least."""
    taken: list[Piece] = []
    size = min(room, len(piles) - 1)
    while size:
        if piles[size]:
            taken.append((piles[size].pop(), size))
            room -= size
            size = min(size, room)
        else:
            size -= 1
    if room:  # every group that is left is larger
        size = next(size for size in range(room + 1, len(piles)) if piles[size])
        first = piles[size].pop()
        taken.append((first, room))
        piles[size - room].append(first + room)
    return taken


def _places(pieces: Sequence[Piece]) -> Ints:
    """The places of all pieces' rows, one piece after the other."""
    firsts, sizes = np.asarray(pieces, dtype=np.int64).reshape(-1, 2).T
    before = np.cumsum(sizes) - sizes
    found: Ints = np.repeat(firsts - before, sizes) + np.arange(sizes.sum())
    return found


def _shuffled(rows: Ints, batch_size: int, draw: np.random.Generator) -> Ints:
    """Whole batches in random order; a short one stays the last."""
    whole = len(rows) // batch_size
    batches = rows[: whole * batch_size].reshape(whole, batch_size)
    mixed = batches[draw.permutation(whole)].reshape(-1)
    return np.concatenate([mixed, rows[batches.size :]])
