"""Items that stand for the rest: k-center, k-means, typicality, density.

They look at where items lie and not at what a model says of them, so they serve before there is a
model, on `feedback.acquisition.prompts.embed_texts` or any embedding, and in a `Mix` beside a score
of doubt, which left alone likes outliers. Distances are Euclidean: give directions
(`feedback.acquisition.geometry.directions`) for cosine.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy.cluster.vq import kmeans2

from feedback.acquisition.arrays import Array, Index, check_count, finite
from feedback.acquisition.geometry import (
    directions,
    nearest,
    neighbour_distances,
    squared_distances,
)
from feedback.errors import DataError


def k_center(points: ArrayLike, k: int, covered: ArrayLike | None = None) -> tuple[Index, Array]:
    """Choose k points, each the farthest from all that is covered so far.

    Sener and Savarese (2018), arXiv 1708.00489, the greedy form: the last radius is at most twice
    the best (Gonzalez 1985).

    Args:
        points: (N, D).
        k: how many; all when there are fewer.
        covered: (A, D) points that are labelled already; none: the first choice is the point
            nearest the mean.

    Returns:
        Places, and for each its distance from what was covered before (infinite for a first one).

    Raises:
        DataError: widths that differ, or k below 1.
    """
    x = finite(points, "points", 2)
    k = min(check_count(k), len(x))
    far: Array = np.full(len(x), np.inf)
    if covered is not None and len(done := finite(covered, "covered", 2)):
        if done.shape[1] != x.shape[1]:
            raise DataError(
                f"covered is of width {done.shape[1]}, points of {x.shape[1]}; one is expected."
            )
        far = nearest(x, done)[1]
    chosen: list[int] = []
    radii: list[float] = []
    for _ in range(k):
        first = bool(np.isinf(far).all())
        place = int(np.square(x - x.mean(axis=0)).sum(axis=1).argmin() if first else far.argmax())
        chosen.append(place)
        radii.append(float(np.sqrt(far[place])))
        far = np.minimum(far, squared_distances(x, x[place : place + 1])[:, 0])
        far[chosen] = -1.0  # exact copies are 0: a chosen place is never chosen again
    return np.array(chosen, dtype=np.intp), np.array(radii)


def k_means(points: ArrayLike, k: int, rng: np.random.Generator) -> Index:
    """The point nearest each of k cluster centres, (k,) places, the largest cluster first.

    Args:
        points: (N, D).
        k: how many; all when there are fewer.
        rng: seeds the clusters (k-means++ and Lloyd, scipy).

    Raises:
        DataError: no (N, D), or k below 1.
    """
    x = finite(points, "points", 2)
    k = min(check_count(k), len(x))
    label = clusters(x, k, rng)
    chosen = []
    for name in _by_size(label):
        members = np.flatnonzero(label == name)
        centre = x[members].mean(axis=0)
        chosen.append(int(members[np.square(x[members] - centre).sum(axis=1).argmin()]))
    # Copies give fewer clusters than asked for: the rest are those farthest from the chosen.
    found = np.array(chosen, dtype=np.intp)
    if len(found) < k:
        others = np.setdiff1d(np.arange(len(x)), found)
        found = np.concatenate([found, others[k_center(x[others], k - len(found), x[found])[0]]])
    return found


def typicality(points: ArrayLike, neighbours: int = 20) -> Array:
    """1 / mean distance of the nearest neighbours, (N,): great where many are alike.

    Hacohen et al. (2022), arXiv 2202.02794, eq. 1; with little money, typical items teach most.

    Args:
        points: (N, D).
        neighbours: how many, at most N - 1. Time is O(N^2 D).

    Raises:
        DataError: fewer than two points.
    """
    x = finite(points, "points", 2)
    if len(x) < 2:
        raise DataError(f"{len(x)} point has no neighbours; at least 2 are expected.")
    count = min(check_count(neighbours, "neighbours"), len(x) - 1)
    mean = neighbour_distances(x, x, count, itself=True).mean(axis=1)
    return 1 / (mean + 1e-7)  # copies have distance 0


def typical(
    points: ArrayLike,
    k: int,
    rng: np.random.Generator,
    covered: ArrayLike | None = None,
    neighbours: int = 20,
) -> tuple[Index, Array]:
    """TypiClust: the most typical item of each of the largest clusters that nobody has asked from.

    Args:
        points: (N, D) candidates.
        k: how many; all when there are fewer.
        rng: seeds the clusters, of which there are k more than points covered.
        covered: (A, D) points that are labelled already.
        neighbours: of the typicality, within the cluster.

    Returns:
        Places and typicalities.

    Raises:
        DataError: as of `k_center`.
    """
    x = finite(points, "points", 2)
    k = min(check_count(k), len(x))
    done = finite(covered, "covered", 2) if covered is not None else x[:0]
    everything = np.concatenate([x, done])
    label = clusters(everything, min(k + len(done), len(everything)), rng)
    mine, theirs = label[: len(x)], set(label[len(x) :].tolist())
    order = _by_size(mine)
    order = [n for n in order if n not in theirs] + [n for n in order if n in theirs]
    left = {name: np.flatnonzero(mine == name) for name in order}
    chosen: list[int] = []
    scores: list[float] = []
    while len(chosen) < k:
        for name in [n for n in order if len(left[n])][: k - len(chosen)]:
            members = left[name]
            score = typicality(x[members], neighbours) if len(members) > 1 else np.ones(1)
            best = int(score.argmax())
            chosen.append(int(members[best]))
            scores.append(float(score[best]))
            left[name] = np.delete(members, best)
    return np.array(chosen, dtype=np.intp), np.array(scores)


def density(points: ArrayLike) -> Array:
    """Mean cosine to all points, (N,) in [-1, 1]: low for outliers; O(N D).

    The density of Settles and Craven (2008). Weigh a score by it in a `Mix`.

    Raises:
        DataError: no (N, D).
    """
    unit = directions(finite(points, "points", 2))
    found: Array = unit @ unit.mean(axis=0)
    return found


def clusters(points: Array, k: int, rng: np.random.Generator) -> Index:
    """Cluster of each point, (N,), by k-means++ and 20 rounds of Lloyd; some may stay empty."""
    if k >= len(points):
        return np.arange(len(points))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster is no fault here
        _, label = kmeans2(points, k, iter=20, minit="++", missing="warn", seed=rng)
    return np.asarray(label, dtype=np.intp)


def _by_size(label: Index) -> list[int]:
    names, sizes = np.unique(label, return_counts=True)
    return [int(names[i]) for i in np.argsort(-sizes, kind="stable")]
