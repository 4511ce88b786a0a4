"""Figures of a sequence of tasks, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.errors import DataError
from align.evaluate.forgetting import pareto_front, retention, share_removed

# Three tasks: rows are before, after the first, the second and the third.
MATRIX = [
    [0.10, 0.20, 0.30],
    [0.90, 0.25, 0.30],
    [0.70, 0.80, 0.45],
    [0.60, 0.85, 0.75],
]


def test_three_tasks_by_hand():
    found = retention(MATRIX)
    assert found.average == pytest.approx((0.60 + 0.85 + 0.75) / 3)
    assert found.learned == pytest.approx((0.90 + 0.80 + 0.75) / 3)
    assert found.backward == pytest.approx(((0.60 - 0.90) + (0.85 - 0.80)) / 2)
    assert found.forward == pytest.approx(((0.25 - 0.20) + (0.45 - 0.30)) / 2)
    assert found.forgetting == pytest.approx(((0.90 - 0.60) + (0.80 - 0.85)) / 2)


def test_forgetting_is_from_the_best_that_a_task_ever_was():
    matrix = np.array(MATRIX)
    matrix[2, 0] = 0.95  # the second task helped the first
    assert retention(matrix).forgetting == pytest.approx(((0.95 - 0.60) + (0.80 - 0.85)) / 2)


def test_one_task_forgets_nothing_and_says_so():
    found = retention([[0.1], [0.9]])
    assert (found.average, found.learned) == (0.9, 0.9)
    assert (found.backward, found.forward, found.forgetting) == (None, None, None)


@pytest.mark.parametrize("scores", [[[0.1, 0.2]], [[1.0]], [], [0.1, 0.2]])
def test_another_shape_is_refused(scores):
    with pytest.raises(DataError, match=r"\(T \+ 1, T\) is expected"):
        retention(scores)


def test_a_score_that_is_none_is_named():
    with pytest.raises(DataError, match="task 2 after 1 tasks"):
        retention([[0.0, 0.0], [0.0, float("nan")], [0.0, 0.0]])


def test_the_share_that_a_guard_removed():
    assert share_removed(0.05, 0.25) == pytest.approx(0.8)
    assert share_removed(-0.05, 0.25) == pytest.approx(1.2)
    assert share_removed(0.5, 0.25) == pytest.approx(-1.0)
    assert share_removed(0.1, 0.0) is None


def test_a_front_by_hand():
    points = [(0.2, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.5, 0.5)]
    assert pareto_front(points) == [3, 1, 0]
    assert pareto_front([]) == []
    with pytest.raises(DataError):
        pareto_front([(0.1, float("inf"))])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_whatever_is_not_on_the_front_is_beaten_or_equalled_by_it(points):
    front = pareto_front([(float(a), float(b)) for a, b in points])
    for place, (old, new) in enumerate(points):
        at_least = [points[i] for i in front if points[i][0] >= old and points[i][1] >= new]
        assert at_least
        if place in front:  # nothing is better on one and no worse on the other
            assert not any((a >= old and b > new) or (a > old and b >= new) for a, b in points)
