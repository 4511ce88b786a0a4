"""Continual learning on scikit-learn's 8x8 digits: every guard, three settings, five seeds.

    python -m benchmarks.digits --json digits.json [--methods ewc si --worlds permuted --seeds 1]

- permuted: five tasks, each with its own order of the pixels and all ten classes;
- class: five tasks of two classes each, one output of ten, nobody says which task is asked;
- task: the same with the task known, so that only its two classes compete.

A multilayer perceptron 64-100-100-10, 10 epochs a task, batches of 32, SGD 0.05, momentum 0.9.
Written are the mean accuracy over all tasks at the end (ACC), how much of each was lost since it
was learnt (forgetting), and whether floors are met that a right implementation reaches. EWC on
class-incremental digits has a ceiling instead: weights cannot tell apart what was never seen
together, and a figure above it would mean that something is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.digits_methods import METHODS, Method
from benchmarks.digits_world import Batch, Task, network, worlds
from benchmarks.paired import machine, versions

FLOORS = {  # of ACC, permuted digits
    "ewc": 0.72,
    "ewc_empirical": 0.72,
    "si": 0.70,
    "replay_200": 0.85,
    "replay_500": 0.90,
    "joint": 0.96,
}
CEILINGS = {("permuted", "naive"): 0.40, ("class", "ewc"): 0.25, ("class", "naive"): 0.25}


def learn(
    world: str, name: str, seed: int, epochs: int = 10, tasks: Sequence[Task] | None = None
) -> list[list[float]]:
    """R[i][j]: the accuracy on task j after task i; `tasks` in the place of the world's."""
    tasks = tasks or worlds(world, seed)
    torch.manual_seed(seed)
    model, method = network(), METHODS[name](seed)
    generator = torch.Generator().manual_seed(seed)
    table = []
    for number, task in enumerate(tasks):
        seen = [together_of(tasks[: number + 1])] if name == "joint" else [task]
        method.before(task)
        guards = method.guards(model, number)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(epochs):
            for part in seen:
                step_through(model, method, guards, part, optimizer, generator)
        method.after(model, task)
        with torch.no_grad():
            table.append(
                [float((method.answer(model, t) == t.y_test).float().mean()) for t in tasks]
            )
    return table


def step_through(
    model: nn.Module,
    method: Method,
    guards: list[Any],
    task: Any,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """One epoch."""
    for rows in torch.randperm(len(task.y), generator=generator).split(32):
        batch = task.batch(rows)
        loss = method.loss(model, batch) + sum(g.penalty(model, batch) for g in guards)
        optimizer.zero_grad()
        loss.backward()
        for guard in guards:
            guard.before_step(model)
        optimizer.step()
        for guard in guards:
            guard.after_step(model, optimizer)


@dataclass(frozen=True)
class Joint:
    """Several tasks' rows as one."""

    x: Tensor
    y: Tensor
    allowed: Tensor

    def batch(self, rows: Tensor) -> Batch:
        """Some rows."""
        return {"x": self.x[rows], "y": self.y[rows], "allowed": self.allowed[rows]}


def together_of(tasks: Sequence[Task]) -> Joint:
    """Tasks as one."""
    allowed = torch.cat([t.allowed.expand(len(t.y), -1) for t in tasks])
    return Joint(torch.cat([t.x for t in tasks]), torch.cat([t.y for t in tasks]), allowed)


def summary(tables: Sequence[list[list[float]]]) -> dict[str, Any]:
    """ACC and forgetting over seeds."""
    acc = [statistics.mean(table[-1]) for table in tables]
    lost = [
        statistics.mean(max(row[j] for row in table) - table[-1][j] for j in range(len(table) - 1))
        for table in tables
    ]
    spread = statistics.stdev(acc) if len(acc) > 1 else 0.0
    return {
        "acc": statistics.mean(acc),
        "std": spread,
        "forgetting": statistics.mean(lost),
        "seeds": acc,
    }


def main(arguments: list[str]) -> int:
    """Run the sequences, write the figures, and say which floors are missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--worlds", nargs="*", default=["permuted", "class", "task"])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(arguments)
    figures: dict[str, Any] = {"device": machine(), "versions": versions(["torch", "scikit-learn"])}
    missed = []
    for world in given.worlds:
        figures[world] = {}
        for name in given.methods:
            started = time.perf_counter()
            found = summary([learn(world, name, seed) for seed in range(given.seeds)])
            figures[world][name] = found | {"seconds": time.perf_counter() - started}
            line = f"{world:9} {name:14} ACC {found['acc']:.3f} +- {found['std']:.3f}"
            print(f"{line}  forgetting {found['forgetting']:.3f}", flush=True)
            floor = FLOORS.get(name, 0.0) if world == "permuted" else 0.0
            if not floor <= found["acc"] <= CEILINGS.get((world, name), 1.0):
                missed.append(f"{world} {name}: {found['acc']:.3f}")
            given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("missed: " + ", ".join(missed) if missed else "every floor and ceiling is met")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
