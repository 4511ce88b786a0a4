"""Columns that no stage trains on and its order of rows reads: classes, times, uncertainties.

They travel with their rows through cleaning, mixing and splitting under names of their own, and are
taken out before a trainer sees the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from datasets import Dataset

from align.data.rows import Values
from align.errors import DataError

if TYPE_CHECKING:
    from align.config.sections import DataSection

Carried: TypeAlias = dict[str, list[Any]]
PREFIX = "align_order_"
SOURCE = ""  # the name under which the number of a row's source is carried


def wanted(section: DataSection) -> list[str]:
    """The columns that a section's curriculum and samplers read, the source's number included."""
    names = [sampler.column for sampler in section.sampler]
    names += [SOURCE for sampler in section.sampler if sampler.by == "source"]
    if section.curriculum is not None:
        names.append(section.curriculum.column)
    return list(dict.fromkeys(name for name in names if name is not None))


def carry(values: Values, source: int, section: DataSection) -> Values:
    """What of a row as it was read has to travel with it."""
    return {
        PREFIX + name: source if name == SOURCE else values.get(name) for name in wanted(section)
    }


def under_own_names(values: Values) -> Values:
    """A row with its carried columns named as in its file; the source's number is left out."""
    carried = {name for name in values if name.startswith(PREFIX)}
    own = {name.removeprefix(PREFIX): values[name] for name in carried - {PREFIX + SOURCE}}
    return own | {name: value for name, value in values.items() if name not in carried}


def take_out(parts: Mapping[str, Dataset | None]) -> tuple[dict[str, Dataset | None], Carried]:
    """Splits without the carried columns, and those of the training rows.

    Raises:
        DataError: a training row has no value there; the message names the columns it may have.
    """
    train = parts["train"]
    assert train is not None
    carried: Carried = {}
    for name in train.column_names:
        if not name.startswith(PREFIX):
            continue
        column = name.removeprefix(PREFIX)
        values = train[name][:]
        empty = sum(value is None for value in values)
        if empty:
            first = next(row for row, value in enumerate(values) if value is None)
            raise DataError(
                f"{empty} of {len(values)} training rows have no {column!r}, which data.curriculum "
                f"or data.sampler reads; row {first + 1} is the first. Fix: name a column of the "
                "file that every row fills, by the file's own name, or leave such rows out."
            )
        carried[column] = values
    return {role: None if rows is None else without(rows) for role, rows in parts.items()}, carried


def without(rows: Dataset) -> Dataset:
    """Rows without carried columns."""
    return rows.remove_columns([name for name in rows.column_names if name.startswith(PREFIX)])
