"""Duplicate rows: the same after normalisation, or nearly the same.

Two rows are near-duplicates when *every* field (prompt, completion, chosen, rejected, text) has a
Jaccard similarity of word 3-grams at or above the threshold, so that two different answers to one
long prompt are not taken for each other. Similarities are exact: pairs are found by prefix
filtering (Bayardo et al. 2007, "Scaling Up All Pairs Similarity Search"; Xiao et al. 2008,
PPJoin), field by field, which misses none, where MinHash would miss some by chance.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from align.data.rows import Row, normalise, plain_text
from reward.preferences import SOFT_LABEL

TEXT_FIELDS = ("prompt", "completion", "chosen", "rejected", "text")
LIST_FIELDS = ("responses", "completions")
N = 3  # words in a shingle
Hashes = NDArray[np.uint64]
Sets = tuple[frozenset[int], ...]  # a row's shingles, field by field


def row_texts(row: Row) -> tuple[str, ...]:
    """A row's fields, normalised; a list of answers or steps is one field."""
    texts = [plain_text(row.values[f]) for f in TEXT_FIELDS if f in row.values]
    texts += ["\n".join(map(plain_text, row.values[f])) for f in LIST_FIELDS if f in row.values]
    return tuple(map(normalise, texts))


def _said(row: Row) -> str:
    """What people said of the texts: rows that differ in it are different opinions."""
    return repr([row.values.get(name) for name in (SOFT_LABEL, "ranks", "scores", "labels")])


def drop_exact(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The first row of every text and label, and the repetitions.

    Of two rows that differ in their soft label, ranks, scores or steps' labels alone both stay:
    dropping one would turn the mean of two opinions into the first.
    """
    seen: set[tuple[object, ...]] = set()
    kept: list[Row] = []
    dropped: list[Row] = []
    for row in rows:
        texts = (*row_texts(row), _said(row))
        (dropped if texts in seen else kept).append(row)
        seen.add(texts)
    return kept, dropped


def drop_near(rows: Sequence[Row], threshold: float) -> tuple[list[Row], list[Row]]:
    """Rows in order, without those that are nearly the same as an earlier row that was kept.

    Of rows that say different things of their texts (as in `drop_exact`) all stay.

    Args:
        rows: rows of one kind.
        threshold: smallest Jaccard similarity, in (0, 1], that every field must reach.

    Returns:
        The rows kept and the rows dropped, both in order.
    """
    alike: defaultdict[str, list[int]] = defaultdict(list)  # rows that say the same of their texts
    for place, row in enumerate(rows):
        alike[_said(row)].append(place)
    duplicate = [False] * len(rows)
    for places in alike.values():
        found = near_duplicates([row_texts(rows[place]) for place in places], threshold)
        for place, is_copy in zip(places, found, strict=True):
            duplicate[place] = is_copy
    kept = [row for row, is_copy in zip(rows, duplicate, strict=True) if not is_copy]
    return kept, [row for row, is_copy in zip(rows, duplicate, strict=True) if is_copy]


def count_contradictions(rows: Sequence[Row]) -> int:
    """Preferences whose opposite (same prompt, chosen and rejected swapped) is also there."""
    texts = [row_texts(row) for row in rows if "chosen" in row.values]
    pairs = set(texts)
    return sum((prompt, rejected, chosen) in pairs for prompt, chosen, rejected in texts)


def near_duplicates(texts: Sequence[tuple[str, ...]], threshold: float) -> list[bool]:
    """Whether each row repeats an earlier kept one; `texts` holds each row's normalised fields."""
    fields = _shingles(texts)
    fronts = _fronts(fields, threshold)
    duplicate = [False] * len(texts)
    sets: dict[int, Sets] = {}  # of the rows that were ever compared
    index: defaultdict[int, list[int]] = defaultdict(list)  # shingle -> kept rows with it in front
    for row in range(len(texts)):
        for other in sorted(_candidates(fronts[row], index)):
            for i in (row, other):
                if i not in sets:
                    sets[i] = tuple(frozenset(field.tolist()) for field in fields[i])
            if _similar(sets[row], sets[other], threshold):
                duplicate[row] = True
                break
        if not duplicate[row]:
            for shingle in itertools.chain.from_iterable(fronts[row]):
                index[shingle].append(row)
    return duplicate


def _candidates(fronts: Sequence[list[int]], index: Mapping[int, list[int]]) -> set[int]:
    """Rows that share a front shingle in every field: no others can be similar in all of them."""
    found: set[int] | None = None
    for front in fronts:
        sharing = {row for shingle in front for row in index.get(shingle, ())}
        found = sharing if found is None else found & sharing
        if not found:
            return set()
    return found or set()


def _similar(a: Sets, b: Sets, threshold: float) -> bool:
    """Whether every field's Jaccard similarity reaches the threshold."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        common = len(x & y)
        if common + 1e-9 < threshold * (len(x) + len(y) - common):
            return False
    return True


def _shingles(texts: Sequence[tuple[str, ...]]) -> list[list[Hashes]]:
    """Unique 64-bit hashes of each field's word 3-grams; a shorter field is one shingle."""
    words: dict[str, int] = {}
    return [[_field_shingles(text, i, words) for i, text in enumerate(row)] for row in texts]


def _field_shingles(text: str, place: int, words: dict[str, int]) -> Hashes:
    """Hashes depend on the field's place, so that one index serves all fields."""
    tokens = text.split()
    ids = np.array([_word_hash(word, words) for word in tokens], dtype=np.uint64)
    width = min(N, len(ids))
    total: Hashes = np.full(max(len(ids) - width + 1, 1), 2 * place + 1, dtype=np.uint64)
    for offset in range(width):  # a polynomial in odd 64-bit numbers, wrapping at 2**64
        total = total * MULTIPLIER + ids[offset : offset + len(total)]
        total ^= total >> np.uint64(29)
    return np.unique(total)


MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def _word_hash(word: str, words: dict[str, int]) -> int:
    if word not in words:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        words[word] = int.from_bytes(digest, "little")
    return words[word]


def _fronts(fields: list[list[Hashes]], threshold: float) -> list[list[list[int]]]:
    """For each row and field, its front.

    Two sets as similar as the threshold share one of the size - ceil(threshold * size) + 1 rarest
    shingles of either, its front. Shingles that no other row has are left out: they match nothing.
    """
    joined = [field for row in fields for field in row]
    if not joined:
        return [[] for _ in fields]
    sizes = [len(field) for field in joined]
    _, ids, counts = np.unique(np.concatenate(joined), return_inverse=True, return_counts=True)
    owner = np.repeat(np.arange(len(joined)), sizes)
    order = np.lexsort((ids, counts[ids], owner))
    ranked, shared = ids[order], counts[ids][order] > 1
    start = 0
    fronts: list[list[list[int]]] = []
    for row in fields:
        fronts.append([])
        for field in row:
            size = len(field)
            front = slice(start, start + size - math.ceil(threshold * size - 1e-9) + 1)
            fronts[-1].append(ranked[front][shared[front]].tolist())
            start += size
    return fronts
