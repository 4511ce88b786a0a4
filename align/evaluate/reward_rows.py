"""Labelled answers from anywhere, as sets: a prompt, its answers, and a grade for each.

| rows hold                                              | a set is                          |
|--------------------------------------------------------|-----------------------------------|
| `chosen`, `rejected` in any format of `align.data`     | two answers                       |
| `prompt`, `chosen`, `rejected` as lists of texts       | all of them (RewardBench 2)       |
| `prompt`, `responses` and `order` (indices, best first)| a ranking                         |
| or `ranks` (1 for the best)                            |                                   |
| `prompt`, `responses` and `scores`                     | rated answers, in one row         |
| `prompt`, `completion` and `score` or `label`          | rated answers, the rows of a      |
|                                                        | prompt together                   |
| a feedback file (PandaLM, Label Studio, our own)       | pairs, rankings, ratings, thumbs  |
| the URL of a feedback store                            | the same                          |

Further columns go to the reward function, as in training. Prompts and answers are laid out as in
training too. How a shape is read: `align.evaluate.reward_shapes`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.data.formats import FORMAT_FIELDS, RESERVED, SNIFF, WEIGHTS, rename
from align.data.read import READERS, file_suffix
from align.data.remote import is_store, read_source
from align.data.rows import Record, Values
from align.errors import DataError
from align.evaluate.reward_judgements import (
    Said,
    beside,
    from_judgements,
    from_store,
    settled,
    shown_source,
)
from align.evaluate.reward_sets import AnswerSet, Rated, gather_rated, single
from align.evaluate.reward_shapes import Reader, reader_of
from feedback.dialogue import RowProblem
from feedback.formats import read_feedback
from feedback.formats.detect import format_of

SHOWN = 3  # bad rows that an error names
LISTS = ("responses", "response", "order", "ranks", "scores", "score", "rating", "label")


@dataclass
class LabelledRows:
    """What a source held."""

    source: str
    sets: list[AnswerSet] = field(default_factory=list)
    rows: int = 0
    undecided: int = 0  # sets whose answers are all graded alike
    bad: dict[str, int] = field(default_factory=dict)  # rows set aside, by reason

    @property
    def decided(self) -> list[AnswerSet]:
        """The sets that say of some answer that it is better."""
        return [one for one in self.sets if one.decided]


def read_labelled(
    path: str,
    *,
    category: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip_bad: bool = False,
) -> LabelledRows:
    """Read a labelled set.

    Args:
        path: a data file, a folder, a hub id, or a feedback store's URL.
        category: the column that names a row's category; `a.b` reads inside an object.
        columns: ours to theirs, as in `data.columns`.
        split: of a folder or hub dataset.
        limit: the first sets only.
        skip_bad: set rows aside that cannot be used, and count them, instead of refusing the file.

    Raises:
        DataError: the source is missing or damaged, its format is unknown, it has bad rows, no
            row has the category, or nothing in it says which answer is better.
    """
    shown = shown_source(path)
    if is_store(path):
        found = LabelledRows(shown)
        found.sets, found.rows = from_store(path, category)
        problems: list[tuple[str, RowProblem]] = []
    else:
        found, problems = _read_rows(path, category, dict(columns or {}), split)
    if problems and not skip_bad:
        first = "\n".join(f"  - {where}: {problem}" for where, problem in problems[:SHOWN])
        more = f"\n  ... and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{shown}: {len(problems):,} rows cannot be used:\n{first}{more}\n"
            "Fix: mend them, or set them aside and go on: --skip-bad, in Python skip_bad=True."
        )
    found.bad = dict(Counter(problem.reason for _, problem in problems).most_common())
    found.sets = found.sets[:limit]
    found.undecided = sum(not one.decided for one in found.sets)
    if not found.decided:
        raise DataError(
            f"{shown}: no row says which of two answers is better ({found.rows:,} rows read). Fix: "
            "see docs/reward_evaluation.md for the columns that are understood."
        )
    if category is not None and not any(one.category for one in found.sets):
        raise DataError(
            f"{shown}: no row has a category in the column {category!r}. Fix: name a column that "
            "the rows have."
        )
    return found


def _read_rows(
    path: str, category: str | None, columns: dict[str, str], split: str
) -> tuple[LabelledRows, list[tuple[str, RowProblem]]]:
    data = read_source(path, split=split)
    found = LabelledRows(path, rows=len(data.records))
    readable = [record.values for record in data.records if record.values is not None]
    first = [_renamed(values, columns) for values in readable[:SNIFF]]
    if not columns and Path(path).is_file() and _is_feedback(first) and _readable(path):
        read = read_feedback(path, bad_rows="quarantine")
        said = [
            Said(one.judgement, _category(one.raw, category), beside(one.raw), one.adjudicated)
            for one in read.reads
        ]
        found.sets = from_judgements(settled(said))
        return found, [(bad.where, RowProblem(bad.reason, bad.detail)) for bad in read.bad]
    reader = reader_of(first, columns, path)
    problems: list[tuple[str, RowProblem]] = []
    rated: list[Rated] = []
    for record in data.records:
        try:
            one = _read_row(record, reader, columns, category)
        except RowProblem as problem:
            problems.append((record.where, problem))
            continue
        if isinstance(one, AnswerSet):
            found.sets.append(one)
        else:
            rated.append(one)
    found.sets += gather_rated(rated)
    return found, problems


def _read_row(
    record: Record, reader: Reader, columns: dict[str, str], category: str | None
) -> AnswerSet | Rated:
    if record.values is None:
        raise record.problem or RowProblem("unreadable", "expected an object")
    one = reader(record.values, columns)
    renamed = rename(record.values, columns)
    further = {
        name: value
        for name, value in renamed.items()
        if name not in FORMAT_FIELDS and name not in (*RESERVED, *LISTS, *WEIGHTS)
    }
    return one.about(_category(record.values, category), _weight(renamed), further)


def _category(row: Mapping[str, Any], column: str | None) -> str:
    if column is None:
        return ""
    try:
        found = rename(dict(row), {"category": column})["category"]
    except RowProblem:
        return ""
    return "" if found is None else str(found)


def _weight(row: Values) -> float:
    value = row.get("weight")
    if value in (None, ""):
        return 1.0
    weight = single(value, "weight")
    if not (math.isfinite(weight) and weight >= 0):
        raise RowProblem("weight is negative", f"{value!r}; expected 0 or more")
    return weight


def _renamed(values: Values, columns: dict[str, str]) -> Values:
    try:
        return rename(values, columns)
    except RowProblem as problem:
        raise DataError(f"{problem}. Fix: mend --column ours=theirs.") from problem


def _is_feedback(rows: Sequence[Values]) -> bool:
    """Whether most rows are judgements in a format that only `feedback.formats` reads."""
    names = Counter(format_of(row) for row in rows)
    return sum(names[name] for name in ("pandalm", "align", "label-studio")) * 2 > len(rows)


def _readable(path: str) -> bool:
    return file_suffix(Path(path)) in set(READERS) - {".parquet"}
