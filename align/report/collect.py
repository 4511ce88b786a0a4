"""Read run directories into values, whatever state they are in.

Pure reading: nothing is judged or drawn here. A missing, torn or odd file becomes a sentence in
`RunData.problems`, never an exception; only input that is no run at all is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.errors import DataError, RunError
from align.report.values import Json, mapping, moment, number, rows, text

TRAINING = (
    "sft",
    "reward",
    "dpo",
    "ppo",
    "online_dpo",
    "kto",
    "grpo",
    "rloo",
    "selftrain",
    "distill",
)
_FOLDER_DEPTH = 3  # how deep a folder of runs is searched


@dataclass(frozen=True)
class Series:
    """One logged metric of one run."""

    key: str
    steps: list[float]  # N, ascending, each once
    values: list[float]  # N, finite
    holes: int = 0  # values logged as NaN or infinite


@dataclass
class RunData:
    """What one run directory holds."""

    path: Path
    record: Json = field(default_factory=dict)  # run.json
    config: Json = field(default_factory=dict)  # config.yaml
    config_text: str = ""
    series: dict[str, Series] = field(default_factory=dict)  # metrics.jsonl by metric
    last_logged: float | None = None  # seconds since the epoch
    data_card: Json = field(default_factory=dict)
    samples: list[Json] = field(default_factory=list)
    evaluation: Json = field(default_factory=dict)
    alarms: list[Json] = field(default_factory=list)  # alarms.jsonl
    active: Json = field(default_factory=dict)  # active.json
    selftrain: Json = field(default_factory=dict)  # selftrain.json
    continual: Json = field(default_factory=dict)  # continual.json
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def stage(self) -> str:
        """The stage, `unknown` where no file says it."""
        return text(self.record.get("stage") or self.config.get("stage")) or "unknown"

    @property
    def status(self) -> str:
        """`completed`, `waiting`, `failed`, `interrupted`, `running` or `unknown`."""
        return text(self.record.get("status")) or "unknown"

    @property
    def seed(self) -> int | None:
        """The seed, if recorded."""
        value = number(self.record.get("seed"))
        return None if value is None else int(value)

    @property
    def fold(self) -> str:
        """`1/5` of a cross-validation; empty where the run is none of its folds."""
        return text(mapping(self.config.get("data")).get("fold"))

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds from start to end, pauses before a resume included."""
        start, end = moment(self.record.get("started")), moment(self.record.get("finished"))
        return (end - start).total_seconds() if start and end else None

    @property
    def parents(self) -> list[Json]:
        """Lineage as recorded: role, path and run of each parent."""
        return rows(self.record.get("parents"))


def collect(paths: Sequence[str | Path]) -> list[RunData]:
    """Read the runs named, and the runs they descend from.

    A folder that is no run but holds runs stands for all of them.

    Args:
        paths: run directories, or folders of run directories.

    Returns:
        Each run once: those named first, in the order given, then their ancestors.

    Raises:
        DataError: no path was given.
        RunError: a path does not exist, is a file, or holds no run.
    """
    if not paths:
        raise DataError(
            "align report needs at least one run directory. Fix: name the folders that hold "
            "run.json, for example 'align report runs/sft runs/ppo runs/evaluate'."
        )
    found: dict[Path, RunData] = {}
    queue = [folder for path in paths for folder in _run_folders(Path(path))]
    while queue:
        folder = queue.pop(0)
        key = folder.resolve()
        if key in found:
            continue
        run = found[key] = read_run(folder)
        for parent in run.parents:
            if place := parent_folder(run, parent):
                queue.append(place)
    return list(found.values())


def parent_folder(run: RunData, parent: Json) -> Path | None:
    """Where a parent's run directory is now, also after the whole tree was moved; None if lost."""
    recorded = parent.get("run")
    if not isinstance(recorded, str) or not recorded:
        return None
    place = Path(recorded)
    if (place / "run.json").is_file():
        return place
    parts = [part for part in place.parts if part not in ("/", "..", ".")]
    for length in range(len(parts), 0, -1):
        for folder in run.path.resolve().parents:
            candidate = folder.joinpath(*parts[-length:])
            if (candidate / "run.json").is_file() and candidate != run.path.resolve():
                return candidate
    return None


def _run_folders(path: Path) -> list[Path]:
    if not path.exists():
        raise RunError(
            f"{path} does not exist. Fix: name run directories (folders that hold run.json)."
        )
    if path.is_file():
        if path.name != "run.json":
            raise RunError(f"{path} is a file, not a run directory. Fix: name its folder.")
        path = path.parent
    if (path / "run.json").is_file():
        return [path]
    for depth in range(1, _FOLDER_DEPTH + 1):
        inside = sorted(file.parent for file in path.glob("/".join(["*"] * depth) + "/run.json"))
        if inside:
            return inside
    raise RunError(
        f"{path} is no run directory: it holds no run.json, and neither do its folders. "
        "Fix: name a folder that an align command wrote, for example runs/sft-20260102-030405."
    )


def read_run(path: Path) -> RunData:
    """Read one run directory; what is missing or torn is noted in `problems`."""
    run = RunData(path=path)
    run.record = _read_json(path / "run.json", run.problems)
    _read_config(run)
    trains = run.stage in TRAINING
    if (path / "metrics.jsonl").is_file():
        logged = _read_lines(path / "metrics.jsonl", run.problems)
        run.series = to_series(logged)
        times = [time for row in logged if (time := number(row.get("time"))) is not None]
        run.last_logged = max(times, default=None)
        if not run.series:
            run.problems.append("metrics.jsonl holds no metric yet, so there are no curves.")
    elif trains:
        run.problems.append("metrics.jsonl is missing, so there are no curves.")
    if (path / "data_card.json").is_file():
        run.data_card = _read_json(path / "data_card.json", run.problems)
    elif trains:
        run.problems.append("data_card.json is missing, so the data are not described.")
    if (path / "samples.jsonl").is_file():
        run.samples = _read_lines(path / "samples.jsonl", run.problems)
    if (path / "alarms.jsonl").is_file():
        run.alarms = _read_lines(path / "alarms.jsonl", run.problems)
    if (path / "active.json").is_file():
        run.active = _read_json(path / "active.json", run.problems)
    if (path / "selftrain.json").is_file():
        run.selftrain = _read_json(path / "selftrain.json", run.problems)
    if (path / "continual.json").is_file():
        run.continual = _read_json(path / "continual.json", run.problems)
    if (path / "evaluation.json").is_file():
        run.evaluation = _read_json(path / "evaluation.json", run.problems)
    elif run.stage == "evaluate":
        run.problems.append("evaluation.json is missing, so there are no win rates.")
    return run


def to_series(logged: list[Json]) -> dict[str, Series]:
    """Logged rows as one series per metric.

    A step logged twice (a resumed run repeats the steps after its checkpoint) counts once, the
    later row winning. Rows without a step take the place of the row before them.
    """
    points: dict[str, dict[float, float | None]] = {}
    step = 0.0
    for row in logged:
        given = number(row.get("step"))
        step = given if given is not None else step
        for key, value in row.items():
            if key in ("step", "time", "epoch") or isinstance(value, bool):
                continue
            if value is None or isinstance(value, int | float):
                points.setdefault(key, {})[step] = number(value)
    series = {}
    for key, by_step in points.items():
        finite = sorted((at, value) for at, value in by_step.items() if value is not None)
        holes = len(by_step) - len(finite)
        series[key] = Series(key, [at for at, _ in finite], [v for _, v in finite], holes)
    return series


def _read_config(run: RunData) -> None:
    file = run.path / "config.yaml"
    try:
        run.config_text = file.read_text(encoding="utf-8", errors="replace")
        run.config = mapping(yaml.safe_load(run.config_text))
    except OSError:
        run.problems.append("config.yaml is missing, so the configuration is not shown.")
    except yaml.YAMLError:
        run.problems.append("config.yaml is not valid YAML; it is shown as it is.")


def _read_json(file: Path, problems: list[str]) -> Json:
    try:
        value = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read ({_reason(error)}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} holds a {type(value).__name__}, expected an object.")
        return {}
    return value


def _read_lines(file: Path, problems: list[str]) -> list[Json]:
    """The objects in a file of JSON lines; lines that are none are counted in `problems`."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        problems.append(f"{file.name} cannot be read ({_reason(error)}).")
        return []
    good: list[Json] = []
    bad: list[int] = []
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value = _parse(line)
        if isinstance(value, dict):
            good.append(value)
        else:
            bad.append(index)
    if bad:
        where = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        plural = "s" if len(bad) > 1 else ""
        problems.append(
            f"{file.name}: {len(bad)} line{plural} could not be read and "
            f"{'are' if plural else 'is'} left out (line{plural} {where})."
        )
    return good


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg}, line {error.lineno}"
    return str(getattr(error, "strerror", None) or error)
