"""Duplicate rows: the same after normalisation, or nearly the same.

Two rows are near-duplicates when *every* field (prompt, completion, chosen, rejected, text) has a
Jaccard similarity of word 3-grams at or above the threshold, so that two different answers to one
long prompt are not taken for each other. Similarities are exact: pairs are found by prefix
filtering (Bayardo et al. 2007, "Scaling Up All Pairs Similarity Search"; Xiao et al. 2008,
PPJoin), which misses none, where MinHash would miss some by chance.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from align.data.rows import Row, normalise, plain_text

TEXT_FIELDS = ("prompt", "completion", "chosen", "rejected", "text")
N = 3  # words in a shingle
Hashes = NDArray[np.uint64]


def row_texts(row: Row) -> tuple[str, ...]:
    """A row's fields, normalised."""
    return tuple(normalise(plain_text(row.values[f])) for f in TEXT_FIELDS if f in row.values)


def drop_exact(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The first row of every text, and the repetitions."""
    seen: set[tuple[str, ...]] = set()
    kept: list[Row] = []
    dropped: list[Row] = []
    for row in rows:
        texts = row_texts(row)
        (dropped if texts in seen else kept).append(row)
        seen.add(texts)
    return kept, dropped


def drop_near(rows: Sequence[Row], threshold: float) -> tuple[list[Row], list[Row]]:
    """Rows in order, without those that are nearly the same as an earlier row that was kept.

    Args:
        rows: rows of one kind.
        threshold: smallest Jaccard similarity, in (0, 1], that every field must reach.

    Returns:
        The rows kept and the rows dropped, both in order.
    """
    duplicate = near_duplicates([row_texts(row) for row in rows], threshold)
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
    duplicate = [False] * len(texts)
    fronts, sizes = _fronts(fields, threshold)
    index: defaultdict[int, list[int]] = defaultdict(list)  # shingle -> kept rows with it in front
    for row, (front, size) in enumerate(zip(fronts, sizes, strict=True)):
        candidates = {other for shingle in front for other in index.get(shingle, ())}
        for other in sorted(candidates):
            smaller, larger = sorted((size, sizes[other]))
            if smaller + 1e-9 < threshold * larger:
                continue
            if _similar(fields[row], fields[other], threshold):
                duplicate[row] = True
                break
        if not duplicate[row]:
            for shingle in front:
                index[shingle].append(row)
    return duplicate


def _similar(a: Sequence[Hashes], b: Sequence[Hashes], threshold: float) -> bool:
    """Whether every field's Jaccard similarity reaches the threshold; arrays hold unique hashes."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        common = len(set(x.tolist()) & set(y.tolist()))
        if common + 1e-9 < threshold * (len(x) + len(y) - common):
            return False
    return True


def _shingles(texts: Sequence[tuple[str, ...]]) -> list[list[Hashes]]:
    """Unique 64-bit hashes of each field's word 3-grams; a shorter field is one shingle."""
    words: dict[str, int] = {}
    return [[_field_shingles(text, i, words) for i, text in enumerate(row)] for row in texts]


def _field_shingles(text: str, place: int, words: dict[str, int]) -> Hashes:
    """Hashes depend on the field's place, so fields of one row never share a shingle."""
    tokens = text.split()
    ids = np.array([_word_hash(word, words) for word in tokens], dtype=np.uint64)
    width = min(N, len(ids))
    total = np.full(max(len(ids) - width + 1, 1), 2 * place + 1, dtype=np.uint64)
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


def _fronts(fields: list[list[Hashes]], threshold: float) -> tuple[list[list[int]], list[int]]:
    """Each row's front and its number of shingles.

    Rows as similar as the threshold share one of their size - ceil(threshold * size) + 1 rarest
    shingles, the front. Those that no other row has are left out of it: they match nothing.
    """
    joined = [np.concatenate(row) for row in fields]
    sizes = [len(row) for row in joined]
    if not joined:
        return [], []
    _, ids, counts = np.unique(np.concatenate(joined), return_inverse=True, return_counts=True)
    owner = np.repeat(np.arange(len(joined)), sizes)
    order = np.lexsort((ids, counts[ids], owner))
    ranked, shared = ids[order], counts[ids][order] > 1
    fronts, start = [], 0
    for size in sizes:
        front = slice(start, start + size - math.ceil(threshold * size - 1e-9) + 1)
        fronts.append(ranked[front][shared[front]].tolist())
        start += size
    return fronts, sizes
