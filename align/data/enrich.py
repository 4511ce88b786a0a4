"""Training rows once they are split from the rest: augmented, then brought into balance.

Held-out rows are never touched. Made rows are written beside the run's other files, each with its
lineage; the datasets that stages train on hold no further column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.augment import Written
from align.config.sections import DataSection
from align.data.augment.lineage import read_lineage
from align.data.card import DataCard
from align.data.carried import under_own_names
from align.data.rows import Kind, Row, Values
from align.errors import ConfigError, Problem
from align.processes import first_process, processes
from feedback.dialogue import RowProblem

if TYPE_CHECKING:
    from align.data.augment.plan import Ready

MADE = "augmented.jsonl"  # beside quarantine.jsonl


@dataclass(frozen=True)
class Enrichment:
    """What `data.augment` and `data.balance` ask for, checked."""

    section: DataSection
    kind: Kind
    transforms: list[Ready]
    folder: Path | None = None  # of the run; None keeps no file

    def apply(self, parts: dict[str, list[Row]], card: DataCard) -> None:
        """Exchange the training rows of the splits; the card tells what was done.

        Raises:
            ConfigError: `data.balance.by` names a column of one value, or of far too many.
            DataError: a transform cannot keep the labels of these rows, or its model fails.
        """
        rows = parts["train"]
        if not rows:
            return
        if self.transforms:
            from align.data.augment.plan import augment_parts

            held_out = [*parts["validation"], *parts["test"]]
            rows, reports = augment_parts(
                rows, self.section.augment, self.transforms, self.kind, held_out
            )
            card.augmented = [report.as_dict() for report in reports]
            for report in reports:
                if not report.made:
                    card.warn(f"data.augment: {report.kind} made no row; the card says why.")
            if self.folder is not None and first_process():
                there = set(map(id, parts["train"]))
                _write([row for row in rows if id(row) not in there], self.folder / MADE)
        if self.section.balance is not None:
            from align.data.imbalance import balance_rows

            rows, balanced = balance_rows(rows, self.section.balance)
            card.balanced = balanced.as_dict()
            for name in balanced.before.keys() - balanced.after.keys():
                card.warn(f"data.balance: {self.section.balance.method} left no row of {name!r}.")
        parts["train"] = rows


def check_enrichment(section: DataSection, kind: Kind, folder: Path | None = None) -> Enrichment:
    """Everything about `data.augment` and `data.balance` that can be refused before data are read.

    Raises:
        ConfigError: with every problem of both.
        MissingDependencyError: a method's library is not installed.
    """
    problems: list[Problem] = []
    transforms: list[Ready] = []
    if section.augment:
        from align.data.augment.plan import check_augment
        from align.data.augment.replies import REPLIES

        try:
            replies = folder and folder / REPLIES
            transforms = check_augment(section.augment, kind, replies=replies)
            _one_writer(section)
        except ConfigError as error:
            problems += error.problems
    if section.balance is not None:
        from align.data.imbalance import check_balance

        try:
            check_balance(section.balance, kind)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Enrichment(section, kind, transforms, folder)


def origin_of(
    values: Mapping[str, Any], section: DataSection, role: str, path: str
) -> tuple[Values | None, str]:
    """What a row brings with it from before: its lineage, and the class it is counted in.

    Raises:
        RowProblem: a training row lacks the column that `data.balance.by` names.
    """
    by = None if section.balance is None or role != "train" else section.balance.by
    if by is None or by == "source":
        return read_lineage(values), path
    if values.get(by) is None:
        raise RowProblem(f"has no {by}", "data.balance.by names this column")
    return read_lineage(values), str(values[by])


def _one_writer(section: DataSection) -> None:
    """Refuse models that write where several processes would each ask, and train on other rows."""
    count = processes()
    written = [i for i, entry in enumerate(section.augment) if isinstance(entry, Written)]
    if count > 1 and written:
        what = f"{count} processes would each ask the model, and each train on other rows."
        fix = "make the rows once with align.data.augment.augment, and train on that file."
        raise ConfigError([Problem(f"data.augment.{i}", what, fix) for i in written])


def _write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            line = {**under_own_names(row.values), "lineage": row.lineage}
            stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    temporary.replace(path)
