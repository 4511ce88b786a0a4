"""A feedback file in any known format to judgements, each under an id that does not change.

Leaves out the store: hand `Read.judgement`, `Read.annotation` and `Read.raw` to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from feedback.dialogue import RowProblem
from feedback.errors import DataError
from feedback.formats.detect import FORMATS, PARSERS, SNIFF, Format, detect_format
from feedback.formats.files import Record, read_records
from feedback.formats.found import Declined, Found, Misfit, Outcome, Parser, content_id
from feedback.formats.result import BadRow, Read, ReadResult, Skip, Values
from feedback.schema import Judgement

TEXT_CELLS = ("prompt", "chosen", "rejected", "completion")  # may hold a conversation as JSON


def read_feedback(
    path: str | Path,
    format: Format = "auto",
    *,
    bad_rows: Literal["strict", "quarantine"] = "strict",
    annotators: Mapping[str, str] | None = None,
) -> ReadResult:
    """Everything a file says.

    Args:
        path: .jsonl, .json, .csv or .tsv, each also gzipped.
        format: one of `FORMATS`; "auto" looks at the first rows.
        bad_rows: "strict" refuses the file when anything in it cannot be used; "quarantine" keeps
            that in `ReadResult.bad` and goes on.
        annotators: the file's names for people to yours. Label Studio's exports, for one, number
            people; a name that is not in here stays as it is.

    Raises:
        DataError: the file cannot be opened, its format is unknown or cannot be told, or it has
            bad rows and `bad_rows` is "strict". It names file, line, what was expected and the fix.
    """
    result = ReadResult(str(path), format)
    for item in _outcomes(Path(path), result, annotators or {}):
        if isinstance(item, BadRow):
            result.bad.append(item)
        elif isinstance(item, Skip):
            result.skips.append(item)
        else:
            result.reads.append(item)
    if bad_rows == "strict":
        result.check()
    return result


def _outcomes(
    path: Path, result: ReadResult, annotators: Mapping[str, str]
) -> Iterator[Read[Judgement] | BadRow | Skip]:
    if result.format not in FORMATS:
        raise DataError(
            f"{path}: {result.format!r} is no feedback format. Fix: use {', '.join(FORMATS)}."
        )
    records = read_records(path)
    first = list(islice(records, SNIFF))
    if not first:
        return
    if result.format == "auto":
        result.format = detect_format(first, str(path))
    parser = PARSERS[result.format]
    cells = path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    repeats: Counter[str] = Counter()
    for record in chain(first, records):
        result.rows += 1
        for item in _parse(record, parser, cells=cells):
            if isinstance(item, RowProblem | Misfit):
                yield _bad(path, record, item)
            elif isinstance(item, Declined):
                name = annotators.get(item.annotator, item.annotator)
                yield Skip(item.item, name, item.id, f"{path}:{record.line}", item.raw)
            else:
                yield _read(item, f"{path}:{record.line}", annotators, repeats)


def _parse(record: Record, parser: Parser, *, cells: bool) -> Iterator[Outcome | RowProblem]:
    if record.values is None:
        assert record.problem is not None
        yield record.problem
        return
    try:
        yield from parser(_from_cells(record.values) if cells else record.values)
    except RowProblem as problem:
        yield problem


def _read(
    found: Found, where: str, annotators: Mapping[str, str], repeats: Counter[str]
) -> Read[Judgement]:
    name = annotators.get(found.judgement.annotator, found.judgement.annotator)
    found = replace(found, judgement=replace(found.judgement, annotator=name))
    annotation = found.id
    if not annotation:
        base = content_id(found)
        annotation = content_id(found, repeats[base]) if repeats[base] else base
        repeats[base] += 1
    return Read(found.judgement, annotation, where, found.raw, found.adjudicated)


def _bad(path: Path, record: Record, item: RowProblem | Misfit) -> BadRow:
    if isinstance(item, Misfit):
        problem, row = item.problem, item.raw
    else:
        problem, row = item, record.raw if record.values is None else record.values
    return BadRow(str(path), record.line, problem.reason, problem.detail, row)


def _from_cells(row: Values) -> Values:
    """A CSV row with the conversations that its cells hold as JSON.

    A cell that only looks like one stays text; so does a prompt where `prompt_is_text` says so.
    """
    kept = {"prompt"} if str(row.get("prompt_is_text", "")).lower() in ("true", "1") else set()
    changed = {
        name: messages
        for name in TEXT_CELLS
        if name not in kept and (messages := _conversation(row.get(name))) is not None
    }
    return row | changed


def _conversation(cell: object) -> list[object] | None:
    if not isinstance(cell, str) or not cell.lstrip().startswith("[{"):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    messages = isinstance(value, list) and all(
        isinstance(item, dict) and item.keys() & {"role", "from"} for item in value
    )
    return value if messages else None
