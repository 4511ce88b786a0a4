"""The run directory: everything one needs to understand, repeat, resume and compare a run.

    run.json         stage, status, command, seed, git commit, versions, device, fingerprints,
                     lineage (`parents`), warnings, results
    config.yaml      the resolved configuration
    metrics.jsonl    one JSON object per logged step
    data_card.json   what the data were
    samples.jsonl    prompts with completions, before and after
    checkpoints/     checkpoint-<step>, each with a SHA-256 manifest written last
    model/           the result

A directory belongs to one process at a time (`run.lock`). Of a distributed run's processes the
first keeps it; the others write into a folder of their own that goes with them (`open_run`). Leaves
out what is in a checkpoint: `align.engine.checkpoint`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from align.config.stages import StageConfig
from align.errors import Interrupted, RunError
from align.processes import first_process, processes
from align.provenance import describe_device, git_state, versions
from align.same import check_same

# What a run holds that failed before its first step.
BEFORE_TRAINING = {"run.json", "run.lock", "config.yaml", "data_card.json", "quarantine.jsonl"}
BEFORE_TRAINING |= {"difficulty"}  # what a curriculum measured


class Run:
    """An open run directory. Use `open_run`, which locks it and records how it ended."""

    def __init__(self, path: Path, stage: str, shared: Path | None = None):
        self.path = path
        self.stage = stage
        self.shared = shared or path  # what all processes of a distributed run see
        self.record: dict[str, Any] = {}
        self.ending = "completed"  # the status of a run that ends without an error

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, to which every process of a distributed run adds its part."""
        return self.shared / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder of the final model."""
        return self.path / "model"

    def update(self, **values: Any) -> None:
        """Merge values into run.json."""
        self.record.update(values)
        write_json(self.path / "run.json", self.record)

    def add_parent(self, role: str, path: str | Path, **details: Any) -> None:
        """Record what this run came from: `role` is model, reward, data or value.

        A path inside another run's directory links to that run.
        """
        entry = {"role": role, "path": str(path), "run": find_run(path)} | details
        parents = self.record.setdefault("parents", [])
        if entry not in parents:
            self.update(parents=[*parents, entry])

    def warn(self, message: str) -> None:
        """Keep a warning for the report (once)."""
        if message not in self.record.setdefault("warnings", []):
            self.update(warnings=[*self.record["warnings"], message])

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one line to metrics.jsonl."""
        line = {"step": step, "time": round(time.time(), 3)} | dict(metrics)
        append_jsonl(self.path / "metrics.jsonl", line)

    def finish(self, **results: Any) -> None:
        """Record results; the status becomes `ending` when `open_run` leaves."""
        self.update(results=self.record.get("results", {}) | results)


@contextmanager
def open_run(
    config: StageConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    command: list[str] | None = None,
) -> Iterator[Run]:
    """Open, lock and close a run directory; the way it ended is written whatever happens.

    Args:
        config: the stage's configuration; `run.dir` names the directory.
        resume: continue what is there; otherwise the directory must be new, empty, or
            `run.overwrite` set.
        dry_run: work in a temporary directory and leave the real one alone.
        command: the command line, for the record.

    Raises:
        RunError: another process holds the directory; it holds another run and neither resume
            nor overwrite was asked for; it holds files of something else; there is nothing to
            resume, or the resumed run's configuration differs; several processes have no
            `run.dir` to share.
    """
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="align-dry-run-") as folder:
            run = Run(Path(folder), config.stage)
            run.record = {"seed": config.run.seed}
            yield run
        return
    if resume and not config.run.dir:
        raise RunError("--resume: run.dir is not set. Fix: add run.dir=<the run to continue>.")
    if processes() > 1 and not config.run.dir:
        raise RunError(
            "several processes were started and share one run directory, but run.dir is not set. "
            "Fix: set run.dir."
        )
    path = Path(config.run.dir or f"runs/{config.stage}-{datetime.now():%Y%m%d-%H%M%S}")
    if not first_process():
        with tempfile.TemporaryDirectory(prefix="align-process-") as folder:
            own = Path(folder) / path.name
            own.mkdir()
            run = Run(own, config.stage, shared=path)
            run.record = {"seed": config.run.seed}
            yield run
        return
    if resume and not (path / "run.json").is_file():
        raise RunError(
            f"--resume: {path} holds no run. Fix: set run.dir to the run to continue, or leave "
            "--resume out to start one."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot create the run directory {path}: {error.strerror}. Fix: set run.dir to a "
            "folder you may write to."
        ) from error
    _refuse_foreign(path)
    from align.engine.checkpoint import disk_errors  # imports transformers; `align report` need not

    with disk_errors(path), _locked(path):
        run = Run(path, config.stage)
        resolved = config.model_dump(mode="json") | {"stage": config.stage}
        _prepare(run, resolved, resume=resume, overwrite=config.run.overwrite)
        run.update(
            status="running",
            command=command or sys.argv,
            pid=os.getpid(),
            device=describe_device(),
            versions=versions(),
            git=git_state(),
            python=platform.python_version(),
            error=None,
        )
        try:
            yield run
        except (KeyboardInterrupt, Interrupted) as error:
            _end(run, status="interrupted", error=str(error) or "interrupted")
            raise
        except BaseException as error:
            _end(run, status="failed", error=f"{type(error).__name__}: {error}")
            raise
        else:
            run.update(status=run.ending, finished=now())


def _end(run: Run, **values: Any) -> None:
    """Write how a run ended; a full disk must not hide why."""
    with suppress(OSError):
        run.update(finished=now(), **values)


def _refuse_foreign(path: Path) -> None:
    """run.overwrite must never delete what is no run, nor the lock appear in a user's folder."""
    foreign = sorted({item.name for item in path.iterdir()} - BEFORE_TRAINING)
    if foreign and not (path / "run.json").is_file():
        raise RunError(
            f"{path} holds {', '.join(foreign[:4])} and no run. Fix: set run.dir to a new or empty "
            "folder."
        )


def _prepare(run: Run, resolved: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    existing = run.path / "run.json"
    if existing.is_file():
        run.record = _read_record(existing)
        if resume:
            check_same(run.path, resolved)
            run.update(resumed=[*run.record.get("resumed", []), now()])
            return
        # A run that failed before it trained (a misspelt path) holds nothing to protect.
        began = {item.name for item in run.path.iterdir()} - BEFORE_TRAINING
        if began and not overwrite:
            raise RunError(
                f"{run.path} already holds a {run.record.get('stage')} run "
                f"({run.record.get('status')}). Fix: add --resume to continue it, choose another "
                "run.dir, or set run.overwrite=true to start over."
            )
        clear(run.path)
    run.record = {
        "schema": 1,
        "stage": run.stage,
        "started": now(),
        "seed": resolved["run"]["seed"],
    }
    run.record |= {"parents": [], "warnings": [], "results": {}, "name": run.path.name}
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
    (run.path / "config.yaml").write_text(text, encoding="utf-8")


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{file} is damaged ({error}). Fix: restore it from a backup, or move the folder away "
            "and start a new run."
        ) from None
    if not isinstance(record, dict):
        raise RunError(f"{file} is damaged: it holds no JSON object. Fix: move the folder away.")
    return record


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold run.lock."""
    with open(path / "run.lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise RunError(
                f"{path} is in use by process {holder}. Fix: wait for it to end, stop it, or "
                "choose another run.dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def clear(path: Path) -> None:
    """Empty a run directory, its lock apart."""
    for item in path.iterdir():
        if item.name == "run.lock":
            continue
        shutil.rmtree(item) if item.is_dir() else item.unlink()


def find_run(path: str | Path) -> str | None:
    """The run directory that a path lies in, if any."""
    place = Path(path)
    for folder in (place, *place.parents):
        if (folder / "run.json").is_file():
            return str(folder)
    return None


def fingerprint(path: str | Path) -> str:
    """SHA-256 (16 hex digits) of a file, or of a model directory: weights, config, tokenizer."""
    place = Path(path)
    digest = hashlib.sha256()
    if place.is_dir():
        kinds = ("*.safetensors", "*.json", "*.model", "*.jinja")
        files = sorted({f for kind in kinds for f in place.glob(kind)})
    else:
        files = [place] if place.is_file() else []
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16] if files else "none"


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; NaN and infinity become null."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def append_jsonl(path: Path, value: Any) -> None:
    """Append one JSON line; NaN and infinity become null."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(_finite(value), ensure_ascii=False, default=str) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; a missing file is empty, a torn last line is dropped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
