"""Which pairs say something new: near-duplicates out, the rest spread over what there is.

Pairs are compared by hashed words (`feedback.acquisition.prompts.embed_texts`): that finds copies
and small changes, and knows nothing of meaning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feedback.acquisition.coverage import k_center
from feedback.acquisition.prompts import embed_texts


def embed_pairs(texts: Sequence[str], known: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Directions of pseudo-labelled and of people's pairs in one space, (n, D) and (m, D)."""
    both = embed_texts([*texts, *known])
    return both[: len(texts)], both[len(texts) :]


def different(
    points: np.ndarray, known: np.ndarray, most: float | None, least: float | None = None
) -> list[int]:
    """Places that repeat neither an earlier kept one nor a known one, in the order given.

    Args:
        points: (n, D) directions, the best first.
        known: (m, D) directions of what people labelled.
        most: cosine from which two are near-duplicates; None: none are.
        least: cosine to the nearest known one that is needed: far from everything that people
            labelled a model's probability means little. None: not asked for.
    """
    kept: list[int] = []
    near = (points @ known.T).max(axis=1, initial=-1.0) if len(known) else np.full(len(points), -1)
    for place in range(len(points)):
        if most is not None and near[place] >= most:
            continue
        if least is not None and near[place] < least:
            continue
        if most is not None and kept and (points[kept] @ points[place]).max() >= most:
            continue
        kept.append(place)
    return kept


def spread(points: np.ndarray, known: np.ndarray, count: int) -> list[int]:
    """At most `count` places that cover the rest best, rising (greedy k-center).

    Args:
        points: (n, D) directions.
        known: (m, D) what is covered already.
        count: 1 or more.

    Raises:
        DataError: a count below 1.
    """
    if len(points) <= count:
        return list(range(len(points)))
    chosen, _ = k_center(points, count, known if len(known) else None)
    return sorted(int(place) for place in chosen)
