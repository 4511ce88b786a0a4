"""A file of answers to be scored, read in chunks of a fixed number of rows.

Parquet (a file, or a folder of files of one schema) or JSON lines, gzipped too. Three shapes are
known by their columns: `prompt` and `completion`; `prompt` and `completions`, a list; `chosen` and
`rejected`, with or without `prompt`. Texts are strings or conversations.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from feedback.errors import DataError
from feedback.schema import Text

Shape = Literal["completion", "completions", "pair"]
NEEDED: dict[Shape, tuple[str, ...]] = {
    "completion": ("prompt", "completion"),
    "completions": ("prompt", "completions"),
    "pair": ("chosen", "rejected"),
}
REWARDS: dict[Shape, tuple[str, ...]] = {
    "completion": ("reward",),
    "completions": ("reward",),
    "pair": ("reward_chosen", "reward_rejected"),
}
JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
SCAN_ROWS = 4096  # of JSON lines that are looked at together for their schema
BUFFER = 1 << 20  # bytes read at a time: a row group may be larger than the memory


@dataclass(frozen=True)
class Answers:
    """The answers of a chunk, one after the other; None where a cell is empty."""

    prompts: list[Text | None]
    completions: list[Text | None]
    counts: list[int | None]  # answers of each row; None: the row has no list


@dataclass(frozen=True)
class Source:
    """Rows to be scored."""

    path: Path
    files: tuple[Path, ...]
    schema: pa.Schema
    rows: int
    shape: Shape

    def tables(self, first: int, size: int) -> Iterator[pa.Table]:
        """The rows from `first` on, `size` at a time; only the last table may be shorter."""
        waiting: list[pa.Table] = []
        held = 0
        for table in self._pieces(first, size):
            waiting.append(table)
            held += len(table)
            while held >= size:
                whole = pa.concat_tables(waiting)
                yield whole.slice(0, size)
                held -= size
                waiting = [whole.slice(size)]
        if held:
            yield pa.concat_tables(waiting)

    def _pieces(self, first: int, size: int) -> Iterator[pa.Table]:
        for file in self.files:
            if file.suffix != ".parquet":
                yield from _json_tables(file, self.schema, first, size)
                continue
            with pq.ParquetFile(file, buffer_size=BUFFER) as opened:
                group, groups = 0, opened.metadata.num_row_groups
                while group < groups and opened.metadata.row_group(group).num_rows <= first:
                    first -= opened.metadata.row_group(group).num_rows
                    group += 1
                for batch in opened.iter_batches(size, row_groups=range(group, groups)):
                    table = pa.Table.from_batches([batch]).cast(self.schema)
                    yield table.slice(min(first, len(table)))
                    first -= min(first, len(table))

    def answers(self, table: pa.Table) -> Answers:
        """The answers of some rows."""
        bare = self.shape == "pair" and "prompt" not in self.schema.names
        prompts: list[Text | None] = [None] * len(table)
        if not bare:
            prompts = _texts(table["prompt"])
        if self.shape == "completion":
            return Answers(prompts, _texts(table["completion"]), [1] * len(table))
        if self.shape == "pair":
            pairs = zip(_texts(table["chosen"]), _texts(table["rejected"]), strict=True)
            both = [answer for pair in pairs for answer in pair]
            # without a prompt, the whole dialogue is in either answer
            twice: list[Text | None] = [
                (_nothing_before(one) if bare else prompt)
                for prompt, one in zip((p for p in prompts for _ in range(2)), both, strict=True)
            ]
            return Answers(twice, both, [2] * len(table))
        lists = table["completions"].to_pylist()
        return Answers(
            [p for p, found in zip(prompts, lists, strict=True) for _ in found or ()],
            [_text(answer) for found in lists for answer in found or ()],
            [None if found is None else len(found) for found in lists],
        )

    def fingerprint(self) -> str:
        """SHA-256 over names and bytes of the files, 64 hex digits."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.name} {found}\n".encode())
        return digest.hexdigest()

    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.stat().st_size for file in self.files)


def open_source(path: str | Path) -> Source:
    """See what a file or folder holds; JSON lines are read once for their schema.

    Raises:
        DataError: it is missing, empty, damaged or of a kind that is not read, its files differ in
            their columns, or the columns are not those of answers.
    """
    path = Path(path)
    if path.is_dir():
        files = tuple(sorted(path.glob("*.parquet")))
        if not files:
            raise DataError(f"{path}: no .parquet files are in this folder. Fix: check the path.")
    elif not path.is_file():
        raise DataError(f"{path}: no such file. Fix: check the path.")
    elif path.suffix == ".parquet" or path.name.endswith(JSON_LINES):
        files = (path,)
    else:
        raise DataError(
            f"{path}: pools are read from .parquet files, a folder of them, or {JSON_LINES[0]}. "
            "Fix: convert it."
        )
    schema, rows = (_parquet if files[0].suffix == ".parquet" else _json_lines)(files)
    if not rows:
        raise DataError(f"{path}: it holds no rows. Fix: check the path.")
    return Source(path, files, schema, rows, _shape(path, schema))


def _shape(path: Path, schema: pa.Schema) -> Shape:
    names = set(schema.names)
    found = [shape for shape, needed in NEEDED.items() if names >= set(needed)]
    if len(found) != 1:
        known = "; ".join(" and ".join(needed) for needed in NEEDED.values())
        what = "are of more than one kind" if found else "are none of answers"
        raise DataError(
            f"{path}: its columns ({', '.join(schema.names)}) {what}. Fix: have one of: {known}."
        )
    shape = found[0]
    for name in REWARDS[shape]:
        for column in (name, f"{name}_std"):
            if column in names:
                raise DataError(
                    f"{path}: it has a column {column!r} already, which would be written. Fix: "
                    "rename it, or drop it."
                )
    kinds = {}
    for name in (*NEEDED[shape], "prompt"):
        if name in names:
            kind = schema.field(name).type
            if name == "completions":
                if not _is_list(kind):
                    raise DataError(
                        f"{path}: column completions is {kind}, and must be a list. Fix: name it "
                        "completion where each row has one."
                    )
                kind = kind.value_type
            kinds[name] = _kind(path, name, kind)
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise DataError(
            f"{path}: the columns must all be text, or all be conversations; there are {shown}. "
            "Fix: write each as a list of {role, content}."
        )
    return shape


def _kind(path: Path, name: str, kind: pa.DataType) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if _is_list(kind) and pa.types.is_struct(kind.value_type):
        fields = {field.name for field in kind.value_type}
        if {"role", "content"} <= fields:
            return "conversations"
    raise DataError(
        f"{path}: column {name} is {kind}; it must be text or a list of {{role, content}}. "
        "Fix: convert it."
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _parquet(files: Sequence[Path]) -> tuple[pa.Schema, int]:
    schema: pa.Schema | None = None
    rows = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                found, count = opened.schema_arrow, opened.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]}). Fix: write or "
                "fetch it again."
            ) from error
        if schema is not None and not schema.equals(found):
            raise DataError(
                f"{file}: its columns differ from those of {files[0].name}. Fix: score it apart, "
                "or write both with one schema."
            )
        schema, rows = schema or found, rows + count
    assert schema is not None
    return schema, rows


def _json_lines(files: Sequence[Path]) -> tuple[pa.Schema, int]:
    """One schema for all lines, and their number."""
    schema, rows = pa.schema([]), 0
    for lines in _json_chunks(files[0], 0, SCAN_ROWS):
        try:
            found = _json_table(lines).schema
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise _no_table(files[0], rows, lines, error) from error
        rows += len(lines)
    return schema, rows


def _no_table(file: Path, first: int, lines: list[dict[str, Any]], error: Exception) -> DataError:
    """Which of some rows Arrow has no place for: that after `first` others, counted from 1."""
    for number, line in enumerate(lines, start=first + 1):
        try:
            _json_table([line])
        except UnicodeError:
            what = "a text with half a surrogate pair, which is no Unicode"
        except (OverflowError, pa.ArrowInvalid):
            what = "a number beyond 64 bits, or values of different kinds in one list"
        except pa.ArrowException as other:
            what = str(other)
        else:
            continue
        return DataError(f"{file}: row {number} holds {what}. Fix: mend it, or leave it out.")
    return DataError(f"{file}: a column has values of different kinds ({error}). Fix: give it one.")


def _json_tables(file: Path, schema: pa.Schema, first: int, size: int) -> Iterator[pa.Table]:
    for lines in _json_chunks(file, first, size):
        try:
            table = _json_table(lines, schema)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise _no_table(file, first, lines, error) from error
        first += len(lines)
        yield table


def _json_table(lines: list[dict[str, Any]], schema: pa.Schema | None = None) -> pa.Table:
    """Objects as rows; without a schema, with every key of any of them."""
    names = schema.names if schema else list(dict.fromkeys(key for line in lines for key in line))
    kinds = {name: schema.field(name).type if schema else None for name in names}
    columns = {
        name: pa.array([line.get(name) for line in lines], kind) for name, kind in kinds.items()
    }
    return pa.table(columns, schema=schema)


def _json_chunks(file: Path, first: int, size: int) -> Iterator[list[dict[str, Any]]]:
    """Objects of a file of JSON lines from the row `first` on."""
    number = 0
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        try:
            kept = ((n, line) for n, line in enumerate(stream, start=1) if line.strip())
            skipped = islice(kept, first, None)
            while part := list(islice(skipped, size)):
                objects = []
                for number, line in part:  # noqa: B007 - the message names the line
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise ValueError("no object")
                    objects.append(value)
                yield objects
        except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
            raise DataError(
                f"{file}:{number}: no line of JSON ({error}). Fix: mend it, or fetch it again."
            ) from error


def _texts(column: pa.ChunkedArray) -> list[Text | None]:
    return [_text(value) for value in column.to_pylist()]


def _text(value: Any) -> Text | None:
    """A cell as text or messages; Arrow puts None where a message lacks a field of others."""
    if value is None or isinstance(value, str):
        return value
    return [{key: item for key, item in message.items() if item is not None} for message in value]


def _nothing_before(answer: Text | None) -> Text | None:
    return None if answer is None else ("" if isinstance(answer, str) else [])
