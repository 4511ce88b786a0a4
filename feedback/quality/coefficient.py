"""A chance-corrected coefficient with its bootstrap interval over items.

All coefficients here are functions of sums over items, so a bootstrap draw needs no items, only how
often each *kind* of item (each distinct row of summands) was drawn: a multinomial. It is the same
distribution as resampling the items themselves, at a cost that does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (D, F) sums -> (D,) values
TOO_FEW = 2  # items that an interval needs


@dataclass(frozen=True)
class Coefficient:
    """A coefficient, or None with a note that says why there is none."""

    value: float | None
    low: float | None  # 95% interval, bootstrap over items
    high: float | None
    items: int  # items it rests on
    votes: int
    note: str = ""


def coefficient(
    rows: NDArray[np.float64],
    statistic: Statistic,
    *,
    votes: int,
    draws: int,
    seed: int,
    undefined: str,
) -> Coefficient:
    """A statistic of column sums, with its percentile interval over rows.

    Args:
        rows: summands of each item, shape (N, F).
        statistic: sums of shape (D, F) to values of shape (D,), NaN where undefined.
        votes: how many votes the rows hold.
        draws: bootstrap draws; 0 for no interval.
        seed: of the draws.
        undefined: what to say where the statistic is not defined.
    """
    n = len(rows)
    if n == 0:
        return Coefficient(None, None, None, 0, votes, "no item was judged by two people")
    value = float(statistic(rows.sum(axis=0)[None])[0])
    if not np.isfinite(value):
        return Coefficient(None, None, None, n, votes, undefined)
    if draws == 0 or n < TOO_FEW:
        note = "" if draws == 0 else "one item is too few for an interval"
        return Coefficient(value, None, None, n, votes, note)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    values = statistic(drawn.astype(np.float64) @ kinds)
    values = values[np.isfinite(values)]
    note = ""
    if len(values) < draws:
        note = f"{draws - len(values)} of {draws} bootstrap draws had no defined value"
    if len(values) == 0:
        return Coefficient(value, None, None, n, votes, note)
    low, high = np.quantile(values, [0.025, 0.975])
    return Coefficient(value, float(low), float(high), n, votes, note)
