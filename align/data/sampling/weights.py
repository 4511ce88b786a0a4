"""How often a row is drawn, as a positive weight for each: pure functions on arrays.

Weights multiply: `balanced(classes) * recency(times, 86400 * 30)` balances and prefers new rows.
Every function returns (N,) with the mean 1, so that a weight reads as "times as often as uniform".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from align.data.curriculum.rank import Floats, curriculum_order
from align.data.mix import temperature_shares


def class_balanced(classes: Sequence[Any], power: float = 1.0) -> Floats:
    """n_c^-p for a row of class c that has n_c rows; p = 1 draws all classes alike, p = 0 as is."""
    _, where, counts = np.unique(_keys(classes), return_inverse=True, return_counts=True)
    return _unit(counts[where].astype(np.float64) ** -power)


def effective_number(classes: Sequence[Any], beta: float = 0.999) -> Floats:
    """1 / E_n with the effective number of samples E_n = (1 - beta^n) / (1 - beta).

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", where a class's
    term is weighted so. beta = 0 leaves rows as they are; beta near 1 is `class_balanced`.

    Args:
        classes: (N,), any values that can be told apart.
        beta: in [0, 1).

    Raises:
        ValueError: beta out of its range.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; expected 0 <= beta < 1.")
    _, where, counts = np.unique(_keys(classes), return_inverse=True, return_counts=True)
    return _unit((1 - beta) / (1 - beta ** counts[where].astype(np.float64)))


def recency(times: Sequence[float] | Floats, half_life: float) -> Floats:
    """2^(-(newest - t) / half_life): a row a half-life older is drawn half as often.

    Args:
        times: (N,), in any unit.
        half_life: in the same unit, above 0.
    """
    found = np.asarray(times, dtype=np.float64)
    # past 1000 half-lives a float64 would be 0, and a row that is never drawn
    return _unit(np.exp2(-np.minimum((found.max() - found) / half_life, 1000.0)))


def temperature_mix(sources: Sequence[Any], alpha: float) -> Floats:
    """Sources drawn in proportion to their sizes to the power alpha (Conneau et al. 2019).

    Rows of a small source repeat, where `align.data.mix` would leave rows of the large ones out.

    Args:
        sources: (N,), which source each row came from.
        alpha: 1 draws rows as they are, 0 draws sources alike; XLM-R has 0.3.
    """
    _, where, counts = np.unique(_keys(sources), return_inverse=True, return_counts=True)
    shares = np.asarray(temperature_shares(counts.tolist(), alpha))
    return _unit((shares / counts)[where])


def by_difficulty(
    difficulty: Sequence[float] | Floats, power: float = 1.0, *, prefer: str = "hard"
) -> Floats:
    """(rank / N)^p with ranks from 1: the hardest row is drawn most often.

    Ranks, so that one row of an outlying difficulty does not fill every batch; equal difficulties
    share their mean rank.

    Args:
        difficulty: (N,), higher is harder.
        power: 0 is uniform.
        prefer: "hard" or "easy".
    """
    values = np.asarray(difficulty, dtype=np.float64)
    keys = values if prefer == "hard" else -values
    ranks = np.empty(len(keys))
    ranks[curriculum_order(keys)] = np.arange(1, len(keys) + 1)
    _, where = np.unique(keys, return_inverse=True)
    mean = np.bincount(where, weights=ranks) / np.bincount(where)
    return _unit((mean[where] / len(keys)) ** power)


def by_uncertainty(uncertainty: Sequence[Any], power: float = 1.0, uniform: float = 0.1) -> Floats:
    """u^p, mixed with a share of uniform draws, so that sure rows are still seen.

    Args:
        uncertainty: (N,) of 0 or more: a posterior's standard deviation, an entropy; or (N, K)
            predictions of an ensemble's members, whose standard deviation is taken.
        power: of the uncertainty.
        uniform: the share of draws that do not look at it, in (0, 1].

    Raises:
        ValueError: a negative uncertainty, or `uniform` out of its range.
    """
    found = np.asarray(uncertainty, dtype=np.float64)
    if found.ndim == 2:
        found = found.std(axis=1)
    if not 0 < uniform <= 1:
        raise ValueError(f"uniform is {uniform}; expected a share above 0 and up to 1.")
    if found.ndim != 1 or (found < 0).any():
        raise ValueError("uncertainties are numbers of 0 or more, or lists of members' predictions")
    raised = found**power
    drawn = _unit(raised) if raised.sum() > 0 else np.ones(len(found))
    return uniform + (1 - uniform) * drawn


def _unit(weights: Floats) -> Floats:
    """With the mean 1."""
    scaled: Floats = weights / weights.max()  # first, or a mean of tiny numbers would be 0
    return scaled / scaled.mean()


def _keys(values: Sequence[Any]) -> np.ndarray:
    """Values that numpy can sort, whatever they are."""
    return np.asarray([repr(value) for value in values])
