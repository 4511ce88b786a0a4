"""What every score asks of its arrays, and how chosen places are read off scores.

The legend of this package: M members (models, heads, draws), N items of the pool, C classes, D
feature differences, E embedding width. A pair is an item of two classes; `members` (M, N) holds
each member's P(the first answer is better). Scores are greatest where an item should be asked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit, logit

from feedback.errors import DataError

Array = NDArray[np.float64]
Index = NDArray[np.intp]

ROWS = 16384  # handled at once, so that temporary arrays stay small beside the pool


def finite(values: ArrayLike, name: str, *dimensions: int) -> Array:
    """An array of finite float64 numbers with one of these numbers of dimensions.

    Raises:
        DataError: another shape, no number, or a number that is not finite.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds what is no number ({error}). Fix: give floats.") from error
    if array.ndim not in dimensions:
        wanted = " or ".join(str(n) for n in dimensions)
        raise DataError(
            f"{name} has shape {array.shape}; {wanted} dimensions are expected. "
            "Fix: feedback.acquisition.arrays says which is which."
        )
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(
            f"{name}{list(place)} is {array[place]}; finite numbers are expected. "
            "Fix: leave out the items that the model cannot score."
        )
    return array


def chances(values: ArrayLike, name: str, *dimensions: int) -> Array:
    """Probabilities in [0, 1], as `finite`.

    Raises:
        DataError: as of `finite`, or a number outside [0, 1].
    """
    array = finite(values, name, *dimensions)
    if array.size and (array.min() < 0 or array.max() > 1):
        worst = array.min() if array.min() < 0 else array.max()
        raise DataError(
            f"{name} holds {worst:.4g}; probabilities in [0, 1] are expected. "
            "Fix: pass margins through `to_probabilities`."
        )
    return array


def distributions(values: ArrayLike, name: str, *dimensions: int) -> Array:
    """Probabilities whose last dimension sums to 1.

    Raises:
        DataError: as of `chances`, or a sum that is not 1 within 1e-3.
    """
    array = chances(values, name, *dimensions)
    sums = array.sum(axis=-1)
    if sums.size and np.abs(sums - 1).max() > 1e-3:
        worst = float(sums.flat[np.abs(sums - 1).argmax()])
        raise DataError(
            f"the classes of an item in {name} sum to {worst:.4g}; 1 is expected. "
            "Fix: normalise over the last dimension."
        )
    return array


def to_probabilities(margins: ArrayLike) -> Array:
    """P(the first answer is better) = sigmoid(r(first) - r(second)), the model of Bradley-Terry."""
    found: Array = expit(finite(margins, "margins", 1, 2))
    return found


def to_margins(probabilities: ArrayLike) -> Array:
    """The margins that give these probabilities; 0 and 1 are moved inside by 1e-12."""
    inside = np.clip(chances(probabilities, "probabilities", 1, 2), 1e-12, 1 - 1e-12)
    found: Array = logit(inside)
    return found


def binary_entropy(p: Array) -> Array:
    """h(p) in nats, any shape; 0 at 0 and 1."""
    found: Array = entr(p) + entr(1 - p)
    return found


def chunks(count: int, rows: int = ROWS) -> Iterator[slice]:
    """Slices that cover `count` rows."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def check_count(k: int, name: str = "k") -> int:
    """A whole number of at least 1.

    Raises:
        DataError: anything else.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise DataError(f"{name} is {k!r}; a whole number of at least 1 is expected.")
    return int(k)


def same_length(**arrays: Array) -> int:
    """The common first dimension of several arrays.

    Raises:
        DataError: their first dimensions differ; the message names them.
    """
    found = {name: len(array) for name, array in arrays.items()}
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in found.items())
        raise DataError(f"rows do not match: {said}. Fix: give one row for each item to all.")
    return next(iter(found.values()))


def top(scores: ArrayLike, k: int, rng: np.random.Generator | None = None) -> Index:
    """Places of the k greatest scores, the greatest first.

    Args:
        scores: (N,).
        k: how many; all when there are fewer.
        rng: decides between equal scores; None: the first in order.

    Raises:
        DataError: k below 1, or a score that is not finite.
    """
    values = finite(scores, "scores", 1)
    k = min(check_count(k), len(values))
    if not k:
        return np.zeros(0, dtype=np.intp)
    least = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > least)
    even = np.flatnonzero(values == least)
    if rng is not None:
        above, even = rng.permutation(above), rng.permutation(even)
    chosen = np.concatenate([above, even[: k - len(above)]])
    return chosen[np.argsort(-values[chosen], kind="stable")]
