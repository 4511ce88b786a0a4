"""Mixing sources: weights are shares of the mixture, and no row is ever repeated.

A source with weight w gets the share w / (sum of weights) of the rows. The mixture is the largest
one with those shares: the source that runs out first is used up, the others give as many rows as
their shares allow. Which rows are left out is decided by a hash of their prompt, so the choice
does not depend on the order of the files, and rows of one prompt are taken or left together as
far as the number of rows allows. Without weights every row is used.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from align.data.rows import Row
from align.data.split import position_of


def mixture_sizes(available: Sequence[int], weights: Sequence[float | None]) -> list[int]:
    """How many rows each source gives.

    Args:
        available: rows each source has.
        weights: relative shares; None where a source has none. With no weights at all every row
            is used; a source without one beside weighted ones counts as 1, and a source without
            rows does not count.

    Returns:
        As many numbers as sources, none above what is available. The shares are exact up to the
        rounding of one row per source.
    """
    if all(weight is None for weight in weights) or len(available) < 2:
        return list(available)
    shares = [1.0 if weight is None else weight for weight in weights]
    # The common factor: rows per unit of weight that the scarcest source can pay for.
    counts = [(count, share) for count, share in zip(available, shares, strict=True) if count]
    factor = min((count / share for count, share in counts), default=0.0)
    return [
        min(count, round(factor * share)) for count, share in zip(available, shares, strict=True)
    ]


def temperature_shares(sizes: Sequence[int], alpha: float) -> list[float]:
    """Shares q_i = n_i^alpha / sum of n_j^alpha, as `weight`s of sources or for a sampler.

    Conneau et al. 2019, "Unsupervised Cross-lingual Representation Learning at Scale" (XLM-R, alpha
    0.3) and, as it, Conneau and Lample 2019 (alpha 0.5 and 0.7). alpha = 1 / T of a temperature T.

    Args:
        sizes: rows of each source.
        alpha: 1 keeps the sizes, 0 makes the shares of all sources with rows alike.
    """
    powers = [float(size) ** alpha if size else 0.0 for size in sizes]
    total = sum(powers)
    return [power / total for power in powers] if total else powers


def mix(sources: Sequence[list[Row]], weights: Sequence[float | None], seed: int) -> list[Row]:
    """The mixture: chosen rows of every source, shuffled if there are several sources.

    A single source keeps its order. The same rows, weights and seed give the same mixture.
    """
    sizes = mixture_sizes([len(rows) for rows in sources], weights)
    chosen = [_take(rows, size, seed) for rows, size in zip(sources, sizes, strict=True)]
    mixture = [row for rows in chosen for row in rows]
    if len(sources) > 1:
        random.Random(seed).shuffle(mixture)
    return mixture


def _take(rows: list[Row], size: int, seed: int) -> list[Row]:
    """`size` rows, the ones whose prompts hash lowest, in their own order."""
    if size >= len(rows):
        return rows
    ranked = sorted(range(len(rows)), key=lambda i: (position_of(rows[i].key, seed, b"mix"), i))
    return [rows[i] for i in sorted(ranked[:size])]
