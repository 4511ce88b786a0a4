"""What is fitted to a model and saved beside its weights: written whole, and tied to them.

Folders that cannot be written are told before the work.
"""

from __future__ import annotations

import hashlib
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


def weights_digest(model: Path) -> str | None:
    """SHA-256 over a directory's weights, tokenizer and chat template; None: it has no weights.

    Not over its configuration: normalisation lives there, which changes no raw score.
    """
    weights = sorted([*model.glob("*.safetensors"), *model.glob("*.bin")])
    if not weights:
        return None
    digest = hashlib.sha256()
    texts = [model / "tokenizer.json", model / "chat_template.jinja"]
    for file in [*weights, *(file for file in texts if file.is_file())]:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {found}\n".encode())
    return digest.hexdigest()


def check_weights(file: Path, digest: str | None, fix: str) -> None:
    """Refuse what was fitted to other weights than lie in the folder above its own.

    Args:
        file: in a folder of the model's directory.
        digest: of the weights that it was fitted to.
        fix: what to do.

    Raises:
        ModelError: the weights are others.
    """
    if digest != weights_digest(file.parent.parent):
        raise ModelError(
            f"{file} was fitted to other weights, tokenizer or chat template than those in "
            f"{file.parent.parent}. {fix}"
        )
