"""Token rows as a tree in which a common prefix appears once, and batches that keep it whole.

Rows are put in lexicographic order, so that each shares most with its neighbour: what it adds
becomes one segment of a flat row, after the first tokens of earlier segments. Prefixes may nest
(a system prompt, a prompt, the first words of an answer). Pure Python; `reward.packed` computes
attention along the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST = 8  # tokens in common that are worth a separate call of attention

Row = Sequence[int]
Path = tuple[tuple[int, int], ...]  # (segment, of it the first so many tokens), from the root on


@dataclass(frozen=True)
class Segment:
    """Tokens that lie side by side in the flat row and follow those of `before`."""

    length: int
    before: Path = ()

    @property
    def depth(self) -> int:
        """Tokens before it: the position of its first one."""
        return sum(count for _, count in self.before)


@dataclass(frozen=True)
class Tree:
    """Rows of tokens, common prefixes once."""

    ids: list[int]  # N, of all segments, one after the other
    segments: list[Segment]
    paths: list[Path]  # of each row

    def places(self, row: int) -> list[int]:
        """Where the tokens of a row lie in `ids`."""
        starts = self._starts()
        return [starts[at] + i for at, count in self.paths[row] for i in range(count)]

    def all_places(self) -> list[int]:
        """Where the tokens of all rows lie in `ids`, row after row."""
        starts, found = self._starts(), list[int]()
        for path in self.paths:
            for at, count in path:
                found += range(starts[at], starts[at] + count)
        return found

    def ends(self) -> list[int]:
        """Where the last token of each row lies in `ids`."""
        starts = self._starts()
        return [starts[path[-1][0]] + path[-1][1] - 1 for path in self.paths]

    def _starts(self) -> list[int]:
        starts = [0]
        for segment in self.segments:
            starts.append(starts[-1] + segment.length)
        return starts


def share(rows: Sequence[Row], least: int = LEAST) -> Tree:
    """The tree of some rows, in any order.

    Args:
        rows: B lists of token ids, none empty.
        least: fewer tokens in common are computed twice.

    Raises:
        ValueError: a row is empty.
    """
    if not all(rows):
        raise ValueError(f"row {[bool(row) for row in rows].index(False)} has no tokens.")
    ids: list[int] = []
    segments: list[Segment] = []
    paths: list[Path] = [()] * len(rows)
    order = _order(rows)
    path: Path = ()
    for index, common in zip(order, _common(rows, order, least), strict=True):
        row, path = rows[index], _first(path, common)
        if common < len(row):
            ids += row[common:]
            segments.append(Segment(len(row) - common, path))
            path = (*path, (len(segments) - 1, len(row) - common))
        paths[index] = path
    return Tree(ids, segments, paths)


def tree_batches(rows: Sequence[Row], budget: int, least: int = LEAST) -> list[list[int]]:
    """Batches of rows whose trees have at most `budget` tokens each.

    A batch that is full ends where neighbours share least, in its second half: the answers of one
    prompt stay together unless they are longer than that.

    Args:
        rows: lists of token ids.
        budget: unique tokens of a batch; a longer row is a batch of its own.
        least: as of `share`.

    Returns:
        places in `rows`, each once.
    """
    order = _order(rows)
    common = _common(rows, order, least)
    totals = [0] * len(order)  # tokens of the batch up to and with this row
    batches: list[list[int]] = []
    start = now = 0
    while now < len(order):
        before = totals[now - 1] if now > start else 0
        total = before + len(rows[order[now]]) - (common[now] if now > start else 0)
        if now == start or total <= budget:
            totals[now] = total
            now += 1
            continue
        cuts = [at for at in range(start + 1, now) if 2 * totals[at - 1] >= budget]
        cut = min([*cuts, now], key=lambda at: (common[at], -at))
        batches.append(order[start:cut])
        start = now = cut
    return [*batches, order[start:]] if start < len(order) else batches


def padded_batches(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Batches of rows of like length, for models that need padding; longest first.

    Args:
        rows: lists of token ids.
        budget: tokens of a batch, padding included; a longer row is a batch of its own.

    Returns:
        places in `rows`, each once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def common_prefix(first: Row, second: Row) -> int:
    """How many tokens two rows have in common from their start."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # comparing slices is much faster than token by token
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _order(rows: Sequence[Row]) -> list[int]:
    return sorted(range(len(rows)), key=lambda index: list(rows[index]))


def _common(rows: Sequence[Row], order: Sequence[int], least: int) -> list[int]:
    """Tokens that each row shares with the one before it in this order; too few count as none."""
    found = [common_prefix(rows[a], rows[b]) for a, b in pairwise(order)]
    return [0, *(n if n >= least else 0 for n in found)][: len(order)]


def _first(path: Path, tokens: int) -> Path:
    """The first tokens of a path."""
    kept = []
    for segment, count in path:
        if tokens <= 0:
            break
        kept.append((segment, min(count, tokens)))
        tokens -= count
    return tuple(kept)
