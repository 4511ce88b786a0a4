"""How strict a round is: thresholds over rounds, and over the improve steps of ReST."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def tau_at(first: float, last: float, number: int, rounds: int) -> float:
    """The confidence that a label needs in a round: from `first` to `last` in equal steps.

    Early labels are the worst, so they have to be the surest.

    Args:
        first: of round 1.
        last: of the last round.
        number: the round, 1 to `rounds`; later ones keep `last`.
        rounds: how many there are.

    Raises:
        ValueError: no such round.
    """
    if rounds < 1 or number < 1:
        raise ValueError(f"round {number} of {rounds}: rounds are counted from 1.")
    if rounds == 1:
        return first
    share = min(number - 1, rounds - 1) / (rounds - 1)
    return first + (last - first) * share


def quantile_threshold(scores: Sequence[float] | np.ndarray, quantile: float) -> float:
    """The score that answers have to reach, so that about a share of 1 - `quantile` of them do.

    ReST's filter (Gulcehre et al. 2023, arXiv 2308.08998, section 3): scores at or above it are
    kept. It is one of the scores, so that of equal ones all or none are kept.

    Args:
        scores: (n,) of everything that was drawn.
        quantile: in [0, 1].

    Raises:
        ValueError: no scores, or a quantile outside [0, 1].
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or not 0 <= quantile <= 1:
        raise ValueError(f"quantile {quantile} of {values.size} scores: it lies in [0, 1].")
    return float(np.quantile(values, quantile, method="higher"))


def improve_step(history: Sequence[bool], steps: int) -> int:
    """Which improve step of ReST comes next; 0 means that answers are drawn anew (grow).

    A round that was not promoted ends its row of steps: the threshold after it would only leave
    fewer of the answers that did not help.

    Args:
        history: whether each round so far was promoted, the oldest first.
        steps: improve steps after each grow step.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"{steps} improve steps: at least 1 is expected.")
    place = -1
    for promoted in history:
        place = (place + 1) % steps if place < steps - 1 else 0
        if not promoted:
            place = steps - 1  # what comes next is a first step
    return (place + 1) % steps
