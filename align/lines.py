"""JSON lines in a file that is there once it has something to hold: `align generate`'s output.

The file appears with the first batch, so that a run which fails before leaves nothing behind. One
that replaces a file writes beside it and takes its place at the end, so that a run which fails
leaves the old file as it was and its own lines in `NAME.unfinished.jsonl`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console

from align.errors import ConfigError, Problem, RunError

Rows = Sequence[Mapping[str, Any]]


class JsonLines:
    """A file of JSON lines, used as a context; every batch is on the disk once it is written."""

    def __init__(self, output: Path, overwrite: bool = False):
        """See that it can be written; nothing is left there.

        Raises:
            ConfigError: it exists, and `overwrite` is not set.
            RunError: it cannot be written.
        """
        if output.exists() and not overwrite:
            fix = "choose another file, or add --overwrite."
            raise ConfigError([Problem("output", f"{output} exists.", fix)])
        self.output, self.overwrite = output, overwrite
        self.target = Path(os.path.realpath(output))  # a link stays one
        self.replaces = output.is_file()
        if self.replaces:
            self.place = self.target.with_name(f"{self.target.stem}.unfinished{self.target.suffix}")
        else:  # what exists and is no file is a device or a pipe: it is written as it is
            self.place = output if output.exists() else self.target
        self.stream: IO[str] | None = None
        self.written = 0  # lines
        try:
            self._try()
        except OSError as error:
            raise RunError(
                f"cannot write {self.place}: {error.strerror}. Fix: choose another."
            ) from error

    def _try(self) -> None:
        """Open it for nothing: what is wrong is told before a model loads."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        if not self.place.exists():
            self.place.open("x").close()
            self.place.unlink()
        elif not self.place.is_fifo():  # which would wait for its reader
            self.place.open("a").close()

    def __enter__(self) -> JsonLines:
        return self

    def write(self, rows: Rows) -> None:
        """Append a batch.

        Raises:
            RunError: the disk is full, or the file was made by somebody else meanwhile.
        """
        if self.stream is None:
            try:
                self.stream = self.place.open("w" if self.overwrite else "x", encoding="utf-8")
            except OSError as error:
                raise _not_written(self.place, error) from error
        put(rows, self.stream, self.place)
        self.written += len(rows)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stream is None:
            return
        if error is None:
            self._finish(self.stream)
            return
        with suppress(OSError):  # a full disk was told of when the batch was written
            self.stream.close()
        if self.written:
            old = f" {self.output} is as it was." if self.replaces else ""
            text = f"Answers finished before that: {self.written}, in {self.place}.{old}"
            Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
        elif self.place.is_file():
            self.place.unlink()

    def _finish(self, stream: IO[str]) -> None:
        try:
            if self.replaces:
                os.fsync(stream.fileno())  # before the old lines go
            stream.close()
            if self.replaces:
                self.place.replace(self.target)
        except OSError as error:
            raise _not_written(self.place, error) from error


def put(rows: Rows, stream: IO[str], name: Path | str) -> None:
    """One batch as JSON lines, flushed.

    Args:
        rows: what the lines hold.
        stream: where they go.
        name: of the stream, for messages.

    Raises:
        RunError: they could not be written.
    """
    try:
        stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        stream.flush()
    except OSError as error:
        raise _not_written(name, error) from error


def _not_written(name: Path | str, error: OSError) -> RunError:
    fixes = {errno.ENOSPC: "free some space", errno.EEXIST: "choose another file"}
    fix = fixes.get(error.errno or 0, "check the disk")
    return RunError(
        f"writing to {name} failed: {error.strerror}. Fix: {fix}; the batches before this one are "
        "kept."
    )
