"""One task after another, for each arm and seed, with all of them measured after each.

Trainings are whole run directories, and a measure is a file, written whole or not at all; what is
there is not done again. So a run that was killed goes on where it was: inside a task from the
task's own checkpoint.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

from align.continual.measure import Column, measure_models
from align.continual.plan import Step, arm_folder
from align.continual.routing import Routes
from align.run import open_run, write_json
from align.stages.reward_repeats import done_already

Json = dict[str, Any]
Load = Callable[[str], nn.Module]
Rows = dict[str, dict[int, list[Json]]]  # arm -> seed -> scores before the first task, after each


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    columns: Sequence[Column],
    tokenizer: Any,
    load: Load,
    routes: Routes,
    *,
    keep: str,
    told: Callable[[Rows], object],
    say: Callable[[str], None],
) -> Rows:
    """Train and measure everything that is not there yet.

    Args:
        steps: of `align.continual.plan.plan`.
        folder: the run directory of the whole.
        columns: what is measured.
        tokenizer: of the model.
        load: gives the model at a path, on its device.
        routes: which task's adapter answers a prompt, where an arm asks for that.
        keep: "last" deletes a task's weights once the next one is measured, "all" nothing.
        told: after each measure, with all that is known.
        say: one line for a person.

    Raises:
        AlignError: of a training.
        Interrupted: by a signal; the training's checkpoint is there.
    """
    first, tasks = steps[0].config.model.path, {step.task.name for step in steps}
    start = measure_models(
        load, columns, tokenizer, None, folder / "start.json", lambda one: [first] * len(one.rows)
    )
    found: Rows = {}
    sequences = groupby(steps, key=lambda step: (step.arm, step.seed))
    for (arm, seed), sequence in sequences:
        rows = found.setdefault(arm, {}).setdefault(seed, [start])
        before: Step | None = None
        for step in sequence:
            file = arm_folder(folder, arm, seed) / f"after-{step.number:02d}.json"
            if not file.is_file():
                say(f"{arm}, seed {seed}: {step.task.name} ({step.task.stage})")
                _train(step)
            who = answering(step, tasks, routes)
            rows.append(measure_models(load, columns, tokenizer, start, file, who))
            if step.columns.adapters is not None:
                write_adapters(step, file.parent, routes)
            say(f"{arm}, seed {seed}, after {step.task.name}: {in_words(columns, rows[-1])}")
            told(found)
            if before is not None and keep == "last":
                forget(before, steps, folder)
            before = step
    return found


def answering(
    step: Step, tasks: Collection[str], routes: Routes
) -> Callable[[Column], Sequence[str]]:
    """The model that answers each row of a column after a step."""
    learnt = step.columns.learnt

    def of(column: Column) -> Sequence[str]:
        if step.columns.routed:
            return [learnt[name] for name in routes.route(column, list(learnt))]
        return [step.columns.answers(column.name, column.name in tasks)] * len(column.rows)

    return of


def write_adapters(step: Step, folder: Path, routes: Routes) -> None:
    """`adapters.json` of an arm and seed: whose weights answer what; the router's means."""
    columns = step.columns
    assert columns.adapters is not None
    section = columns.adapters.section
    write_json(
        folder / "adapters.json",
        {
            "mode": section.mode,
            "route": section.route,
            "trunk": columns.trunk,
            "tasks": dict(columns.learnt),
        },
    )
    if columns.routed:  # also after a kill between measure and here
        routes.save(folder / "router.safetensors", list(columns.learnt))


def in_words(columns: Iterable[Column], scores: Json) -> str:
    """One line of scores."""
    return "  ".join(f"{one.name} {scores[one.name]['value']:.3f}" for one in columns)


def forget(step: Step, steps: Sequence[Step], folder: Path) -> None:
    """Delete a task's weights, unless a training has yet to start from them, or they answer yet."""
    model, last = str(step.folder / "model"), max(other.number for other in steps)
    users = [
        other
        for other in steps
        if other.number > step.number
        and model in standing({other.config.model.path, *other.columns.models()})
        and (
            (other.number == last and model in standing(other.columns.models()))
            or not (
                arm_folder(folder, other.arm, other.seed) / f"after-{other.number:02d}.json"
            ).is_file()
        )
    ]
    shutil.rmtree(step.folder / "checkpoints", ignore_errors=True)  # it is measured
    if not users:
        shutil.rmtree(step.folder / "model", ignore_errors=True)


def standing(models: Iterable[str]) -> set[str]:
    """Models, and what those that are adapters stand on, down to a whole model."""
    found: set[str] = set()
    for path in models:
        while path not in found:
            found.add(path)
            file = Path(path) / "adapter_config.json"
            if file.is_file():
                path = str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    return found


def _train(step: Step) -> None:
    """Run the stage, unless that is done."""
    if done_already(step.folder, step.config):
        return
    resume = (step.folder / "run.json").is_file()
    module = importlib.import_module(f"align.stages.{step.config.stage}")
    with open_run(step.config, resume=resume, command=["align", "continual"]) as run:
        module.run(step.config, run, resume=resume)
