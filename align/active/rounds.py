"""A run's rounds on disk: what each phase leaves behind, written whole or not at all.

    pool.jsonl            the groups that the run began with
    active.json           the whole story so far, which the report reads
    rounds/001/fit/       the reward models, or what is left of them
    rounds/001/belief.npz what they believed of the pool
    rounds/001/measure.json   accuracy on the holdout, and the stopping rules that hold
    rounds/001/fresh.jsonl    new answers, where some were drawn
    rounds/001/choice.json    what is asked, in which order, and why
    rounds/001/asked.json     that it was put to people
    rounds/001/answers.json   that enough of it was answered

A phase whose file is there is not done again. So a run that was killed goes on where it was, and
since each phase can be repeated until its file is there, nothing is asked twice or lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import RunError
from align.run import write_json

PHASES = ("measure", "choice", "asked", "answers")


@dataclass(frozen=True)
class Round:
    """One round's folder."""

    folder: Path
    number: int  # 1 is the first

    @property
    def fit(self) -> Path:
        """The folder of the fit."""
        return self.folder / "fit"

    @property
    def belief(self) -> Path:
        """What the fit believes of the pool as it was."""
        return self.folder / "belief.npz"

    @property
    def fresh(self) -> Path:
        """Groups that this round added to the pool."""
        return self.folder / "fresh.jsonl"

    def read(self, phase: str) -> dict[str, Any] | None:
        """What a phase left; None: it is not done.

        Raises:
            RunError: the file is damaged.
        """
        file = self.folder / f"{phase}.json"
        if not file.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{file} is damaged ({error}). Fix: restore it; do not delete it, or questions "
                "would be asked twice."
            ) from None
        return found

    def write(self, phase: str, value: dict[str, Any]) -> dict[str, Any]:
        """Leave what a phase did; returns it as it will be read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{phase}.json", value)
        found = self.read(phase)
        assert found is not None
        return found


def round_at(run: Path, number: int) -> Round:
    """A round of a run directory."""
    return Round(run / "rounds" / f"{number:03d}", number)


def rounds_of(run: Path) -> list[Round]:
    """The rounds that a run has begun, in order."""
    numbers = sorted(int(f.name) for f in (run / "rounds").glob("[0-9]*") if f.is_dir())
    return [round_at(run, number) for number in numbers]


def asked_before(rounds: list[Round]) -> list[dict[str, Any]]:
    """The questions of all rounds' choices, in the order of asking."""
    return [row for one in rounds for row in (one.read("choice") or {"rows": []})["rows"]]
