"""A Parquet file written in parts that survive a `kill -9`: each is there wholly, or not at all.

Parts lie in `TARGET.parts/` beside a journal that says what they belong to. A part is written under
another name, flushed to the disk and renamed, so that its existence says that it is done; the whole
is put together from the parts in the same way. Leaves out what the rows hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feedback.errors import DataError
from reward.errors import RewardError
from reward.places import existing, unwritable

JOURNAL = "journal.json"
KEY = b"align_scored"  # of the target's Parquet metadata: the journal it was made from
BEGUN = ".unfinished"
ROOM = 2.2  # parts and the whole, for a while side by side, and what rewards add

Journal = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts of one target."""

    target: Path
    journal: Journal

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return parts_folder(self.target)

    def begin(self, resume: bool, overwrite: bool) -> int:
        """Start, or see how far an earlier process came; how many parts are done from the first on.

        Raises:
            DataError: the target or parts of it exist and may not be touched, or belong to another
                source, model or setting.
        """
        check_target(self.target, resume, overwrite)
        if not resume:
            self.remove()
        if not (self.folder / JOURNAL).is_file():
            if self.target.exists() and not overwrite:  # nothing to go on with
                self._compare(_written_from(self.target))
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.journal, indent=2) + "\n"
            with _whole(self.folder / JOURNAL) as place:
                place.write_text(text, encoding="utf-8")
            return 0
        self._compare(json.loads((self.folder / JOURNAL).read_text(encoding="utf-8")))
        done = 0
        while self._intact(done):
            done += 1
        kept = {self._part(number).name for number in range(done)}
        for later in self.folder.glob("part-*"):
            if later.name not in kept:
                later.unlink()
        return done

    def finished(self) -> bool:
        """Whether the target is there already, made from this very journal."""
        return self.target.is_file() and _written_from(self.target) == self.journal

    def write(self, number: int, table: pa.Table) -> None:
        """Keep a part.

        Raises:
            RewardError: the disk is full, or cannot be written.
        """
        with _whole(self._part(number)) as place:
            pq.write_table(table, place)

    def assemble(self, count: int) -> None:
        """Put the target together from so many parts, and remove them.

        Raises:
            RewardError: the disk is full, or cannot be written.
        """
        schema = pq.read_schema(self._part(0))
        named = dict(schema.metadata or {}) | {KEY: json.dumps(self.journal).encode()}
        with (
            _whole(self.target) as place,
            pq.ParquetWriter(place, schema.with_metadata(named)) as writer,
        ):
            for number in range(count):
                with pq.ParquetFile(self._part(number)) as part:
                    for group in range(part.metadata.num_row_groups):
                        writer.write_table(part.read_row_group(group))
        self.remove()

    def remove(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process writes these parts; a process that dies lets them go.

        Raises:
            DataError: another one does so now.
        """
        place = self.target.with_name(self.target.name + ".lock")
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            opened = place.open("w")
        except OSError as error:
            raise RewardError(
                f"{place} cannot be written: {error.strerror or error}. Fix: choose another target."
            ) from error
        with opened as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"{self.target}: another process is scoring into it. Fix: wait for its end."
                ) from error
            try:
                yield
            finally:
                place.unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:07}.parquet"

    def _intact(self, number: int) -> bool:
        """Whether a part can be read and has as many rows as it should."""
        rows, size = self.journal["rows"], self.journal["chunk_rows"]
        wanted = min(size, rows - number * size)
        if wanted <= 0 or not self._part(number).is_file():
            return False
        try:
            return bool(pq.read_metadata(self._part(number)).num_rows == wanted)
        except (pa.ArrowException, OSError):
            return False

    def _compare(self, found: Journal) -> None:
        differ = [key for key in self.journal if found.get(key) != self.journal[key]]
        if differ:
            shown = "; ".join(f"{k} {found.get(k)!r}, now {self.journal[k]!r}" for k in differ)
            raise DataError(
                f"{self.target} was begun with another {' and '.join(differ)} ({shown}). Fix: give "
                "what it was begun with, choose another target, or start anew with overwrite."
            )


def parts_folder(target: Path) -> Path:
    """Where the parts of a target lie."""
    return target.with_name(target.name + ".parts")


def check_target(target: Path, resume: bool, overwrite: bool) -> None:
    """Whether a target may be written, before anything is read.

    Raises:
        DataError: it is no .parquet file, or it or parts of it exist and may not be touched.
        RewardError: its folder cannot be written.
    """
    if target.suffix != ".parquet" or target.is_dir():
        raise DataError(f"{target}: the target is a file that ends in .parquet. Fix: name one.")
    if resume and overwrite:
        raise DataError(f"{target}: it is either resumed or overwritten. Fix: leave one out.")
    if (fault := unwritable(target)) is not None:
        raise RewardError(f"{target}: {fault} Fix: choose another target.")
    if overwrite or resume:
        return
    if target.exists():
        raise DataError(f"{target} exists. Fix: choose another target, or overwrite it.")
    if parts_folder(target).exists():
        raise DataError(
            f"{target} was begun and not finished: {parts_folder(target)} holds its parts. Fix: "
            "resume it, or overwrite it."
        )


def check_space(target: Path, size: int) -> None:
    """Whether the target's disk has room for a file about as large as the source, and its parts.

    What earlier processes wrote of them needs no more room.

    Raises:
        RewardError: it has not.
    """
    folder = existing(target.absolute().parent)
    free, wanted = shutil.disk_usage(folder).free, ROOM * size - written(target)
    if free < wanted:
        raise RewardError(
            f"{folder} has {free / 2**20:.0f} MiB free, and about {wanted / 2**20:.0f} MiB "
            "are needed. Fix: free some space, or choose another disk."
        )


def written(target: Path) -> int:
    """Bytes of the parts of a target, and of one that was being put together from them."""
    unfinished = target.with_name(target.name + BEGUN)
    files = [*parts_folder(target).glob("*"), unfinished]
    return sum(file.stat().st_size for file in files if file.is_file())


def finished_before(target: Path, resume: bool) -> bool:
    """Whether a target that is resumed was written to its end, by whatever model."""
    if not resume or not target.is_file() or parts_folder(target).exists():
        return False
    return bool(_written_from(target))


def _written_from(target: Path) -> Journal:
    try:
        metadata = pq.read_schema(target).metadata or {}
        found: Journal = json.loads(metadata.get(KEY, b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return {}
    return found


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write a file in, which comes to `path` at the end, on the disk and whole."""
    place = path.with_name(path.name + BEGUN)
    try:
        yield place
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        place.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RewardError(
            f"writing {path} failed: {error.strerror or error}. Fix: free some space or check the "
            "disk, and resume; what was written before is kept."
        ) from error
