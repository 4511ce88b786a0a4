"""Prompts as points: an embedding of text without a model, and BAL-PM's entropy of prompts.

BAL-PM (Melo et al. 2024, arXiv 2406.10023) adds to each pair's epistemic score the entropy of the
prompts asked so far, so that ten unsure pairs are not ten answers to one prompt:

    argmax U(pair) + beta H(prompts asked + this one).

H is a nearest-neighbour estimate with the radius taken from the whole pool, after Kraskov et al.
(2004). With eps the distance of the k-th neighbour in the pool and n the number of
prompts asked within eps, one more prompt adds, up to a constant,

    d log eps - psi(n + 1),

great in empty regions and small where prompts were asked. U here is BALD; the paper's own score is
the committee's, too. Embeddings are best the policy's or the reward model's own pooled states.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma

from feedback.acquisition.arrays import Array, Index, check_count, chunks, finite, same_length
from feedback.acquisition.geometry import directions, neighbour_distances, squared_distances
from feedback.errors import DataError


def embed_texts(texts: Sequence[str], width: int = 256) -> Array:
    """Hashed words and pairs of words, weighed by rarity, (N, width) of length 1.

    It knows which words texts share and nothing of their meaning: enough to find near-duplicates,
    and no more. The same text has the same columns in every run (Weinberger et al. 2009).

    Args:
        texts: N.
        width: columns; words that share one are told apart by their sign only.

    Raises:
        DataError: a width below 1.
    """
    check_count(width, "width")
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        for token in {*words, *map(" ".join, pairwise(words))}:
            code = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "big")
            rows.append(row)
            columns.append((code >> 1) % width)
            values.append(1.0 if code & 1 else -1.0)
    found = np.zeros((len(texts), width))
    np.add.at(found, (np.array(rows, dtype=int), np.array(columns, dtype=int)), values)
    held = (found != 0).sum(axis=0)
    return directions(found * np.log((1 + len(texts)) / (1 + held)) + 0.0)


def prompt_entropy(
    prompts: ArrayLike,
    asked: ArrayLike | None = None,
    *,
    neighbours: int = 5,
    dimension: float | None = None,
) -> Array:
    """D log eps - psi(n + 1) of each prompt, (N,): what asking it adds to the prompts' entropy.

    Args:
        prompts: (N, E) the candidates' embeddings.
        asked: (A, E) of the prompts asked so far.
        neighbours: k of eps, over candidates and asked together.
        dimension: d; None: E. What matters is its size against beta.

    Raises:
        DataError: fewer than two prompts, or widths that differ.
    """
    radius, near = _radii(*_both(prompts, asked), neighbours)
    width = np.asarray(prompts).shape[1] if dimension is None else dimension
    found: Array = width * np.log(radius) - digamma(near + 1)
    return found


def bal_pm(
    scores: ArrayLike,
    prompts: ArrayLike,
    k: int,
    *,
    beta: float,
    asked: ArrayLike | None = None,
    neighbours: int = 5,
    dimension: float | None = None,
) -> tuple[Index, Array]:
    """The greedy batch of U + beta (d log eps - psi(n + 1)); each choice raises n around it.

    Args:
        scores: (N,) U, such as `bald`.
        prompts: (N, E).
        k: how many; all when there are fewer.
        beta: weight of the entropy, >= 0; 0 leaves U alone.
        asked: (A, E).
        neighbours: as of `prompt_entropy`.
        dimension: as of `prompt_entropy`.

    Returns:
        Places, and the value of each when it was chosen.

    Raises:
        DataError: as of `prompt_entropy`, a negative beta, or scores of another length.
    """
    if not beta >= 0:
        raise DataError(f"beta is {beta}; a weight >= 0 is expected.")
    u = finite(scores, "scores", 1)
    x, done = _both(prompts, asked)
    same_length(scores=u, prompts=x)
    radius, near = _radii(x, done, neighbours)
    base = u + beta * (x.shape[1] if dimension is None else dimension) * np.log(radius)
    chosen: list[int] = []
    values: list[float] = []
    for _ in range(min(check_count(k), len(x))):
        value = base - beta * digamma(near + 1)
        value[chosen] = -np.inf
        place = int(value.argmax())
        chosen.append(place)
        values.append(float(value[place]))
        near = near + (squared_distances(x, x[place : place + 1])[:, 0] <= radius**2)
    return np.array(chosen, dtype=np.intp), np.array(values)


def _both(prompts: ArrayLike, asked: ArrayLike | None) -> tuple[Array, Array]:
    x = finite(prompts, "prompts", 2)
    done = finite(asked, "asked", 2) if asked is not None else x[:0]
    if len(x) + len(done) < 2:
        raise DataError(f"{len(x)} prompt has no neighbours; at least 2 are expected.")
    if done.shape[1] != x.shape[1]:
        raise DataError(
            f"asked is of width {done.shape[1]}, prompts of {x.shape[1]}; one expected."
        )
    return x, done


def _radii(x: Array, done: Array, neighbours: int) -> tuple[Array, Array]:
    """Eps (N,), at least 1e-6 (copies have none), and how many of `done` lie within it (N,)."""
    among = np.concatenate([x, done])
    count = min(check_count(neighbours, "neighbours"), len(among) - 1)
    # Each candidate is its own place in `among`, so `itself` leaves it out.
    radius = np.maximum(neighbour_distances(x, among, count, itself=True)[:, -1], 1e-6)
    near = np.zeros(len(x))
    if len(done):
        for part in chunks(len(x), max(1, 4_000_000 // len(done))):
            inside = squared_distances(x[part], done) <= np.square(radius[part])[:, None]
            near[part] = inside.sum(axis=1)
    return radius, near
