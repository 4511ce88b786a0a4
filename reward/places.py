"""Files written whole or not at all, and folders that cannot be written told before the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reward.errors import ModelError


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def unwritable(file: Path) -> str | None:
    """Why a file cannot be made; None: nothing speaks against it."""
    folder = existing(file.absolute().parent)
    if not folder.is_dir():
        return f"{folder} is no folder."
    if not os.access(
        folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        return f"the folder {folder} cannot be written."
    return None


@contextmanager
def saving(file: Path) -> Iterator[Path]:
    """A place beside a file to write it in, which then takes its name; folders are made.

    Raises:
        ModelError: it cannot be written.
    """
    place = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield place
        place.replace(file)
    except OSError as error:
        raise ModelError(
            f"{file} cannot be written: {error.strerror or error}. Fix: make its folder "
            "writable, or free some space."
        ) from error
