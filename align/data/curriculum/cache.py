"""Difficulties that cost a model's time are kept, under a fingerprint of model and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.data.curriculum.rank import Floats


def cache_key(measure: str, model: str, rows: Sequence[Any]) -> str:
    """A name for the difficulties of these rows under this model.

    Args:
        measure: what is measured.
        model: the model's fingerprint.
        rows: what the model reads of each row, as JSON values.
    """
    digest = hashlib.sha256(f"{measure}\n{model}\n".encode())
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def cached(folder: Path, key: str, rows: int, measure: Callable[[], Floats]) -> Floats:
    """The difficulties under a key: read, or measured and written.

    A file that is damaged or of another number of rows is measured again.
    """
    file = folder / f"difficulty-{key}.npy"
    if file.is_file():
        try:
            found: Floats = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError):
            found = np.empty(0)
        if found.shape == (rows,):
            return found
    found = measure()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp.npy")
    np.save(temporary, found)
    temporary.replace(file)
    return found
