"""Scores of items from a file, for the order in which people get tasks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from align.errors import DataError


def read_scores(path: Path) -> dict[str, float]:
    """Scores by item id from JSONL or CSV with the columns `item` and `score`.

    Raises:
        DataError: no such file, or a line without item and number; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Fix: name a JSONL or CSV file."
        ) from None
    scores: dict[str, float] = {}
    for number, row in _rows(path, text):
        try:
            name, score = row["item"], float(row["score"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            raise DataError(
                f"{path}:{number}: expected `item` (an id of the store) and `score` (a number), "
                f"found {str(row)[:80]}."
            ) from None
        scores[str(name)] = score
    return scores


def _rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    if path.suffix == ".csv":
        for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
            yield number, row
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, line
