"""Distances in chunks: nearest neighbours and directions, without an N x N matrix in memory."""

from __future__ import annotations

import numpy as np

from feedback.acquisition.arrays import Array, Index, chunks


def squared_distances(a: Array, b: Array) -> Array:
    """|a_i - b_j|^2, (A, D) and (B, D) to (A, B)."""
    found = np.square(a).sum(axis=1)[:, None] - 2 * (a @ b.T) + np.square(b).sum(axis=1)
    return np.maximum(found, 0.0)


def neighbour_distances(points: Array, among: Array, k: int, itself: bool) -> Array:
    """Distances of the k nearest, (N, D) and (A, D) to (N, k), the nearest first.

    Args:
        points: (N, D).
        among: (A, D); the same array as `points` where `itself` is true.
        k: at most A, or A - 1 without itself.
        itself: leave each point itself out, by its place; a copy of it counts.
    """
    found = np.empty((len(points), k))
    for part in chunks(len(points), max(1, 4_000_000 // max(len(among), 1))):
        square = squared_distances(points[part], among)
        if itself:
            square[np.arange(len(square)), np.arange(part.start, part.stop)] = np.inf
        found[part] = np.sqrt(np.sort(np.partition(square, k - 1, axis=1)[:, :k], axis=1))
    return found


def nearest(points: Array, centres: Array) -> tuple[Index, Array]:
    """Place of the nearest centre and the squared distance to it, each (N,)."""
    place = np.empty(len(points), dtype=np.intp)
    square = np.empty(len(points))
    for part in chunks(len(points), max(1, 4_000_000 // max(len(centres), 1))):
        found = squared_distances(points[part], centres)
        place[part] = found.argmin(axis=1)
        square[part] = found.min(axis=1)
    return place, square


def directions(points: Array) -> Array:
    """Rows of length 1, (N, D); a row of zeros stays one."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    found: Array = points / np.where(length > 0, length, 1.0)
    return found
