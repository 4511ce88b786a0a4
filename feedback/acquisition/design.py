"""Batches that say most about a linear reward: greedy D-optimal design, in memory or streamed.

With z = features of the first answer less those of the second and p = P(the first is better), a
label of one pair adds p(1 - p) z z^T to the precision H of the last layer (the Laplace posterior of
`reward.laplace`). The batch that shrinks its volume most is taken greedily:

    argmax over pairs of log(1 + p(1 - p) z^T S z),   S = H^-1,

then H takes the chosen pair in, and S changes by one rank. A near-duplicate of a chosen pair gains
little after that, so a batch is diverse by itself. The log-determinant is submodular: greedy is
within 1 - 1/e of the best batch (Nemhauser et al. 1978), and a gain never grows while the batch
does. That is what makes the streaming form exact: see `stream_d_optimal`. For preferences: Das et
al. 2024, arXiv 2402.10500; Mukherjee et al. 2024, arXiv 2404.13895.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from feedback.acquisition.arrays import (
    Array,
    Index,
    chances,
    check_count,
    chunks,
    finite,
    same_length,
)
from feedback.errors import DataError

Chunk = tuple[ArrayLike, ArrayLike]
"""(n, D) differences and (n,) probabilities of consecutive pairs."""


def information(
    differences: ArrayLike, probabilities: ArrayLike, prior: float, start: Array | None = None
) -> Array:
    """Precision of a Bradley-Terry last layer, prior I + sum p(1 - p) z z^T, (D, D).

    Args:
        differences: (n, D) of the pairs labelled so far.
        probabilities: (n,) what the model says of them.
        prior: precision of the prior, > 0; 0 only when `start` is given.
        start: (D, D) added to.

    Raises:
        DataError: shapes that do not match, or a prior that is not positive.
    """
    z, p = finite(differences, "differences", 2), chances(probabilities, "probabilities", 1)
    same_length(differences=z, probabilities=p)
    if not (prior > 0 or (prior == 0 and start is not None)):
        raise DataError(f"prior is {prior}; a precision > 0 is expected. Fix: 1.0 is a start.")
    total: Array = prior * np.eye(z.shape[1]) + (0.0 if start is None else start)
    for part in chunks(len(z)):
        total += z[part].T @ (z[part] * (p[part] * (1 - p[part]))[:, None])
    return total


def d_gains(differences: ArrayLike, probabilities: ArrayLike, precision: ArrayLike) -> Array:
    """log(1 + p(1 - p) z^T S z) of each pair alone, (N,) nats; twice the information gained.

    Args:
        differences: (N, D).
        probabilities: (N,).
        precision: (D, D) H, from `information`.

    Raises:
        DataError: shapes that do not match, or a precision that is not positive definite.
    """
    rows = _weighted(differences, probabilities)
    return np.log1p(_spread(rows, _root(precision, rows.shape[1])))


def greedy_d_optimal(
    differences: ArrayLike, probabilities: ArrayLike, k: int, precision: ArrayLike
) -> tuple[Index, Array]:
    """The greedy batch, with exact rank-one updates: O(N D (D + k)) time.

    Args:
        differences: (N, D), all in memory.
        probabilities: (N,).
        k: pairs to choose; all when there are fewer.
        precision: (D, D) H of what is labelled already.

    Returns:
        (k,) places in the order chosen, and (k,) the gain of each given those before it, nats.

    Raises:
        DataError: as of `d_gains`, or k below 1.
    """
    rows = _weighted(differences, probabilities)
    root = _root(precision, rows.shape[1])
    gains = _spread(rows, root)
    chosen, won, _ = _greedy(rows, gains, root, min(check_count(k), len(rows)), -np.inf)
    return chosen, won


@dataclass(frozen=True)
class Streamed:
    """What a streamed selection found."""

    index: Index  # (k,) places in the whole stream, in the order chosen
    gains: Array  # (k,) nats, each given those before it
    passes: int  # how often the pool was read


def stream_d_optimal(
    read: Callable[[], Iterable[Chunk]], k: int, precision: ArrayLike, *, reserve: int = 20_000
) -> Streamed:
    """The same batch as `greedy_d_optimal` from a pool that is read in chunks and never held.

    One pass keeps the `reserve` rows of the greatest gains and the greatest gain of the rest. The
    batch is chosen within the reserve as long as its best gain is no less than that: gains only
    fall, so nothing outside can be better. When it is not so any more, the pool is read again.

    Args:
        read: starts a new pass; each gives the same chunks in the same order.
        k: pairs to choose; all when there are fewer.
        precision: (D, D) H.
        reserve: rows kept, at least k; memory is 2 reserve D floats and one chunk.

    Raises:
        DataError: as of `d_gains`, or a reserve below k.
    """
    check_count(k)
    if reserve < k:
        raise DataError(f"reserve is {reserve}; at least k = {k} rows are expected.")
    at = finite(precision, "precision", 2).copy()
    taken: list[int] = []
    won: list[float] = []
    passes = 0
    while len(taken) < k:
        root = _root(at, len(at))
        kept, places, gains, outside = _one_pass(read, root, reserve, np.array(taken, dtype=int))
        passes += 1
        if not len(places):
            break
        chosen, fresh, rows = _greedy(kept, gains, root, min(k - len(taken), len(kept)), outside)
        taken += [int(place) for place in places[chosen]]
        won += fresh.tolist()
        at += rows.T @ rows
    return Streamed(np.array(taken, dtype=np.intp), np.array(won), passes)


def _one_pass(
    read: Callable[[], Iterable[Chunk]], root: Array, reserve: int, taken: Index
) -> tuple[Array, Index, Array, float]:
    """The reserve's rows, their places and gains in the order of the stream; best gain outside."""
    kept: list[Array] = []
    places: list[Index] = []
    gains: list[Array] = []
    held, start, outside = 0, 0, -np.inf

    def shrink() -> None:
        nonlocal held, outside
        rows, where, value = np.concatenate(kept), np.concatenate(places), np.concatenate(gains)
        if len(value) > reserve:
            # A stable order: of equal gains the earlier stay, as argmax would take them.
            order = np.argsort(-value, kind="stable")
            outside = max(outside, float(value[order[reserve]]))
            best = np.sort(order[:reserve])
            rows, where, value = rows[best], where[best], value[best]
        kept[:], places[:], gains[:], held = [rows], [where], [value], len(value)

    for differences, probabilities in read():
        z, p = finite(differences, "differences", 2), chances(probabilities, "probabilities", 1)
        same_length(differences=z, probabilities=p)
        for part in chunks(len(z), min(reserve, 16384)):
            rows = _weighted(z[part], p[part])
            value = _spread(rows, root)
            where = np.arange(start, start + len(rows))
            start += len(rows)
            fresh = ~np.isin(where, taken)
            # What cannot enter a full reserve is not copied.
            enters = fresh & (value > outside) if outside > -np.inf else fresh
            left = fresh & ~enters
            if left.any():
                outside = max(outside, float(value[left].max()))
            kept.append(rows[enters])
            places.append(where[enters])
            gains.append(value[enters])
            held += int(enters.sum())
            if held >= 2 * reserve:
                shrink()
    if kept:
        shrink()
        return kept[0], places[0], gains[0], outside
    return np.zeros((0, len(root))), np.zeros(0, dtype=np.intp), np.zeros(0), outside


def _greedy(
    rows: Array, gains: Array, root: Array, k: int, outside: float
) -> tuple[Index, Array, Array]:
    """Choose up to k rows, stopping where the best falls below `outside`.

    `gains` are x^T S x and are changed. Returns places, gains in nats, and the rows chosen.
    """
    chosen: list[int] = []
    won: list[float] = []
    past: list[Array] = []  # S_t = S_0 - sum a a^T, one a for each chosen row
    while len(chosen) < k:
        best = int(gains.argmax())
        if gains[best] < outside:
            break
        x = rows[best]
        towards = root @ (root.T @ x)  # S x
        for a in past:
            towards = towards - a * (a @ x)
        step = towards / np.sqrt(1 + x @ towards)
        chosen.append(best)
        won.append(float(np.log1p(max(gains[best], 0.0))))
        past.append(step)
        gains -= np.square(rows @ step)
        np.maximum(gains, 0.0, out=gains)
        gains[chosen] = -np.inf
    index = np.array(chosen, dtype=np.intp)
    return index, np.array(won), rows[index]


def _weighted(differences: ArrayLike, probabilities: ArrayLike) -> Array:
    """Rows x = sqrt(p(1 - p)) z, (N, D)."""
    z, p = finite(differences, "differences", 2), chances(probabilities, "probabilities", 1)
    same_length(differences=z, probabilities=p)
    return z * np.sqrt(p * (1 - p))[:, None]


def _spread(rows: Array, root: Array) -> Array:
    """x^T S x of each row, (N,)."""
    found = np.empty(len(rows))
    for part in chunks(len(rows)):
        found[part] = np.square(rows[part] @ root).sum(axis=1)
    return found


def _root(precision: ArrayLike, width: int) -> Array:
    """A (D, D) matrix R with R R^T = H^-1."""
    h = finite(precision, "precision", 2)
    if h.shape != (width, width):
        raise DataError(
            f"precision has shape {h.shape}; ({width}, {width}) is expected for differences of "
            f"width {width}. Fix: make it with `information` from the same features."
        )
    try:
        upper = cholesky(h)  # H = U^T U
    except LinAlgError as error:
        raise DataError(
            f"precision is not positive definite ({error}). Fix: a prior > 0 in `information`."
        ) from error
    found: Array = solve_triangular(upper, np.eye(width))
    return found
