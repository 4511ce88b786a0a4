"""Continual runs: `align continual`. Tasks in order, each measured after each, guards compared."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from align.config.sections import ModelSection
from align.config.stages import ContinualStage
from align.continual.earlier import write_earlier
from align.continual.loop import Load, Rows, run_steps
from align.continual.measure import Column, open_column
from align.continual.plan import EARLIER, Step, check_steps, plan
from align.continual.routing import Routes, task_rows
from align.continual.story import tell_story
from align.engine.models import load_causal_lm
from align.run import Run, fingerprint, write_json
from align.stages.common import console, model_kwargs, open_tokenizer, seed_everything
from align.stages.dryrun import context_of
from align.stages.preflight import loading


def run(config: ContinualStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Train and measure every task of every arm and seed.

    Args:
        config: the stage's configuration.
        run: the run directory; every training has one of its own inside.
        resume: taken from the directory itself: what is done is passed over.
        dry_run: check the configuration and the rows that are measured; train nothing.

    Raises:
        AlignError: bad input of any kind, before a model loads wherever that is possible; of a
            task's training.
    """
    if dry_run:
        steps, _, _ = _open(config, run)
        count = len({step.folder for step in steps})
        console.print(f"dry run of continual: configuration is fine; {count} trainings to do.")
        run.finish(dry_run=True, trainings=count)
    else:
        train_all(config, run)


def train_all(config: ContinualStage, run: Run) -> tuple[Rows, list[Column]]:
    """Train and measure what is not there yet; returns all scores, and what they are of.

    Raises:
        AlignError: as `run`.
    """
    seed_everything(config.run.seed)
    steps, columns, tokenizer = _open(config, run)
    run.add_parent("model", config.model.path, fingerprint=fingerprint(config.model.path))

    def told(found: Rows) -> dict[str, Any]:
        story = tell_story(found, columns, len(config.tasks), config.arms)
        write_json(run.path / "continual.json", story)
        return story

    load, keep = _loader(config.model), config.keep
    longest = context_of(config.model.path)
    routes = Routes(partial(load, config.model.path), config.tasks, tokenizer, longest)
    found = run_steps(
        steps, run.path, columns, tokenizer, load, routes, keep=keep, told=told, say=_say
    )
    story = told(found)
    arms = {arm: one["figures"] for arm, one in story["arms"].items()}
    run.finish(front=story["front"], arms=arms)
    for arm, figures in arms.items():
        _say(f"{arm}: {_in_words(figures)}")
    return found, columns


def _open(config: ContinualStage, run: Run) -> tuple[list[Step], list[Column], Any]:
    """The trainings, what is measured, and the tokenizer, all checked."""
    steps = plan(config, run.path)
    if any(guard.get("data") == EARLIER for arm in config.arms.values() for guard in arm):
        write_earlier(config.tasks[:-1], run.path)
    check_steps(steps)
    if any(step.columns.routed for step in steps):
        for task in config.tasks:
            task_rows(task)  # unreadable ones would be found once the first task is trained
    tokenizer, longest = open_tokenizer(config.model), context_of(config.model.path)
    columns = [open_column(t.name, t.measure, t, tokenizer, longest) for t in config.tasks]
    columns += [open_column(o.name, o, None, tokenizer, longest) for o in config.others]
    for one in columns:
        console.print(f"{one.name}: {one.kind} of {len(one.rows)} rows", highlight=False)
    return steps, columns, tokenizer


def _loader(section: ModelSection) -> Load:
    """Models as the configuration loads the first; the later ones have no other revision."""

    def load(path: str) -> nn.Module:
        given = model_kwargs(section) if path == section.path else {"dtype": section.dtype}
        given = {key: value for key, value in given.items() if key != "quantization"}
        with loading(path):
            model = load_causal_lm(path, **given)
        place = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(place).eval()  # type: ignore[arg-type]

    return load


def _in_words(figures: dict[str, Any]) -> str:
    parts = []
    for name, one in figures.items():
        interval = f" [{one['low']:.3f}, {one['high']:.3f}]" if "low" in one else ""
        parts.append(f"{name} {one['value']:.3f}{interval}")
    return ", ".join(parts)


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
