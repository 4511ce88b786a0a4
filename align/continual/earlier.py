"""The training rows of earlier tasks, as guards read them.

A task's file holds the rows too that its score is measured on. A guard that read the file would
train on those, and nothing would seem to be forgotten: so the training rows are written apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.config.continual import TaskSection
from align.config.sections import DataSection
from align.data import Kind, load_splits

# By stage; of marked answers the good ones. Others read prompts alone.
ROWS: dict[str, Kind] = {"sft": "sft", "dpo": "preference", "kto": "sft"}


def earlier_file(folder: Path, task: str) -> Path:
    """Where a task's training rows are."""
    return folder / "earlier" / f"{task}.jsonl"


def write_earlier(tasks: Sequence[TaskSection], folder: Path) -> None:
    """Write the training rows of tasks that guards of later ones read; what is there stays.

    Raises:
        DataError: of a task's data.
    """
    for task in tasks:
        file = earlier_file(folder, task.name)
        if file.is_file():
            continue
        section = DataSection.model_validate(task.settings["data"])
        plain = section.model_copy(update={"augment": [], "balance": None})
        rows = load_splits(plain, ROWS[task.stage]).train
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        temporary.replace(file)
