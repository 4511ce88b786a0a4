"""Cohen's kappa for two annotators and Fleiss' kappa for many, with bootstrap intervals over items.

Cohen (Educational and Psychological Measurement 20, 1960) gives each annotator their own share of
labels by chance, Fleiss (Psychological Bulletin 76, 1971) one share to all. Both are 1 at perfect
agreement and 0 at chance. Fleiss' kappa needs equally many votes on every item: use alpha where
votes are missing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from feedback.quality.coefficient import Coefficient, coefficient
from feedback.quality.votes import Vote, VoteTable, vote_table

Weights = Literal["none", "linear", "quadratic"]
UNDEFINED = "every vote is the same, so chance cannot be told from agreement"


def cohen_kappas(
    votes: Iterable[Vote],
    *,
    labels: Sequence[Hashable] | None = None,
    weights: Weights = "none",
    draws: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], Coefficient]:
    """Cohen's kappa of every two annotators, over the items both judged.

    Args:
        votes: one vote per annotator and item; any may be missing.
        labels: every label, in order.
        weights: how a disagreement counts: the same for all labels, or by the (squared) distance
            of their places in `labels`.
        draws: bootstrap draws; 0 for no interval.
        seed: of the draws.

    Returns:
        (annotator, annotator), names sorted, to the coefficient; None as its value where they
        share no item, or where all their votes are the same.

    Raises:
        DataError: an unknown label, or a repeated vote.
        ValueError: weights without the labels' order, or unknown weights.
    """
    if weights not in ("none", "linear", "quadratic"):
        raise ValueError(f"weights must be 'none', 'linear' or 'quadratic', not {weights!r}.")
    if weights != "none" and labels is None:
        raise ValueError("weighted kappa needs the order of the labels. Fix: pass labels=...")
    table = vote_table(votes, labels, once=True)
    width = len(table.labels)
    cost = _cost(width, weights)
    grid = _grid(table)
    found = {}
    for i, j in combinations(range(len(table.annotators)), 2):
        both = (grid[i] >= 0) & (grid[j] >= 0)
        cells = grid[i, both] * width + grid[j, both]
        found[table.annotators[i], table.annotators[j]] = coefficient(
            np.eye(width * width)[cells],
            lambda sums: _kappa(sums.reshape(len(sums), width, width), cost),
            votes=2 * int(both.sum()),
            draws=draws,
            seed=seed,
            undefined=UNDEFINED,
        )
    return found


def fleiss_kappa(
    votes: Iterable[Vote],
    *,
    labels: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Coefficient:
    """Fleiss' kappa over the items with the most common number of votes (two or more).

    Its note counts the items left out because they have another number of votes.

    Raises:
        DataError: an unknown label, or a repeated vote.
    """
    counts = vote_table(votes, labels, once=True).counts()  # (N, L)
    sizes = counts.sum(axis=1).astype(int)
    many = sizes[sizes >= 2]
    raters = int(np.bincount(many).argmax()) if len(many) else 2
    kept = counts[sizes == raters]
    same = ((kept**2).sum(axis=1) - raters) / (raters * (raters - 1))  # (N,): pairs that agree

    def kappa(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = sums[:, 1:] / sums[:, 1:].sum(axis=1, keepdims=True)
        items = sums[:, 1:].sum(axis=1) / raters
        chance = (shares**2).sum(axis=1)
        return _over_chance(sums[:, 0] / items, chance)

    found = coefficient(
        np.concatenate([same[:, None], kept], axis=1),
        kappa,
        votes=int(kept.sum()),
        draws=draws,
        seed=seed,
        undefined=UNDEFINED,
    )
    left_out = len(counts) - len(kept)
    if not left_out or not len(kept):
        return found
    note = f"{left_out} items without exactly {raters} votes are left out"
    notes = "; ".join(part for part in (found.note, note) if part)
    return Coefficient(found.value, found.low, found.high, found.items, found.votes, notes)


def _grid(table: VoteTable) -> NDArray[np.intp]:
    """Labels by annotator and item, shape (K, N); -1 where there is no vote."""
    grid = np.full((len(table.annotators), len(table.items)), -1, dtype=np.intp)
    grid[table.annotator, table.item] = table.label
    return grid


def _cost(width: int, weights: Weights) -> NDArray[np.float64]:
    places = np.arange(width, dtype=np.float64)
    apart = np.abs(places[:, None] - places[None, :])
    if weights == "none":
        return (apart > 0).astype(np.float64)
    return apart if weights == "linear" else apart**2


def _kappa(table: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of contingency tables (D, L, L)."""
    n = table.sum(axis=(1, 2))
    expected = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :] / n[:, None, None]
    below = (expected * cost).sum(axis=(1, 2))
    above = (table * cost).sum(axis=(1, 2))
    return 1 - np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def _over_chance(observed: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    room = 1 - chance
    nothing = np.full_like(room, np.nan)
    return np.divide(observed - chance, room, out=nothing, where=room > 1e-12)
