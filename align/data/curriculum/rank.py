"""From difficulties to the order in which a curriculum lets rows in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError

Order: TypeAlias = Literal["easy", "hard", "random"]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def curriculum_order(
    difficulty: Sequence[float] | Floats, order: Order = "easy", seed: int = 0
) -> Ints:
    """Rows in the order in which they are let in.

    Competence is a share of rows, not of the range of difficulties: Platanios et al. 2019 map
    difficulties through their cumulative distribution, which is the rank.

    Args:
        difficulty: (N,), higher is harder.
        order: "easy" first (a curriculum), "hard" first (an anti-curriculum), or "random": a pool
            that grows alike, of rows of any difficulty. That is the control of Wu et al. 2021,
            "When Do Curricula Work?", which tells the effect of the order from the effect of
            seeing fewer rows more often.
        seed: of ties, and of a random order.

    Returns:
        (N,) row numbers; equal difficulties stand in random order.
    """
    values = np.asarray(difficulty, dtype=np.float64)
    ties = np.random.default_rng([seed, 1]).permutation(len(values))
    if order == "random":
        return ties.astype(np.int64)
    keys = values if order == "easy" else -values
    return np.lexsort((ties, keys)).astype(np.int64)


def check_difficulty(values: Sequence[float] | Floats, rows: int, name: str) -> Floats:
    """Difficulties as an array, one finite number a row.

    Raises:
        DataError: another number of them, or one that is not finite; the message names the row.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"difficulty {name}: {error}. Fix: one number for each training row."
        ) from error
    if found.shape != (rows,):
        raise DataError(
            f"difficulty {name}: has the shape {found.shape}, but there are {rows} training rows. "
            "Fix: one number for each row."
        )
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise DataError(
            f"difficulty {name}: training row {bad[0] + 1} has {found[bad[0]]}, and {len(bad)} of "
            f"{rows} rows have no finite number. Fix: mend those rows or leave them out."
        )
    return found
