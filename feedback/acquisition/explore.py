"""Chance in the choice: epsilon mixing and power scores.

The greatest scores of one moment are often alike, and the model that gave them may be wrong about
what it does not know. A little chance spreads the batch and keeps some pairs that no model chose.
Thompson sampling and information-directed sampling, which choose between the answers of one prompt,
are in `feedback.acquisition.duels`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feedback.acquisition.arrays import Index, check_count, finite, top
from feedback.errors import DataError


def epsilon_mix(
    scores: ArrayLike, k: int, epsilon: float, rng: np.random.Generator
) -> tuple[Index, NDArray[np.bool_]]:
    """K places of which each is drawn evenly with chance epsilon, else the next best.

    Args:
        scores: (N,).
        k: how many; all when there are fewer.
        epsilon: in [0, 1].
        rng: draws.

    Returns:
        Places, the best first, and whether each was drawn by chance.

    Raises:
        DataError: epsilon outside [0, 1], or k below 1.
    """
    if not 0 <= epsilon <= 1:
        raise DataError(f"epsilon is {epsilon}; a chance in [0, 1] is expected.")
    values = finite(scores, "scores", 1)
    k = min(check_count(k), len(values))
    lucky = int(rng.binomial(k, epsilon))
    best = top(values, k - lucky, rng) if k > lucky else np.zeros(0, dtype=np.intp)
    rest = np.setdiff1d(np.arange(len(values)), best)
    drawn = rng.choice(rest, size=lucky, replace=False)
    return np.concatenate([best, drawn]), np.arange(k) >= k - lucky


def power_sample(
    scores: ArrayLike, k: int, rng: np.random.Generator, power: float = 1.0
) -> tuple[Index, NDArray[np.float64]]:
    """K places drawn without repetition with chances as score^power: power-BALD.

    The k greatest of power log score + Gumbel noise (Kirsch et al. 2023, arXiv 2106.12059).

    Args:
        scores: (N,), none negative; a score of 0 is drawn only when no other is left.
        k: how many; all when there are fewer.
        rng: draws.
        power: 0 draws evenly, infinity takes the greatest; 1 is the paper's.

    Returns:
        Places in the order of the noisy scores, and these scores.

    Raises:
        DataError: a negative score or power, or k below 1.
    """
    values = finite(scores, "scores", 1)
    if values.size and values.min() < 0:
        raise DataError(
            f"scores[{int(values.argmin())}] is {values.min():.4g}; power sampling takes scores "
            ">= 0. Fix: use bald, an entropy, or a Mix, which lies in [0, 1]."
        )
    if not 0 <= power < np.inf:
        raise DataError(f"power is {power}; a finite number >= 0 is expected.")
    noisy = power * np.log(np.where(values > 0, values, 1.0)) + rng.gumbel(size=len(values))
    if power:
        noisy = np.where(values > 0, noisy, noisy - 1e9)  # behind all others, in random order
    chosen = top(noisy, k)
    return chosen, noisy[chosen]
