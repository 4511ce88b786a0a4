"""What is to be done: a training for each arm, seed and task, as the stage itself would be asked.

An arm is a list of guards, added to those of every task's own settings. Of a guard, `data: earlier`
stands for the training rows of all earlier tasks (`align.continual.earlier`): one guard for each of
them with the strength given, and none for the first task, which has nothing to protect; `from: 2`
has any other guard begin with the second task. `type: adapters` gives tasks adapters of their own
(`align.continual.adapters`). Arms that ask the same of the first task share its training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.config.continual import TaskSection
from align.config.load import check_mapping
from align.config.stages import STAGES, ContinualStage, TrainingStage
from align.continual.adapters import FROM, Columns, adapters_of, adapters_problems
from align.continual.earlier import ROWS, earlier_file
from align.errors import ConfigError, Problem
from align.stages.preflight import check_start, gather

EARLIER = "earlier"
OWNED = ("run", "model")  # sections that the loop sets


@dataclass(frozen=True)
class Step:
    """One training of one arm and seed."""

    arm: str
    seed: int
    number: int  # 1 is the first task
    task: TaskSection
    folder: Path  # the run directory
    config: TrainingStage
    columns: Columns = field(default_factory=Columns)  # who answers what, once this is done


def plan(config: ContinualStage, folder: Path) -> list[Step]:
    """Every training, in the order in which they are done.

    Args:
        config: the configuration.
        folder: the run directory of the whole.

    Raises:
        ConfigError: with every problem of every task and arm.
    """
    problems = list(_names(config))
    steps: list[Step] = []
    for arm, guards in config.arms.items():
        for seed in config.seeds:
            columns = Columns(config.model.path, adapters_of(guards))
            for number, task in enumerate(config.tasks, 1):
                plain = not guards_for(guards, config.tasks, 1, folder) and not columns.on(1)
                shared = number == 1 and plain
                place = step_folder(folder, "" if shared else arm, seed, number, task.name)
                found: list[Problem] = []
                raw = _raw(config, task, number, guards, folder, place, seed, columns)
                read = check_mapping(STAGES[task.stage], raw, found)
                where = f"tasks.{number - 1}.settings"
                own = len(task.settings.get("guards") or [])
                by_arm = columns.on(number)
                problems += [_moved(one, where, arm, own, by_arm) for one in found]
                columns = columns.after(number, task.name, str(place / "model"))
                if isinstance(read, TrainingStage):
                    steps.append(Step(arm, seed, number, task, place, read, columns))
    if problems:
        raise ConfigError(_once(problems))
    return steps


def check_steps(steps: Sequence[Step]) -> None:
    """What the stages refuse before anything loads, of all steps together.

    Raises:
        ConfigError: with every problem of every task and arm.
        AlignError: a model or a tracker is missing.
    """
    first = {(step.arm, step.number): step for step in reversed(steps)}.values()  # of one seed
    try:
        gather(*(partial(_check, step, steps[0].config.model.path) for step in first))
    except ConfigError as error:
        raise ConfigError(_once(error.problems)) from None


def step_folder(folder: Path, arm: str, seed: int, number: int, task: str) -> Path:
    """Where a training's run directory is; no arm: all share it."""
    return arm_folder(folder, arm, seed) / f"{number:02d}-{task}"


def arm_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where one arm's trainings with one seed are; no arm: what all share."""
    return (folder / "arms" / arm if arm else folder / "shared") / f"seed-{seed}"


def guards_for(
    guards: Sequence[Mapping[str, Any]], tasks: Sequence[TaskSection], number: int, folder: Path
) -> list[dict[str, Any]]:
    """An arm's guards for a task, `data: earlier` and `from` made plain."""
    found: list[dict[str, Any]] = []
    for given in guards:
        if given.get("type") == "adapters":
            continue
        guard = {key: value for key, value in given.items() if key != FROM}
        first = given.get(FROM, 1)
        if isinstance(first, int) and number < first:
            continue
        if guard.get("data") != EARLIER:
            found.append(guard)
            continue
        for task in tasks[: number - 1]:
            found.append({**guard, "data": str(earlier_file(folder, task.name))})
    return found


def _raw(
    config: ContinualStage,
    task: TaskSection,
    number: int,
    guards: Sequence[Mapping[str, Any]],
    folder: Path,
    place: Path,
    seed: int,
    columns: Columns,
) -> dict[str, Any]:
    start = columns.start(number)
    model = config.model.model_dump() | {"path": start}
    if start != config.model.path:
        model |= {"revision": None, "tokenizer": None, "chat_template": None}  # the model's own
    more = guards_for(guards, config.tasks, number, folder)
    own = [*(task.settings.get("guards") or []), *more]
    return {
        **task.settings,
        **columns.peft(number),
        "run": {"dir": str(place), "seed": seed},
        "model": model,
        "guards": own,
    }


def _names(config: ContinualStage) -> Iterator[Problem]:
    names = [one.name for one in config.tasks] + [one.name for one in config.others]
    for place, name in enumerate(names):
        if name in names[:place]:
            where = f"tasks.{place}" if place < len(config.tasks) else "others"
            yield Problem(f"{where}.name", f"{name!r} is there twice.", "call it otherwise.")
    for place, one in enumerate(config.others):
        if one.data is None:
            what = "nothing trains it, so there are no rows of its own."
            yield Problem(f"others.{place}.data", what, "name a file of rows to measure on.")
    for place, task in enumerate(config.tasks):
        for section in OWNED:
            if section in task.settings:
                what = "is set for all tasks at once."
                fix = f"use {section} at the top level."
                yield Problem(f"tasks.{place}.settings.{section}", what, fix)
    if not config.arms:
        yield Problem("arms", "there is none.", "for example {naive: []}.")
    yield from adapters_problems(config.arms, config.tasks)
    for arm, guards in config.arms.items():
        for place, guard in enumerate(guards):
            first = guard.get(FROM, 1)
            if guard.get("data") == EARLIER:
                for task in config.tasks[:-1]:
                    if task.stage not in ROWS:
                        what = f"{task.name} trains on prompts alone, which no guard can replay."
                        fix = "name a file of prompts and answers as data."
                        yield Problem(f"arms.{arm}.{place}.data", what, fix)
            if not isinstance(first, int) or isinstance(first, bool) or first < 1:
                what = f"{first!r} is no number of a task."
                yield Problem(f"arms.{arm}.{place}.from", what, "1 is the first task.")
        if not arm or not arm[0].isalnum() or set(arm) & set("/\\"):
            what = f"{arm!r} is no name of a folder."
            yield Problem("arms", what, "letters, digits, dots, dashes and underscores.")
    if len(set(config.seeds)) < len(config.seeds):
        yield Problem("seeds", "one of them is there twice.", "each once.")


def _moved(problem: Problem, where: str, arm: str, own: int, by_arm: bool) -> Problem:
    """A stage's problem under the key that the user wrote; `by_arm`: its adapter is the arm's."""
    first, _, rest = problem.where.partition(".")
    if first == "peft" and by_arm:
        return Problem(f"arms.{arm}: adapters.{rest}", problem.what, problem.fix)
    if first != "guards" or not rest.split(".")[0].isdigit():
        return Problem(f"{where}.{problem.where}", problem.what, problem.fix)
    place = int(rest.split(".")[0])
    if place < own:
        return Problem(f"{where}.{problem.where}", problem.what, problem.fix)
    return Problem(f"arms.{arm}: {problem.where}", problem.what, problem.fix)


def _check(step: Step, start: str) -> None:
    """What the stage refuses before anything loads; for a later task the first model stands in."""
    model = step.config.model.model_copy(update={"path": start})
    try:
        check_start(step.config.model_copy(update={"model": model}))
    except ConfigError as error:
        where = f"tasks.{step.number - 1}.settings"
        own = len(step.task.settings.get("guards") or [])
        on = step.columns.on(step.number)
        moved = [_moved(p, where, step.arm, own, on) for p in error.problems]
        raise ConfigError(moved) from None


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once: arms and seeds share their tasks."""
    return list({(one.where, one.what): one for one in problems}.values())
