"""How much pseudo-labels count beside people's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def capped_weights(
    human: float, confidence: Sequence[float] | np.ndarray, most: float
) -> np.ndarray:
    """The weight of each pseudo-label: its own certainty 2 p - 1, all of them scaled to the cap.

    Without the cap ten thousand labels of a model drown the five hundred of people that it was
    taught by, and its errors are learnt as truths.

    Args:
        human: total weight of people's labels.
        confidence: (n,) max(p, 1 - p) of each pseudo-label, in [1/2, 1].
        most: total weight of pseudo-labels, as a share of `human`.

    Returns:
        (n,) weights in [0, 1] whose sum is at most `most * human`.

    Raises:
        ValueError: a confidence outside [1/2, 1], or a negative total.
    """
    p = np.asarray(confidence, dtype=np.float64)
    if human < 0 or most < 0 or (p.size and not ((p >= 0.5) & (p <= 1)).all()):
        raise ValueError("confidences lie in [1/2, 1], totals are not negative.")
    own = 2 * p - 1
    total = float(own.sum())
    if total <= 0:
        return np.zeros_like(own)
    return own * min(1.0, most * human / total)
