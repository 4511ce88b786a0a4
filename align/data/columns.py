"""Rows to one table: further columns of one type, optional ones filled in.

A column of several types is refused rather than kept as JSON: `datasets` 5.2 stores such a column
in its `Json` type, which hands the text "1" back as the number 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from datasets import Dataset

from align.data.formats import WEIGHTS
from align.data.rows import Kind, Row
from align.errors import DataError
from feedback.dialogue import RowProblem

# checked when they were read
TEXTS = ("prompt", "completion", "chosen", "rejected", "text", "responses", "completions")


def odd_rows(rows: Iterable[Row]) -> list[tuple[Row, RowProblem]]:
    """Rows whose further columns have another type than most rows have there."""
    types: defaultdict[str, Counter[str]] = defaultdict(Counter)
    rows = list(rows)
    for row in rows:
        for name, value in row.values.items():
            if name not in TEXTS and value is not None:
                types[name][_type(value)] += 1
    usual = {name: counts.most_common(1)[0][0] for name, counts in types.items()}
    mixed = {name for name, counts in types.items() if len(counts) > 1}
    found = []
    for row in rows:
        for name in mixed & row.values.keys():
            value = row.values[name]
            if value is not None and _type(value) != usual[name]:
                detail = f"{_type(value)}, where most rows have {usual[name]}"
                found.append((row, RowProblem(f"{name} has another type", detail)))
                break
    return found


def to_dataset(rows: Sequence[Row], kind: Kind) -> Dataset | None:
    """Rows as a dataset with every column that any row has; None without rows.

    A preference without a margin, weight or soft label, where others have one, gets 0, 1 or 1:
    what changes nothing. Other missing values are None.

    Raises:
        DataError: a column cannot be put in a table, for example a number past 64 bits.
    """
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    neutral = WEIGHTS if kind == "preference" else {}
    columns = {name: [row.values.get(name, neutral.get(name)) for row in rows] for name in names}
    try:
        return Dataset.from_dict(columns)
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's errors are of these
        raise DataError(
            f"the columns {', '.join(names)} cannot be put in one table ({error}). "
            "Fix: give a column one type in every row and source."
        ) from error


def _type(value: object) -> str:
    """A value's type as a table sees it: int and float are one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    names = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
