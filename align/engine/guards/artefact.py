"""What guards keep for later runs: importances with their anchors, and buffers of rows.

Safetensors, written atomically. The header says what it is, of which model and data; a SHA-256 over
the tensors is checked on reading, because a flipped bit would otherwise pass in silence.

    importance   importance/<parameter> and anchor/<parameter>
    rows         rows (uint8, JSON in UTF-8) and ends (int64): text, for any tokenizer

A run keeps its artefacts in `guards/`; `align guard` writes them beside a model. `find_artefacts`
follows a model's lineage from run to run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.errors import CheckpointError

FOLDER = "guards"  # in a run directory, or in a model's
KEY = "align"  # of the header
VERSION = 1


@dataclass(frozen=True)
class About:
    """What an artefact's header says."""

    kind: str  # ewc, si, mas or rows
    tasks: tuple[str, ...] = ()  # what it protects: one fingerprint each, oldest first
    model: str = "none"  # fingerprint of the model that it was estimated on
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Importance:
    """An importance guard's memory, by parameter."""

    importance: dict[str, Tensor]
    anchor: dict[str, Tensor]
    about: About


def save_importance(
    path: Path, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor], about: About
) -> None:
    """Write importances (float32) and anchors; what counts for nothing is left out."""
    kept = {n: v for n, v in importance.items() if bool((v != 0).any())}
    tensors = {f"importance/{n}": v.detach().float() for n, v in kept.items()}
    tensors |= {f"anchor/{n}": anchor[n].detach().float() for n in kept}
    _save(path, tensors, about)


def load_importance(path: Path) -> Importance:
    """Read what `save_importance` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or something else.
    """
    tensors, about = _load(path)
    parts: dict[str, dict[str, Tensor]] = {"importance": {}, "anchor": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise CheckpointError(
                f"{path} holds {about.kind}, and importances were expected. Fix: name a file that "
                "`align guard fisher` or a run with an importance guard wrote."
            )
        parts[part][name] = value
    return Importance(parts["importance"], parts["anchor"], about)


def save_rows(path: Path, rows: Sequence[Mapping[str, Any]], about: About) -> None:
    """Write rows of data."""
    texts = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    whole = torch.frombuffer(bytearray(b"".join(texts) or b" "), dtype=torch.uint8)
    ends = torch.tensor([len(text) for text in texts], dtype=torch.long).cumsum(0)
    _save(path, {"rows": whole, "ends": ends}, about)


def load_rows(path: Path) -> tuple[list[dict[str, Any]], About]:
    """Read what `save_rows` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or something else.
    """
    tensors, about = _load(path)
    if set(tensors) != {"rows", "ends"}:
        raise CheckpointError(
            f"{path} holds {about.kind}, and rows were expected. Fix: name a file that "
            "`align guard buffer` or a run with `remember` wrote."
        )
    text = tensors["rows"].numpy().tobytes()
    ends = tensors["ends"].tolist()
    starts = [0, *ends][: len(ends)]
    return [json.loads(text[a:b]) for a, b in zip(starts, ends, strict=True)], about


def read_about(path: Path) -> About:
    """The header alone.

    Raises:
        CheckpointError: the file is missing, damaged, or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the guard's artefact {path}: {error}") from error
    if text is None:
        raise CheckpointError(f"{path} is no guard's artefact: its header does not say what it is.")
    found = json.loads(text)
    return About(found["kind"], tuple(found["tasks"]), found["model"], found["details"])


def find_artefacts(model: str | Path, kind: str) -> list[Path]:
    """Artefacts of a kind that a model's lineage left, oldest first, each task once.

    Looked at are the folder beside the model, then the run that it came from, then the model which
    that run started from, and so on. A file whose tasks a later one holds already is passed over.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for folder in lineage(model):
        here = [(read_about(p), p) for p in sorted(folder.glob("*.safetensors"))]
        for about, path in sorted(here, key=lambda item: (-len(item[0].tasks), item[1].name)):
            if about.kind == kind and not seen & set(about.tasks):
                found.append(path)
                seen |= set(about.tasks)
    return found[::-1]


def lineage(model: str | Path) -> Iterable[Path]:
    """Folders of artefacts along a model's ancestry, newest first."""
    from align.run import find_run

    place: Path | None = Path(model)
    visited: set[Path] = set()
    while place is not None and place.is_dir() and place.resolve() not in visited:
        visited.add(place.resolve())
        run = find_run(place)
        parents: list[dict[str, Any]] = []
        folders = [place / FOLDER]
        if run is not None:
            folders.append(Path(run) / FOLDER)
            record = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
            parents = record.get("parents", [])
        yield from (folder for folder in folders if folder.is_dir())
        place = next((Path(p["path"]) for p in parents if p["role"] == "model"), None)


def task_id(*parts: str) -> str:
    """A short name of a task: 16 hex digits of its parts' hash."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _save(path: Path, tensors: Mapping[str, Tensor], about: About) -> None:
    from align.engine.checkpoint import disk_errors

    path.parent.mkdir(parents=True, exist_ok=True)
    ready = {name: value.cpu().contiguous() for name, value in sorted(tensors.items())}
    header = asdict(about) | {"version": VERSION, "sha256": _digest(ready)}
    temporary = path.with_suffix(".tmp")
    with disk_errors(path.parent):
        save_file(ready, temporary, metadata={KEY: json.dumps(header)})
        temporary.replace(path)


def _load(path: Path) -> tuple[dict[str, Tensor], About]:
    about = read_about(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        expected = json.loads(file.metadata()[KEY])["sha256"]
    if _digest(tensors) != expected:
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those that were written. Fix: make it again "
            "with `align guard`, or restore it from a backup."
        )
    return tensors, about


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
