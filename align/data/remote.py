"""Sources of rows: a file, a folder, a dataset of the hub, or the URL of a feedback store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from align.data.read import READERS, file_sha256, file_suffix, missing, read_file, rows_sha256
from align.data.rows import Kind, Record
from align.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from feedback.quality.soft import SoftMethod

STORE_URL = re.compile(r"^[a-z][a-z0-9+]*://")
HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?(:[\w.-]+)?$")


@dataclass
class SourceData:
    """What a source held."""

    records: list[Record]
    sha256: str  # of the file's bytes, or of the rows where there is no file
    format: str | None = None  # where the source itself says it
    ties: int = 0  # pairs without a winner, which make no preference row
    contested: int = 0  # pairs on which people disagree
    unread: str | None = None  # what people said in it that these rows leave out


def read_source(
    path: str,
    *,
    split: str = "train",
    limit: int | None = None,
    store: bool = False,
    labels: SoftMethod = "majority",
    kind: Kind = "preference",
) -> SourceData:
    """Read a source, wherever it is.

    Args:
        path: a data file; a folder (written by `save_to_disk`, or of data files); a hub id
            (`owner/name`, or `owner/name:configuration`); or a store URL (`sqlite:///x.db`).
        split: which split of a folder or hub dataset.
        limit: read the first rows only.
        store: `path` is a FeedbackStore's SQLite file even without a URL's scheme.
        labels: how a store's votes become labels: `majority` drops ties; the others add the column
            `soft_label` and keep them.
        kind: what a store is asked for: its rankings, its ratings, or else its comparisons.

    Raises:
        DataError: the source is missing or cannot be read; the message names the nearest file.
    """
    place = Path(path)
    if is_store(path, store):
        return _read_store(path, limit, labels, kind)
    if place.is_dir():
        return _read_dataset(_load_folder(place, split), f"{path}[{split}]", limit)
    if place.is_file() or file_suffix(place) in READERS or not HUB_ID.match(path):
        if not place.exists() and file_suffix(place) not in READERS:
            raise DataError(missing(place))
        return SourceData(list(islice(read_file(place), limit)), file_sha256(place))
    return _read_dataset(_load_hub(path, split), f"{path}[{split}]", limit)


def is_store(path: str, store: bool = False) -> bool:
    """Whether a source is a feedback store: a URL, or declared to be one."""
    return store or bool(STORE_URL.match(path))


def _read_store(path: str, limit: int | None, labels: SoftMethod, kind: Kind) -> SourceData:
    from align.data.store import store_rows

    url = path if STORE_URL.match(path) else f"sqlite:///{path}"
    said = store_rows(url, labels, kind)
    records = [Record(f"{said.name}#{i}", row) for i, row in enumerate(said.rows[:limit], start=1)]
    sha256 = rows_sha256(said.rows)
    return SourceData(records, sha256, said.format, said.ties, said.contested, said.unread)


def _read_dataset(dataset: Dataset, name: str, limit: int | None) -> SourceData:
    rows: Iterator[object] = iter(dataset)
    values = [row for row in islice(rows, limit) if isinstance(row, dict)]
    records = [Record(f"{name}:row {i}", row) for i, row in enumerate(values, start=1)]
    return SourceData(records, rows_sha256(values))


def _load_folder(folder: Path, split: str) -> Dataset:
    """A folder that `datasets` wrote, or a folder of data files."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        loaded = load_from_disk(str(folder)) if saved else load_dataset(str(folder))
    except Exception as error:  # the library raises many kinds; all mean that it cannot be read
        raise DataError(
            f"{folder}: cannot be read as a dataset ({type(error).__name__}: {error}). Fix: name "
            "a data file in it, or a folder written by datasets' save_to_disk."
        ) from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise DataError(
            f"{folder}: has no split {split!r}; it has {', '.join(loaded)}. "
            "Fix: set `split` of the source to one of them."
        )
    return loaded[split]


def _load_hub(path: str, split: str) -> Dataset:
    from datasets import load_dataset

    name, _, configuration = path.partition(":")
    try:
        return load_dataset(name, configuration or None, split=split)
    except Exception as error:  # not found, no network, no such split or configuration: as it says
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path}: no file or folder of that name, and the hub's dataset could not be loaded "
            f"({reason}). Fix: check the spelling, the split ({split!r}), the configuration "
            "(owner/name:configuration) and the network; or give a file."
        ) from error
