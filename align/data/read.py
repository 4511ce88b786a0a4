"""Files to rows, each with its position, so that whatever is wrong later can name file and line.

Reads .jsonl, .json, .csv and .tsv (gzipped too) and .parquet. A row that cannot be read becomes a
`Record` with a problem; a file that cannot be read on (missing, cut short, not what its name says)
raises at once, whatever the policy for bad rows. Hub datasets and stores: `align.data.remote`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader, StringIO
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from align.data.rows import Record, Values
from align.errors import DataError
from feedback.dialogue import RowProblem

GZIP_MAGIC = b"\x1f\x8b"


def read_file(path: Path) -> Iterator[Record]:
    """The rows of a data file, lazily.

    Raises:
        DataError: the file is missing, has an unknown suffix, is cut short, or is not in the
            format that its suffix says.
    """
    reader = READERS.get(file_suffix(path))
    if reader is None:
        known = ", ".join(READERS)
        raise DataError(
            f"{path}: {path.suffix or 'no suffix'} is not a known kind of data file. "
            f"Fix: use {known}, each but .parquet also with .gz."
        )
    if not path.is_file():
        raise DataError(missing(path))
    yield from reader(path)


def file_suffix(path: Path) -> str:
    """The suffix that says the format, .gz apart: '.jsonl' for x.jsonl.gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def missing(path: Path) -> str:
    """The message for a file that is not there, with the nearest name that is."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(item.name for item in folder.iterdir())
    wanted = path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    if near:
        return f"{path}: no such file. Fix: did you mean {folder / near[0]}?"
    data = [name for name in names if file_suffix(Path(name)) in READERS][:8]
    held = f"it holds {', '.join(data)}" if data else "it holds no data files"
    return f"{path}: no such file. Fix: check the path; {folder} is there, and {held}."


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    """The file's bytes, unzipped where the first two bytes (not the name) say gzip."""
    with path.open("rb") as stream:
        zipped = stream.read(2) == GZIP_MAGIC
    if path.suffix.lower() == ".gz" and not zipped and path.stat().st_size:
        raise DataError(
            f"{path}: the name ends in .gz but the content is not gzip. "
            "Fix: drop .gz from the name, or fetch the file again."
        )
    return gzip.open(path) if zipped else path.open("rb")


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, with a clear error where compressed data ends too soon."""
    number = 0
    with _open(path) as stream:
        try:
            for line in stream:
                number += 1
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}: the compressed file is cut short or damaged after line {number} "
                f"({error}). Fix: fetch or write the file again."
            ) from None


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}:{number}"
        text = line.rstrip(b"\r\n")
        text = text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text
        if not text.strip():
            continue
        try:
            value = json.loads(text.decode("utf-8"))
        except json.JSONDecodeError as error:
            problem = RowProblem("invalid JSON", f"{error.msg} at column {error.colno}")
            yield Record(where, None, problem, raw=_cut(text))
            continue
        except UnicodeDecodeError as error:
            problem = RowProblem("not UTF-8", f"byte {error.start} is {text[error.start]:#04x}")
            yield Record(where, None, problem, raw=_cut(text))
            continue
        yield _record(where, value)


def _read_json(path: Path) -> Iterator[Record]:
    text = _decode(path, b"".join(_lines(path)))
    start = text.lstrip()[:1]
    if start == "{":
        first, newline, rest = text.lstrip().partition("\n")
        if newline and rest.strip() and _is_json(first):
            yield from _read_jsonl(path)  # JSON lines under the name .json are common
            return
        yield from _read_wrapped(path, text)
    elif start == "[":
        yield from _read_array(path, text)
    elif start:
        raise DataError(
            f"{path}:1: a JSON file starts with '[' (rows) or '{{', but this one starts with "
            f"{text.lstrip()[:20]!r}. Fix: write a list of objects."
        )


def _read_array(path: Path, text: str) -> Iterator[Record]:
    """A list of objects, walked one by one so that each knows the line it starts on."""
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("[") + 1)
    line, counted = 1, 0
    while text[position : position + 1] != "]":
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            _invalid_json(path, error)
        line, counted = line + text.count("\n", counted, position), position
        yield _record(f"{path}:{line}", value)
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            _invalid_json(path, json.JSONDecodeError("expected ',' or ']'", text, position))


def _read_wrapped(path: Path, text: str) -> Iterator[Record]:
    """One object: a single row, or one list of rows under a key such as "data"."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        _invalid_json(path, error)
    lists = [key for key, item in value.items() if _is_rows(item)]
    if len(lists) == 1:
        for index, item in enumerate(value[lists[0]]):
            yield _record(f"{path}:{lists[0]}[{index}]", item)
    else:
        yield _record(f"{path}:1", value)


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default, 131072, is less than one long conversation
    text = _decode(path, b"".join(_lines(path)))
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{where}: is not valid CSV ({error}). Fix: mend the quoting."
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
        elif len(cells) != len(header):
            detail = f"{len(cells)} cells under {len(header)} columns ({', '.join(header)})"
            problem = RowProblem("wrong number of cells", detail)
            yield Record(where, None, problem, raw=_cut(delimiter.join(cells).encode()))
        else:
            yield Record(where, {k: _cell(v) for k, v in zip(header, cells, strict=True)})


def _read_tsv(path: Path) -> Iterator[Record]:
    yield from _read_csv(path, delimiter="\t")


def _read_parquet(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for value in batch.to_pylist():
                    number += 1
                    yield _record(f"{path}:row {number}", value)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: is not a readable Parquet file after row {number} ({error}). "
            "Fix: fetch or write it again (Parquet compresses by itself: no .gz)."
        ) from None


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def _record(where: str, value: object) -> Record:
    if isinstance(value, dict):
        return Record(where, value)
    problem = RowProblem("not an object", f"a {type(value).__name__} where columns are expected")
    return Record(where, None, problem, raw=_cut(json.dumps(value, default=str).encode()))


def _cell(text: str) -> Any:
    """A CSV cell: a conversation where it holds one as JSON, otherwise the text as it is."""
    if text.lstrip().startswith("[{") and _is_json(text):
        return json.loads(text)
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_rows(item: object) -> bool:
    """A non-empty list of objects that are not messages."""
    return (
        isinstance(item, list)
        and bool(item)
        and all(isinstance(row, dict) and not {"role", "from"} & row.keys() for row in item)
    )


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: is not UTF-8 (byte {content[error.start]:#04x}). "
            "Fix: save the file as UTF-8."
        ) from None


def _invalid_json(path: Path, error: json.JSONDecodeError) -> NoReturn:
    raise DataError(
        f"{path}:{error.lineno}: invalid JSON: {error.msg} at column {error.colno}; nothing after "
        "it can be read. Fix: mend it there, or write one object per line (.jsonl)."
    ) from None


def _cut(text: bytes, width: int = 400) -> str:
    return text[:width].decode("utf-8", errors="replace")


def rows_sha256(rows: list[Values]) -> str:
    """SHA-256 of rows that come from no file of ours, 64 hex digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()
