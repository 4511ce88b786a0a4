"""A run's rounds on disk: what each phase leaves behind, written whole or not at all.

    selftrain.json           the whole story so far, which the report reads
    rounds/000/measure.json  the start on the held-out data
    rounds/001/plan.json     where the round begins, and how strict it is
    rounds/001/cache/        finished batches of answers, until all are drawn
    rounds/001/samples.jsonl what was drawn, with rewards (policy)
    rounds/001/pool.npz      every teacher's margins (preferences)
    rounds/001/pseudo.jsonl  the labels that were kept, with the teacher's confidence (preferences)
    rounds/001/audit.json    which of them people are asked about (preferences)
    rounds/001/train.jsonl   what the round trained on
    rounds/001/harvest.json  how many were kept, and why the others were not
    rounds/001/fit/          the training run, or what is left of it
    rounds/001/measure.json  held-out scores, the gain and whether it was promoted

A phase whose file is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import RunError
from align.run import write_json

Json = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """One round's folder."""

    folder: Path
    number: int  # 0 is the start, which trains on nothing of its own

    @property
    def fit(self) -> Path:
        """The folder of the training."""
        return self.folder / "fit"

    @property
    def train(self) -> Path:
        """What it trains on."""
        return self.folder / "train.jsonl"

    def read(self, phase: str) -> Json | None:
        """What a phase left; None: it is not done.

        Raises:
            RunError: the file is damaged.
        """
        file = self.folder / f"{phase}.json"
        if not file.is_file():
            return None
        try:
            found: Json = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{file} is damaged ({error}). Fix: restore it, or delete it to have that phase "
                "done again."
            ) from None
        return found

    def write(self, phase: str, value: Mapping[str, Any]) -> Json:
        """Leave what a phase did; returns it as it will be read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{phase}.json", dict(value))
        found = self.read(phase)
        assert found is not None
        return found


def round_at(run: Path, number: int) -> Round:
    """A round of a run directory."""
    return Round(run / "rounds" / f"{number:03d}", number)


def rounds_of(run: Path) -> list[Round]:
    """The rounds that a run has begun, in order, the start among them."""
    numbers = sorted(int(f.name) for f in (run / "rounds").glob("[0-9]*") if f.is_dir())
    return [round_at(run, number) for number in numbers]


def measured(run: Path) -> list[Json]:
    """What each measured round left, the start first."""
    return [found for one in rounds_of(run) if (found := one.read("measure"))]


def promoted_before(run: Path, number: int) -> int:
    """The last promoted round before this one; 0: the start is still in use."""
    return max(
        (
            found["round"]
            for found in measured(run)
            if found["promoted"] and found["round"] < number
        ),
        default=0,
    )


def history(run: Path) -> list[bool]:
    """Whether each measured round was promoted, without the start."""
    return [found["promoted"] for found in measured(run) if found["round"] > 0]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)
