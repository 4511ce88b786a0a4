"""Judgements to files in Align's own format (`feedback.formats.neutral`): JSON lines or CSV.

Reading such a file gives the same judgements under the same ids, and writing those the same bytes.
A CSV is for people who look: spreadsheets take a cell that starts with =, +, - or @ for a formula,
and this module does not change an answer to prevent it. Keep and move feedback as JSON lines.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from feedback.errors import DataError
from feedback.formats.neutral import SKIP
from feedback.formats.result import Values
from feedback.schema import Comparison, Correction, Judgement, Ranking, Rating, Thumb
from feedback.standing import Standing

KIND_NAMES: dict[type, str] = {
    Comparison: "comparison",
    Ranking: "ranking",
    Rating: "rating",
    Thumb: "thumb",
    Correction: "correction",
}
COLUMNS: dict[type, tuple[str, ...]] = {
    Comparison: (
        "response_a",
        "response_b",
        "label",
        "strength",
        "swapped",
        "source_a",
        "source_b",
    ),
    Ranking: ("responses", "order", "sources"),
    Rating: ("response", "scores", "source"),
    Thumb: ("response", "good", "source"),
    Correction: ("response", "corrected", "source", "item"),
}
SUFFIXES = (".jsonl", ".csv")


def judgement_row(judgement: Judgement, annotation: str | None = None) -> Values:
    """A judgement as a JSON object of plain values."""
    names = COLUMNS[type(judgement)]
    row: Values = {"kind": KIND_NAMES[type(judgement)], "prompt": judgement.prompt}
    row |= {name: _plain(getattr(judgement, name)) for name in names}
    row["annotator"] = judgement.annotator
    if not isinstance(judgement, Correction):
        row |= {"reason": judgement.reason, "lead_time": judgement.lead_time}
    row["created_at"] = judgement.created_at.isoformat()
    if annotation:
        row["annotation"] = annotation
    return row


def standing_row(standing: Standing) -> Values:
    """What stands of an annotation, a skip too, as a JSON object that comes back as it was."""
    version = {"updated_at": standing.updated_at.isoformat()}
    if standing.judgement is not None:
        row = judgement_row(standing.judgement, standing.annotation) | version
        return row | {"adjudicated": True} if standing.adjudicated else row
    item = standing.item
    return {
        "kind": SKIP,
        "asked": item.kind,
        "prompt": item.prompt,
        "responses": list(item.responses),
        "sources": list(item.sources),
        "annotator": standing.annotator,
        "annotation": standing.annotation,
        **version,
    }


def write_standing(standing: Iterable[Standing], path: str | Path) -> int:
    """Write all that stands in a store (`FeedbackStore.standing`); returns how many rows.

    Imported again, into the same store it adds nothing, and into a new one it gives the same
    judgements, adjudications and skips.

    Raises:
        DataError: as `write_feedback`.
    """
    return write_rows((standing_row(one) for one in standing), path)


def write_feedback(
    judgements: Iterable[Judgement],
    path: str | Path,
    *,
    annotations: Iterable[str | None] | None = None,
) -> int:
    """Write judgements, with their annotations' ids where given; returns how many.

    The file appears whole or not at all. `.gz` after the suffix compresses it.

    Raises:
        DataError: an unknown suffix, a value that JSON cannot hold, or a file that cannot be
            written.
        ValueError: not one annotation id per judgement.
    """
    items = list(judgements)
    ids = list(annotations) if annotations is not None else [None] * len(items)
    return write_rows((judgement_row(i, a) for i, a in zip(items, ids, strict=True)), path)


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | Path) -> int:
    """Write rows of plain values, such as `reward.training_rows` makes; returns how many.

    Raises:
        DataError: as `write_feedback`.
    """
    target = Path(path)
    suffix = Path(target.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: feedback is not written as {suffix or 'a file without suffix'}. "
            f"Fix: use {' or '.join(SUFFIXES)}, each also with .gz."
        )
    kept = [dict(row) for row in rows]
    try:
        text = _csv(kept) if suffix == ".csv" else "".join(_line(row) + "\n" for row in kept)
        _write(target, text.encode())
    except (UnicodeEncodeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a value cannot be written ({error}). Fix: use text, finite numbers, lists "
            "and objects. Nothing was written."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Fix: check the folder's permissions and the disk."
        ) from error
    return len(kept)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _csv(rows: list[Values]) -> str:
    """CSV with the columns of all rows; what is not text is JSON, and nothing is empty.

    `prompt_is_text` tells a prompt that looks like a conversation's JSON from a conversation.
    """
    rows = [
        row | {"prompt_is_text": isinstance(row["prompt"], str)} if "prompt" in row else row
        for row in rows
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return stream.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _line(value)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    # No time in the gzip header: the same judgements make the same bytes.
    temporary.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    os.replace(temporary, path)
