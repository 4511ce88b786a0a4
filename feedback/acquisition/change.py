"""Pairs whose label would move the model most: expected gradient length, and BADGE.

The gradient of the Bradley-Terry loss by the last layer is (p - y) z, so over the label's chances

    E |gradient| = p (1 - p) |z| + (1 - p) p |z| = 2 p (1 - p) |z|

(Settles et al. 2008). BADGE (Ash et al. 2020, arXiv 1906.03671) takes the gradient under the
label that the model finds likelier, of length (1 - max(p, 1 - p)) |z|, as an embedding, and spreads
a batch over it by k-means++. The sign is kept here: turning a pair round turns z and p, and leaves
the embedding where it was. Both know the last layer only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from feedback.acquisition.arrays import Array, Index, chances, check_count, finite, same_length


def expected_gradient_length(differences: ArrayLike, probabilities: ArrayLike) -> Array:
    """2 p (1 - p) |z|, (N,).

    Args:
        differences: (N, D) z.
        probabilities: (N,) p.

    Raises:
        DataError: shapes that do not match, or no probabilities.
    """
    z, p = finite(differences, "differences", 2), chances(probabilities, "probabilities", 1)
    same_length(differences=z, probabilities=p)
    found: Array = 2 * p * (1 - p) * np.linalg.norm(z, axis=1)
    return found


def gradient_embeddings(differences: ArrayLike, probabilities: ArrayLike) -> Array:
    """Gradient under the likelier label, (N, D): -(1 - p) z for p >= 1/2, else p z.

    Arguments and errors as of `expected_gradient_length`.
    """
    z, p = finite(differences, "differences", 2), chances(probabilities, "probabilities", 1)
    same_length(differences=z, probabilities=p)
    return z * np.where(p >= 0.5, p - 1, p)[:, None]


def badge(
    differences: ArrayLike, probabilities: ArrayLike, k: int, rng: np.random.Generator
) -> tuple[Index, Array]:
    """K pairs spread over gradient embeddings; the first is the longest, as in BADGE's code.

    Args:
        differences: (N, D).
        probabilities: (N,).
        k: how many; all when there are fewer.
        rng: draws the others.

    Returns:
        Places, and for each its squared distance from those before it (the first: its own squared
        length).

    Raises:
        DataError: as of `expected_gradient_length`, or k below 1.
    """
    return k_means_plus_plus(gradient_embeddings(differences, probabilities), k, rng)


def k_means_plus_plus(points: ArrayLike, k: int, rng: np.random.Generator) -> tuple[Index, Array]:
    """k-means++ seeds: each is drawn with chances as its squared distance from the nearest before.

    Args:
        points: (N, D); the first seed is the longest.
        k: how many; all when there are fewer.
        rng: draws. Where only copies of seeds are left, it draws among them evenly.

    Returns:
        Places and squared distances, as of `badge`. Arthur and Vassilvitskii (2007).

    Raises:
        DataError: no (N, D), or k below 1.
    """
    x = finite(points, "points", 2)
    k = min(check_count(k), len(x))
    lengths = np.square(x).sum(axis=1)
    nearest = lengths.copy()
    chosen: list[int] = []
    distances: list[float] = []
    for _ in range(k):
        if not chosen:
            place = int(nearest.argmax())
        else:
            free = nearest.copy()
            # A copy's distance is 0 but for rounding.
            free[free < 1e-12 * max(float(lengths.max()), 1e-300)] = 0.0
            free[chosen] = 0.0
            if not free.any():
                free = np.ones(len(x))
                free[chosen] = 0.0
            place = int(rng.choice(len(x), p=free / free.sum()))
        chosen.append(place)
        distances.append(float(nearest[place]))
        towards = lengths - 2 * (x @ x[place]) + lengths[place]
        nearest = (
            np.minimum(nearest, np.maximum(towards, 0.0))
            if len(chosen) > 1
            else (np.maximum(towards, 0.0))
        )
    return np.array(chosen, dtype=np.intp), np.array(distances)
