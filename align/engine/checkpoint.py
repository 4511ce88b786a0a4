"""Checkpoints that are whole or do not count: a SHA-256 manifest is written last, verified first.

transformers writes model, optimizer, scheduler, RNG and trainer state; we add what it does not know
(guards, KL controller, loader position, experience in flight) and then the manifest. A folder
without a valid manifest is passed over. Old checkpoints go only once a newer one is complete.
Safetensors and torch.load both return wrong tensors silently for a flipped bit: hence the hashes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.errors import CheckpointError

MANIFEST = "MANIFEST.json"
STATE = "align_state.pt"
# What safetensors says, with the system's message inside, and torch.save, without it.
DISK_FULL = ("no space left", "iostream error", "inline_container.cc")


class CheckpointCallback(TrainerCallback):
    """Completes each checkpoint that transformers writes.

    `state` returns what to keep besides (tensors, numbers, strings, and lists and dicts of them);
    `keep` is how many complete checkpoints stay.
    """

    def __init__(
        self, state: Callable[[], dict[str, Any]], keep: int | None, lineage: dict[str, Any]
    ):
        self.state = state
        self.keep = keep
        self.lineage = lineage

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Add our state, then the manifest, then let old checkpoints go."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        rank = args.process_index
        torch.save(self.state(), folder / (STATE if rank == 0 else f"rank{rank}_{STATE}"))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank's files are on disk
        if rank == 0:
            write_manifest(folder, {"step": state.global_step, "lineage": self.lineage})
            if self.keep:
                rotate(folder, self.keep, state.best_model_checkpoint)


def write_manifest(folder: Path, details: dict[str, Any] | None = None) -> None:
    """Hash every file of a folder into its manifest, atomically."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {str(p.relative_to(folder)): _sha256(p) for p in files}
    text = json.dumps({"files": hashes} | (details or {}), indent=2, default=str)
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def verify(folder: Path) -> None:
    """Check a folder against its manifest.

    Raises:
        CheckpointError: no manifest (writing was cut short), or a file is missing or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was not written to the end.")
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error}.") from error
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks {name}, which its manifest lists.")
        found = _sha256(file)
        if found != expected:
            raise CheckpointError(
                f"{file} is damaged: its SHA-256 is {found[:12]}..., the manifest has "
                f"{expected[:12]}.... Fix: use an earlier checkpoint or a backup."
            )


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first, complete or not."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
    return sorted(found, key=lambda p: -int(p.name.split("-")[-1]))


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were passed over.

    Raises:
        CheckpointError: there are checkpoints, and none verifies.
    """
    passed: list[str] = []
    for candidate in list_checkpoints(folder):
        try:
            verify(candidate)
        except CheckpointError as error:
            passed.append(str(error))
            continue
        return candidate, passed
    if passed:
        raise CheckpointError("no usable checkpoint: " + " ".join(passed))
    return None, passed


def load_state(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What `CheckpointCallback` kept, on the CPU."""
    file = folder / (STATE if rank == 0 else f"rank{rank}_{STATE}")
    return torch.load(file, map_location="cpu", weights_only=True)


def rotate(written: Path, keep: int, best: str | None = None) -> None:
    """Delete all but the newest `keep` complete checkpoints up to the one just written.

    The best one always stays. Later ones are damaged (a resume passed them over): they do not
    count, or they would push out the good ones.
    """
    step = int(written.name.split("-")[-1])
    complete = [
        p
        for p in list_checkpoints(written.parent)
        if (p / MANIFEST).is_file() and int(p.name.split("-")[-1]) <= step
    ]
    for old in complete[keep:]:
        if best is None or old.resolve() != Path(best).resolve():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into an error that says so, whichever library met it."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(sign in str(error).lower() for sign in DISK_FULL):
            free = shutil.disk_usage(path).free / 2**30
            raise CheckpointError(
                f"the disk that holds {path} is full ({free:.2f} GiB free). Earlier complete "
                "checkpoints are untouched. Fix: free space or move run.dir, then --resume."
            ) from error
        raise


def check_space(path: Path, needed: int) -> None:
    """Refuse to start when a checkpoint cannot fit.

    Args:
        path: an existing folder on the disk in question.
        needed: bytes.

    Raises:
        CheckpointError: with both sizes.
    """
    free = shutil.disk_usage(path).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs about {needed / 2**30:.2f} GiB and {path} has "
            f"{free / 2**30:.2f} GiB free. Fix: free space, set run.dir elsewhere, or "
            "trainer.save_only_model=true."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
