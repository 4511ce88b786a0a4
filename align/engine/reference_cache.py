"""Log-probabilities of a frozen reference, kept between runs under what they depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SIDES = ("chosen", "rejected")


def cache_folder() -> Path:
    """Where they are kept: ALIGN_REFERENCE_CACHE, or `align/reference` in the user's cache."""
    if given := os.environ.get("ALIGN_REFERENCE_CACHE"):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "align" / "reference"


def reference_key(parts: Sequence[str], rows: Iterable[Sequence[Sequence[int]]]) -> str:
    """A name for the log-probabilities of these rows.

    Args:
        parts: whatever else they depend on: the model's fingerprint, precision, batch size.
        rows: token ids of each row: prompt, chosen and rejected answer.
    """
    digest = hashlib.sha256("\n".join(parts).encode())
    for row in rows:
        for ids in row:
            digest.update(f"{len(ids)}:".encode())
            digest.update(b"".join(int(one).to_bytes(4, "little") for one in ids))
    return digest.hexdigest()[:32]


def read_reference(file: Path, rows: int) -> tuple[Tensor, Tensor] | None:
    """Both sides' log-probabilities, (rows,) each; None where they are not there, or damaged."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError):
        return None
    sides = [found.get(name) for name in SIDES]
    if any(side is None or side.shape != (rows,) or not side.isfinite().all() for side in sides):
        return None
    return found["chosen"], found["rejected"]


def write_reference(file: Path, chosen: Tensor, rejected: Tensor) -> None:
    """Keep them; another process that writes the same at the same time does no harm."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    tensors = {
        name: side.to(torch.float32).contiguous().clone()
        for name, side in zip(SIDES, (chosen, rejected), strict=True)
    }
    save_file(tensors, temporary)
    temporary.replace(file)
