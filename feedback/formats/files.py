"""Feedback files to rows, each with its line: JSON lines, a JSON list, CSV, TSV; gzipped too.

A row that cannot be read becomes a `Record` with a problem. So does the place from which a damaged
file (cut short, broken JSON) cannot be read on: what came before it is still read. Only a file
that is missing or of an unknown kind raises.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, StringIO
from pathlib import Path
from typing import Any, NoReturn

from feedback.conversation import type_name
from feedback.dialogue import RowProblem
from feedback.errors import DataError
from feedback.formats.result import Values

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
GZIP_MAGIC = b"\x1f\x8b"
BLOCK = 1 << 16
CUT_SHORT = "the compressed file is cut short or damaged"


@dataclass(frozen=True)
class Record:
    """One row as it was read: its values, or the problem that kept it from being read."""

    line: int
    values: Values | None
    problem: RowProblem | None = None
    raw: str = ""  # the text of an unreadable row, cut to a few hundred characters


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file, lazily for JSON lines.

    Raises:
        DataError: the file is missing, a folder, cannot be opened, or has an unknown suffix.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder. Fix: name a file in it.")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: {suffix or 'no suffix'} is not a known kind of feedback file. "
            f"Fix: use {', '.join(SUFFIXES)}, each also with .gz."
        )
    try:
        stream = _open(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}. {_hint(path)}") from None
    with stream:
        if suffix in (".jsonl", ".ndjson"):
            yield from _read_lines(stream)
        elif suffix == ".json":
            yield from _read_json(stream)
        else:
            yield from _read_cells(stream, "," if suffix == ".csv" else "\t")


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    """The file's bytes, unzipped where the first two bytes (not the name) say gzip."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == GZIP_MAGIC
    return gzip.open(path) if zipped else path.open("rb")


def _hint(path: Path) -> str:
    names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"Fix: did you mean {path.parent / near[0]}?" if near else "Fix: check the path."


def _read_lines(stream: gzip.GzipFile | BufferedReader) -> Iterator[Record]:
    number = 0
    while True:
        try:
            line = stream.readline()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Record(number + 1, None, RowProblem(CUT_SHORT, str(error)))
            return
        if not line:
            return
        number += 1
        text = line.rstrip(b"\r\n")
        text = text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text
        if text.strip():
            yield _parse_line(text, number)


def _parse_line(text: bytes, number: int) -> Record:
    try:
        return _record(number, _load(text.decode("utf-8")))
    except UnicodeDecodeError as error:
        problem = RowProblem("not UTF-8", f"byte {error.start} is {text[error.start]:#04x}")
    except (ValueError, RecursionError) as error:
        problem = _invalid(error)
    return Record(number, None, problem, raw=_cut(text.decode("utf-8", errors="replace")))


def _read_json(stream: gzip.GzipFile | BufferedReader) -> Iterator[Record]:
    """A list of objects, one object, or JSON lines under the name .json, which are common."""
    text, problem = _decode(stream)
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from _read_array(text, start, problem)
        return
    first, _, rest = text[start:].partition("\n")
    if not first.strip():
        if problem:
            yield Record(1, None, problem)
        return
    whole = None
    try:
        whole = _load(text)
    except (ValueError, RecursionError) as error:
        if not rest.strip() or _parse_line(first.encode("utf-8", "replace"), 1).values is None:
            yield Record(1, None, problem or _invalid(error), raw=_cut(text[start:]))
            return
    if whole is not None:
        yield _record(1, whole)
        return
    before = text.count("\n", 0, start)
    for number, line in enumerate(text[start:].split("\n"), start=before + 1):
        if line.strip():
            yield _parse_line(line.encode("utf-8", "surrogateescape"), number)
    if problem:
        yield Record(text.count("\n") + 1, None, problem)


def _read_array(text: str, start: int, problem: RowProblem | None) -> Iterator[Record]:
    """A list of objects, walked one by one so that each knows the line it starts on."""
    position = _skip(text, start + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield Record(line, None, _no_further(problem or _invalid(error)), _cut(text[position:]))
            return
        yield _record(line, value)
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            damage = problem or RowProblem("invalid JSON", "expected ',' or ']'")
            yield Record(line, None, _no_further(damage), _cut(text[position:]))
            return


def _read_cells(stream: gzip.GzipFile | BufferedReader, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default, 131072, is less than one long conversation
    text, damage = _decode(stream)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Record(line, None, RowProblem("invalid CSV", f"{error}; mend the quoting"))
            continue
        if cells is None:
            break
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
        elif len(cells) != len(header):
            detail = f"{len(cells)} cells under {len(header)} columns ({', '.join(header)})"
            problem = RowProblem("wrong number of cells", detail)
            yield Record(line, None, problem, raw=_cut(delimiter.join(cells)))
        else:
            yield Record(line, dict(zip(header, cells, strict=True)))
    if damage:
        yield Record(reader.line_num + 1, None, damage)


def _decode(stream: gzip.GzipFile | BufferedReader) -> tuple[str, RowProblem | None]:
    """The whole text, up to where the compressed data break off.

    Bytes that are not UTF-8 become lone surrogates, which mark the rows that hold them, and no
    other row, as bad.
    """
    blocks, problem = [], None
    try:
        while block := stream.read1(BLOCK):
            blocks.append(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = RowProblem(CUT_SHORT, str(error))
    return b"".join(blocks).decode("utf-8-sig", errors="surrogateescape"), problem


def _record(line: int, value: object) -> Record:
    if isinstance(value, dict):
        return Record(line, value)
    problem = RowProblem("not an object", f"{type_name(value)}, where keys are expected")
    return Record(line, None, problem)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _load(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _invalid(error: Exception) -> RowProblem:
    if isinstance(error, json.JSONDecodeError):
        return RowProblem("invalid JSON", f"{error.msg} at column {error.colno}")
    if isinstance(error, RecursionError):
        return RowProblem("invalid JSON", "nested too deeply")
    return RowProblem("invalid JSON", str(error))


def _no_further(problem: RowProblem) -> RowProblem:
    return RowProblem(problem.reason, f"{problem.detail}; nothing after it can be read")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _cut(text: str, width: int = 400) -> str:
    return text[:width]
