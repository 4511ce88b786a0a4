"""What a continual run found, as JSON for the report: matrices, figures, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.continual.loop import Rows
from align.continual.measure import Column
from align.evaluate.forgetting import pareto_front, retention, share_removed
from align.evaluate.significance import seeds_interval

Json = dict[str, Any]


def tell_story(
    found: Rows, columns: Sequence[Column], tasks: int, guards: Mapping[str, Sequence[Any]]
) -> Json:
    """All figures of what is measured so far.

    Args:
        found: scores by arm and seed.
        columns: what was measured, the tasks first.
        tasks: how many of the columns are tasks.
        guards: of each arm; the first arm without any is what the others are compared with.

    Returns:
        `columns`, `arms` (each with `matrix`, the mean over seeds, and `figures`), `points` of old
        and new scores, `front`, and `naive`, the arm that others are compared with. Nats, shares
        and rewards have no common mean: where tasks' units differ, figures that would be one are
        left out (then also `points` and `front`), and forgetting is told of each task.
    """
    naive = next((arm for arm, given in guards.items() if not given), None)
    whole = {
        arm: {seed: rows for seed, rows in seeds.items() if len(rows) == tasks + 1}
        for arm, seeds in found.items()
    }
    each = {
        arm: {seed: _figures(rows, columns, tasks) for seed, rows in seeds.items()}
        for arm, seeds in whole.items()
    }
    arms: Json = {
        arm: {
            "guards": list(guards[arm]),
            "seeds": sorted(seeds),
            "matrix": _mean_matrix(list(seeds.values()), columns),
            "figures": _over_seeds(each[arm], each.get(naive or "", {}), arm == naive),
        }
        for arm, seeds in found.items()
    }
    points: list[Json] = [
        {"arm": arm, "old": one["figures"]["old"], "new": one["figures"]["new"]}
        for arm, one in arms.items()
        if one["figures"].get("old")
    ]
    front = pareto_front([(p["old"]["value"], p["new"]["value"]) for p in points])
    return {
        "columns": [
            {"name": one.name, "kind": one.kind, "task": place < tasks, "n": len(one.rows)}
            for place, one in enumerate(columns)
        ],
        "tasks": tasks,
        "arms": arms,
        "naive": naive,
        "points": points,
        "front": [points[place]["arm"] for place in front],
    }


def _figures(rows: Sequence[Json], columns: Sequence[Column], tasks: int) -> dict[str, float]:
    """One sequence's figures; a mean only over scores of one unit."""
    matrix = np.array([[row[one.name]["value"] for one in columns] for row in rows])
    units = [one.kind for one in columns]
    means = {  # of which tasks each is a mean
        "average": units[:tasks],
        "learned": units[:tasks],
        "backward": units[: tasks - 1],
        "forgetting": units[: tasks - 1],
        "forward": units[1:tasks],
    }
    found = {
        name: value
        for name, value in retention(matrix[:, :tasks]).as_dict().items()
        if value is not None and _alike(means[name])
    }
    if not _alike(means["forgetting"]):
        best = matrix[1:-1].max(axis=0)
        for place in range(tasks - 1):
            fall = float(best[place] - matrix[-1, place])
            found[f"forgetting of {columns[place].name}"] = fall
    for place in range(tasks, len(columns)):
        found[f"change of {columns[place].name}"] = float(matrix[-1, place] - matrix[0, place])
    old = slice(0, tasks - 1) if tasks > 1 else slice(tasks, None)
    if units[old] and _alike(units[old]):
        found["old"] = float(matrix[-1, old].mean())
    found["new"] = float(matrix[-1, tasks - 1])
    return found


def _alike(units: Sequence[str]) -> bool:
    return len(set(units)) <= 1


def _over_seeds(
    mine: Mapping[int, Mapping[str, float]],
    naive: Mapping[int, Mapping[str, float]],
    is_naive: bool,
) -> Json:
    """Means with intervals; differences from the naive arm are paired by seed."""
    if not mine:
        return {}
    names = next(iter(mine.values()))
    found: Json = {name: spread([one[name] for one in mine.values()]) for name in names}
    both = [seed for seed in mine if seed in naive]
    if is_naive or not both:
        return found
    for name in ("old", "new"):
        if name in names:
            found[f"{name} less naive"] = spread([mine[s][name] - naive[s][name] for s in both])
    if "forgetting" in names:
        means = (np.mean([one[s]["forgetting"] for s in both]) for one in (mine, naive))
        removed = share_removed(*map(float, means))
        if removed is not None:
            found["forgetting removed"] = {"value": removed, "n": len(both)}
    return found


def spread(values: Sequence[float]) -> Json:
    """Mean and Student's 95% interval over seeds; of one seed, its value alone."""
    if len(values) < 2:
        return {"value": float(values[0]), "n": 1}
    return seeds_interval(values).as_dict()


def _mean_matrix(
    sequences: Sequence[Sequence[Json]], columns: Sequence[Column]
) -> list[list[float]]:
    """Mean over seeds, as far as all of them have come."""
    depth = min(map(len, sequences))
    return [
        [float(np.mean([rows[i][one.name]["value"] for rows in sequences])) for one in columns]
        for i in range(depth)
    ]
