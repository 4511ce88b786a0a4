"""Every method of the digits benchmark does something: without its guard the result is another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align.engine.guards.importance import WeightGuard
from benchmarks.digits import FLOORS, learn, network, summary
from benchmarks.digits_methods import METHODS, OneGuard
from benchmarks.digits_world import Task, worlds


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """Two tasks of 160 rows."""
    return [replace(t, x=t.x[:160], y=t.y[:160]) for t in worlds("permuted", 0)[:2]]


@pytest.fixture(scope="module")
def naive(tasks) -> list[list[float]]:
    return learn("permuted", "naive", 0, epochs=8, tasks=tasks)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"naive"}))
def test_a_guard_changes_what_is_learnt(name, tasks, naive):
    table = learn("permuted", name, 0, epochs=8, tasks=tasks)
    assert table != naive
    assert table[1][1] > 0.25  # and something is still learnt


def test_more_is_kept_than_without(tasks):
    def after(name: str) -> float:
        """What is known of the first task once the second is learnt."""
        return learn("permuted", name, 0, epochs=30, tasks=tasks)[1][0]

    naive = after("naive")
    for name in ("ewc", "si", "mas", "replay_200", "distill_old", "icarl", "isolate"):
        assert after(name) > naive + 0.03, name


@pytest.mark.parametrize("name", ["ewc", "ewc_empirical", "si", "mas"])
def test_importances_are_not_zero(name, tasks):
    torch.manual_seed(0)
    model, method = network(), METHODS[name](0)
    assert isinstance(method, OneGuard)
    guard = method.guard
    assert isinstance(guard, WeightGuard)
    method.guards(model, 0)
    for _ in range(3):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(tasks[0].x), tasks[0].y).backward()
        guard.before_step(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        guard.after_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.after(model, replace(tasks[0], x=tasks[0].x[:20], y=tasks[0].y[:20]))
    assert sum(float(v.sum()) for v in guard.importance.values()) > 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    assert guard.penalty(model, {}).item() > 0


def test_the_summary_by_hand():
    found = summary([[[0.9, 0.1], [0.5, 0.8]]])
    assert found["acc"] == pytest.approx(0.65)
    assert found["forgetting"] == pytest.approx(0.4)
    assert set(FLOORS) <= set(METHODS)


@pytest.mark.parametrize("name", ["icarl", "er_ace", "replay_50"])
def test_tasks_that_are_yet_to_come_are_answered_too(name):
    """iCaRL has no exemplars of their classes: every answer is wrong, none is missing."""
    short = [replace(t, x=t.x[:40], y=t.y[:40]) for t in worlds("task", 0)[:2]]
    table = learn("task", name, 0, epochs=2, tasks=short)
    assert 0 <= table[0][1] <= 1
    assert table[1][1] > 0.5
    if name == "icarl":
        assert table[0][1] == 0
