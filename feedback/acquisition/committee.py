"""What several models disagree about: vote entropy, mean divergence, and BALD.

A committee of M members gives p_k; its mean is p. For pairs, with h the binary entropy,

    vote entropy  = H(share of the members that prefer each answer)
    mean KL       = 1/M sum_k KL(p_k || p)
    BALD          = h(p) - 1/M sum_k h(p_k)

Mean KL (McCallum and Nigam 1998) and BALD (Houlsby et al. 2011, arXiv 1112.5745, eq. 2) are one
number: the mutual information of the label and the member, what an answer is expected to say about
which of the models is right. It is 0 where all members say 1/2 alike: no label teaches anything
there, though the entropy is greatest. Leaves out the joint information of a batch (BatchBALD):
`feedback.acquisition.design` and `Diversify` keep a batch from asking one thing ten times.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, rel_entr

from feedback.acquisition.arrays import Array, chances, chunks, distributions
from feedback.errors import DataError


def vote_entropy(members: ArrayLike) -> Array:
    """Entropy of the members' votes, (N,) nats; an undecided member votes half for each.

    Args:
        members: (M, N) each member's P(the first answer is better), or (M, N, C) over classes.

    Returns:
        (N,), 0 where all vote alike. Engelson and Dagan (1996).

    Raises:
        DataError: fewer than two members, or no probabilities.
    """

    def votes(p: Array) -> Array:
        best = p == p.max(axis=2, keepdims=True)
        shares = (best / best.sum(axis=2, keepdims=True)).mean(axis=0)
        found: Array = entr(shares).sum(axis=1)
        return found

    return _each(members, votes)


def mean_kl(members: ArrayLike) -> Array:
    """Mean over members of KL(p_k || mean p), (N,) nats. Arguments and errors as above."""

    def divergence(p: Array) -> Array:
        # The mean of the least of floats rounds to 0, which would be infinitely far from them.
        middle = np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny)
        found: Array = rel_entr(p, middle).sum(axis=2).mean(axis=0)
        return found

    return _each(members, divergence)


def bald(members: ArrayLike) -> Array:
    """Information of one label about the members, (N,) nats in [0, log min(M, C)].

    Arguments and errors as of `vote_entropy`. Rows are taken in chunks: a pool of a million pairs
    needs little more memory than `members` itself.
    """

    def information(p: Array) -> Array:
        total = entr(p.mean(axis=0)).sum(axis=1)
        # Rounding alone makes it negative.
        return np.maximum(total - entr(p).sum(axis=2).mean(axis=0), 0.0)

    return _each(members, information)


def mean_probability(members: ArrayLike) -> Array:
    """The committee's own probability, (N,) or (N, C). Arguments and errors as above."""
    return _committee(members).mean(axis=0)


def _each(members: ArrayLike, score: Callable[[Array], Array]) -> Array:
    """Score chunks of (M, rows, C)."""
    p = _committee(members)
    found = np.empty(p.shape[1])
    for part in chunks(p.shape[1]):
        rows = p[:, part]
        found[part] = score(np.stack([rows, 1 - rows], axis=2) if p.ndim == 2 else rows)
    return found


def _committee(members: ArrayLike) -> Array:
    p = np.asarray(members)
    check = distributions if p.ndim == 3 else chances
    p = check(members, "members", 2, 3)
    if len(p) < 2:
        raise DataError(
            f"a committee of {len(p)} cannot disagree: members has shape {p.shape}, (M, N) or "
            "(M, N, C) with M >= 2 is expected. Fix: sample more members, or use pair_uncertainty."
        )
    return p
