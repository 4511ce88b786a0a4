"""What guards do when training has ended: the weights they move, and what they write for later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from align.config.guards import BufferSection, ClearSection, GuardSection, SISection
from align.engine.guards.artefact import (
    FOLDER,
    About,
    read_about,
    save_importance,
    save_rows,
    task_id,
)
from align.engine.guards.average import Average
from align.engine.guards.base import Guard
from align.engine.guards.budget import Budget
from align.engine.guards.buffers import keep
from align.engine.guards.clear import Clear
from align.engine.guards.importance import WeightGuard
from align.engine.guards.si import SI
from align.engine.guards.weights import gathered, trained_weights
from align.processes import first_process
from align.run import Run, fingerprint
from align.stages.guard_rows import choose_rows
from align.stages.guard_source import Row, Source
from align.stages.guards import start_file


def settle_guards(guards: Sequence[Guard], model: nn.Module, run: Run) -> None:
    """Let guards move the weights to where they are saved, and note what a budget came to."""
    for index, guard in enumerate(guards):
        if isinstance(guard, Average | Budget):
            guard.final(model)
        if isinstance(guard, Budget):
            found = {
                "guard": guard.name,
                "before": guard.before,
                "after": guard.now,
                "allowed": guard.allowed,
                "used": guard.used,
                "strength": guard.strength,
            }
            earlier = run.record.get("results", {}).get("retention", {})
            run.finish(retention=earlier | {f"guards.{index}": found})
            if guard.used > 1:
                run.warn(
                    f"guards.{index}: the loss on what must not be lost grew from "
                    f"{guard.before:.4f} to {guard.now:.4f}, more than the {guard.allowed:.1%} "
                    "allowed. Fix: set budget.enforce, a larger strength, or fewer steps."
                )


def finish_guards(
    guards: Sequence[Guard],
    sections: Sequence[GuardSection],
    trainer: Any,
    model: nn.Module,
    source: Source,
    rows: Sequence[Row],
    run: Run,
) -> None:
    """Let guards take in what this run trained on, and write it for later runs.

    Args:
        guards: as `build_guards` made them, after training.
        sections: what they were made of.
        trainer: which tells whether weights are split over processes.
        model: the trained model, without a critic.
        source: how the stage reads rows.
        rows: the training rows.
        run: its model is saved already.
    """
    for index, (outer, section) in enumerate(zip(guards, sections, strict=True)):
        guard = outer.guard if isinstance(outer, Budget) else outer
        place = run.path / FOLDER / f"{section.type}-{index}.safetensors"
        if isinstance(guard, Clear) and isinstance(section, ClearSection):
            if first_process():
                save_rows(place, guard.buffer.items, _about("clear", run, ()))
        elif isinstance(section, BufferSection):
            if section.remember and first_process():
                given = [dict(row) for row in rows]
                kept = choose_rows(section, given, model, source, run.record["seed"])
                save_rows(place, kept, _about("rows", run, ()))
        elif isinstance(guard, WeightGuard):
            _finish_weights(guard, section, index, trainer, model, source, rows, run, place)


def _finish_weights(
    guard: WeightGuard,
    section: GuardSection,
    index: int,
    trainer: Any,
    model: nn.Module,
    source: Source,
    rows: Sequence[Row],
    run: Run,
    place: Path,
) -> None:
    if not getattr(section, "remember", isinstance(section, SISection)):
        return
    if getattr(trainer, "is_fsdp_enabled", False) and not isinstance(guard, SI):
        run.warn(
            f"guards.{index}: remember needs whole weights, and FSDP splits them. Fix: run "
            "`align guard` on the saved model."
        )
        return
    count = getattr(section, "samples", 0)
    kept = keep(list(rows), count, "reservoir", seed=run.record["seed"]) if count else []
    guard.finish(model, source.encode(kept), source.loss)
    weights = trained_weights(model)
    importance = gathered(guard.importance, weights)
    anchor = gathered(guard.anchor, weights)
    if not first_process():
        return
    earlier = [p["path"] for p in run.record.get("parents", []) if p["role"] == "guard"]
    start = start_file(run.path, section.type, index)
    tasks = _tasks_of([*earlier, *([str(start)] if start.is_file() else [])], section.type)
    save_importance(place, importance, anchor, _about(section.type, run, tasks))


def _about(kind: str, run: Run, earlier: Sequence[str]) -> About:
    model = fingerprint(run.model)
    own = task_id(model, run.path.name, kind)
    return About(kind, (*earlier, own), model, {"run": run.path.name, "stage": run.stage})


def _tasks_of(paths: Iterable[str], kind: str) -> list[str]:
    found = [read_about(Path(path)) for path in paths]
    return [task for about in found if about.kind == kind for task in about.tasks]
