"""How unsure one model is of an item; the simplest reason to ask for it.

For pairs there is one method. Entropy h(p), margin -|2p - 1| and least confidence 1 - max(p, 1 - p)
all fall with |p - 1/2|, so they rank pairs identically and `pair_uncertainty` stands for the three.
With more than two classes (a tie, a grade) they differ, and each is here: entropy looks at all
classes, margin at the two likeliest, least confidence at the likeliest (Settles 2009, section 3.1).

Leaves out what the doubt is made of: a pair of equal answers is as unsure as one that nobody has
judged yet. `feedback.acquisition.committee` tells them apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from feedback.acquisition.arrays import Array, binary_entropy, chances, distributions
from feedback.errors import DataError


def pair_uncertainty(probabilities: ArrayLike) -> Array:
    """Entropy h(p) of each pair's answer, (N,) nats in [0, log 2].

    Args:
        probabilities: (N,) P(the first answer is better).

    Raises:
        DataError: not (N,) probabilities.
    """
    return binary_entropy(chances(probabilities, "probabilities", 1))


def entropy(probabilities: ArrayLike) -> Array:
    """Shannon entropy -sum_c p_c log p_c, (N,) nats.

    Args:
        probabilities: (N, C), each row a distribution.

    Raises:
        DataError: rows that are no distributions over at least two classes.
    """
    p = _classes(probabilities)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)


def margin(probabilities: ArrayLike) -> Array:
    """Likeliest class less the second, with its sign turned: (N,) in [-1, 0].

    Arguments and errors as of `entropy`. Scheffer et al. (2001).
    """
    ordered = np.sort(_classes(probabilities), axis=1)
    return ordered[:, -2] - ordered[:, -1]


def least_confidence(probabilities: ArrayLike) -> Array:
    """1 - max_c p_c, (N,) in [0, 1 - 1/C]. Arguments and errors as of `entropy`."""
    return 1 - _classes(probabilities).max(axis=1)


def _classes(probabilities: ArrayLike) -> Array:
    p = distributions(probabilities, "probabilities", 2)
    if p.shape[1] < 2:
        raise DataError(
            f"probabilities has {p.shape[1]} class; at least 2 are expected. "
            "Fix: for pairs pass (N,) to pair_uncertainty."
        )
    return p
