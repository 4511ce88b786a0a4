"""What a sequence of tasks left of each: accuracy matrix, transfer, forgetting, Pareto front.

R[i, j] is the score on task j after training on the first i tasks, higher is better; row 0 is the
model before any of them. Scores may be accuracies or negative losses; all here are differences or
means of them. Sources: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840, equations 2 to 4); Chaudhry et
al. 2018 (arXiv 1801.10112, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from align.errors import DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Retention:
    """The figures of one sequence of T tasks; None where one task leaves nothing to say."""

    average: float  # ACC: mean score on all tasks at the end
    learned: float  # mean score on each task right after it was trained
    backward: float | None  # BWT: mean change of earlier tasks since each was trained
    forward: float | None  # FWT: mean score on a task just before it, less the start's
    forgetting: float | None  # mean fall of earlier tasks from their best; negative: they rose

    def as_dict(self) -> dict[str, float | None]:
        """Plain numbers."""
        return dict(vars(self))


def check_matrix(scores: ArrayLike) -> Array:
    """R as floats.

    Raises:
        DataError: not (T + 1, T), empty, or not finite.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.shape[1] or matrix.shape[0] != matrix.shape[1] + 1:
        raise DataError(
            f"an accuracy matrix has the shape {matrix.shape}; (T + 1, T) is expected: T tasks, "
            "measured before the first and after each."
        )
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise DataError(f"the score of task {column + 1} after {row} tasks is not finite.")
    return matrix


def retention(scores: ArrayLike) -> Retention:
    """All figures of one matrix.

    Args:
        scores: (T + 1, T), see the module.

    Raises:
        DataError: see `check_matrix`.
    """
    matrix = check_matrix(scores)
    tasks = matrix.shape[1]
    final, at_once = matrix[-1], np.diag(matrix[1:])
    average, learned = float(final.mean()), float(at_once.mean())
    if tasks == 1:
        return Retention(average, learned, None, None, None)
    later = np.arange(1, tasks)
    best = matrix[1:-1].max(axis=0)  # after any task but the last
    return Retention(
        average,
        learned,
        backward=float((final - at_once)[:-1].mean()),
        forward=float((matrix[later, later] - matrix[0, later]).mean()),
        forgetting=float((best - final)[:-1].mean()),
    )


def share_removed(forgetting: float, naive: float) -> float | None:
    """The share of naive forgetting that a guard removed; None where naive training forgot none.

    1 is all of it, more than 1 where old tasks even rose, negative where the guard did harm.
    """
    return None if naive <= 0 else 1.0 - forgetting / naive


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other beats on both axes, by falling first axis.

    Args:
        points: (old, new) scores, higher is better. Of equal points the first is kept.

    Raises:
        DataError: a score is not finite.
    """
    if not np.isfinite(np.asarray(points, dtype=np.float64)).all():
        raise DataError("a Pareto front is of finite scores.")
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    for place in order:
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front
