"""Krippendorff's alpha, nominal and ordinal, with missing votes and a bootstrap interval.

    alpha = 1 - D_o / D_e

with the observed disagreement D_o of votes on the same item and the disagreement D_e expected when
votes are dealt out at random (Krippendorff, "Content Analysis", 4th ed. 2018, ch. 12). 1 is perfect
agreement, 0 is chance, below 0 is systematic disagreement. Any number of annotators per item;
items with one vote say nothing and are left out. The interval resamples items; Krippendorff's own
bootstrap resamples votes and comes out narrower where items differ in difficulty.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from feedback.quality.coefficient import Coefficient, coefficient
from feedback.quality.votes import Vote, vote_table

Metric = Literal["nominal", "ordinal"]


def krippendorff_alpha(
    votes: Iterable[Vote],
    metric: Metric = "nominal",
    *,
    labels: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Coefficient:
    """Krippendorff's alpha of (item, annotator, label) votes.

    Args:
        votes: one vote per annotator and item; any may be missing.
        metric: `nominal` (same or not) or `ordinal` (how many votes lie between the two labels).
        labels: every label, in order. Ordinal alpha needs it.
        draws: bootstrap draws; 0 for no interval.
        seed: of the draws.

    Returns:
        The coefficient; its value is None where no item has two votes, or where all votes are the
        same, so that chance cannot be told from agreement.

    Raises:
        DataError: an unknown label, or a repeated vote.
        ValueError: ordinal alpha without the labels' order, or an unknown metric.
    """
    if metric not in ("nominal", "ordinal"):
        raise ValueError(f"metric must be 'nominal' or 'ordinal', not {metric!r}.")
    if metric == "ordinal" and labels is None:
        raise ValueError("ordinal alpha needs the order of the labels. Fix: pass labels=...")
    counts = vote_table(votes, labels, once=True).counts()  # (N, L)
    counts = counts[counts.sum(axis=1) >= 2]
    width = counts.shape[1]

    def alpha(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        observed = sums.reshape(len(sums), width, width)
        totals = observed.sum(axis=2)  # (D, L): pairable votes per label
        distance = _distance(totals, metric)  # (D, L, L)
        expected = totals[:, :, None] * totals[:, None, :]
        below = (expected * distance).sum(axis=(1, 2))
        above = (observed * distance).sum(axis=(1, 2)) * (totals.sum(axis=1) - 1)
        ratio = np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)
        return 1 - ratio

    return coefficient(
        _coincidences(counts),
        alpha,
        votes=int(counts.sum()),
        draws=draws,
        seed=seed,
        undefined="every vote is the same, so chance cannot be told from agreement",
    )


def _coincidences(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each item's share in the coincidence matrix, shape (N, L * L)."""
    size, width = counts.shape
    products = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(width)
    products[:, diagonal, diagonal] -= counts
    return (products / (counts.sum(axis=1) - 1)[:, None, None]).reshape(size, width * width)


def _distance(totals: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Squared distances between labels, (D, L) totals to (D, L, L).

    The ordinal one, (sum of totals from i to j minus half of both ends)^2, is the squared
    difference of the labels' middle ranks.
    """
    if metric == "nominal":
        width = totals.shape[1]
        return np.broadcast_to(1.0 - np.eye(width), (len(totals), width, width))
    ranks = np.cumsum(totals, axis=1) - totals / 2
    return (ranks[:, :, None] - ranks[:, None, :]) ** 2
