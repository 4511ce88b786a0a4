"""Reward models trained several times: k folds to measure settings, or the members of an ensemble.

With folds every comparison is judged once by a model that was not trained on its prompt, so the
whole set measures what a single held-out part would leave to chance. The model to use is none of
the folds': train it on everything, once the settings are chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.config.stages import StageConfig
from align.errors import ConfigError, Problem, RunError
from align.evaluate.significance import seeds_interval, wilson_interval
from align.processes import first_process
from align.run import write_json
from align.same import check_same

FIGURES = ("accuracy", "log_loss", "ece", "soft_log_loss", "kendall_tau", "spearman", "mae")
SHARES = ("accuracy", "ece")
Train = Callable[[list[str]], Path]  # overrides to the run's directory


def run_folds(
    folder: Path, folds: int, repeats: int, seed: int, split_seed: int, train: Train
) -> dict[str, Any]:
    """Train `folds` times `repeats` models and write `folds.json`.

    Args:
        folder: each run has its own directory inside.
        folds: k, 2 or more.
        repeats: whole cross-validations; each has other folds and other seeds.
        seed: `run.seed` of the first.
        split_seed: `data.split_seed` of the first.
        train: trains with further overrides, unless that is done, and returns the run's directory.

    Returns:
        Mean, interval and values of each figure. The interval is Student's over all runs, of a
        share cut at 0 and 1; folds share most of their training data, so it is too narrow (Bengio
        and Grandvalet 2004, JMLR 5).

    Raises:
        ConfigError: fewer than two folds, or no repeat.
        AlignError: of a training.
    """
    if folds < 2 or repeats < 1:
        what = f"{folds} folds and {repeats} repeats; expected 2 or more, and 1 or more."
        raise ConfigError([Problem("--folds", what)])
    runs = []
    for repeat in range(repeats):
        for fold in range(folds):
            place = folder / f"repeat-{repeat}" / f"fold-{fold}"
            given = [
                f"run.dir={place}",
                f"run.seed={seed + repeat}",
                f"data.fold={fold}/{folds}",
                f"data.split_seed={split_seed + repeat}",
            ]
            train(given)
            if first_process():  # which alone has the results
                runs.append(results_of(place))
    if not first_process():
        return {}
    summary = summarise([run.get("validation", {}) for run in runs], repeats)
    found = {"folds": folds, "repeats": repeats, "summary": summary}
    write_json(folder / "folds.json", found)
    return found


def run_members(folder: Path, members: int, seed: int, train: Train) -> list[Path]:
    """Train one reward model for each seed on the same data, and write `ensemble.json`.

    Members that are finished alike are read. Each has its own head, order of rows and whatever else
    `run.seed` decides; the split of the data is common.

    Args:
        folder: each member has its own directory inside.
        members: how many, 2 or more.
        seed: `run.seed` of the first.
        train: trains with further overrides, unless that is done, and returns the run's directory.

    Returns:
        The members' models: what `reward: [{ensemble: [...]}]` names.

    Raises:
        ConfigError: fewer than two members.
        AlignError: of a training.
    """
    if members < 2:
        what = f"{members}; disagreement needs at least 2."
        raise ConfigError([Problem("--members", what)])
    models, found = [], []
    for member in range(members):
        place = folder / f"member-{member}"
        train([f"run.dir={place}", f"run.seed={seed + member}"])
        models.append(place / "model")
        if first_process():
            found.append(results_of(place).get("validation", {}))
    if not first_process():
        return models
    names = [str(model) for model in models]
    write_json(folder / "ensemble.json", {"ensemble": names, "summary": summarise(found, members)})
    return models


def done_already(place: Path, config: StageConfig) -> bool:
    """Whether a directory holds a whole run of this configuration, which is then read.

    Raises:
        RunError: it holds a whole run of another configuration, and is not to be overwritten.
    """
    file = place / "run.json"
    if config.run.overwrite or not file.is_file():
        return False
    if json.loads(file.read_text(encoding="utf-8")).get("status") != "completed":
        return False
    try:
        check_same(place, config.model_dump(mode="json") | {"stage": config.stage})
    except RunError as error:
        raise RunError(
            f"{place} holds a finished run of another configuration, and is not believed "
            f"({str(error).removeprefix('--resume: ')}). Fix: set another run.dir, or "
            "run.overwrite=true."
        ) from None
    return True


def results_of(place: Path) -> dict[str, Any]:
    """What a finished run found."""
    record: dict[str, Any] = json.loads((place / "run.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = record["results"]
    return found


def summarise(parts: Sequence[dict[str, Any]], times: int = 1) -> dict[str, Any]:
    """Mean and interval of every figure that all runs have.

    Where all runs have the same figure, Student's interval has no width, which is no certainty: an
    accuracy then has Wilson's over the pairs, any other figure none.

    Args:
        parts: the runs' held-out figures.
        times: how often each pair was judged.
    """
    found: dict[str, Any] = {"n": sum(part.get("n", 0) for part in parts)}
    for name in FIGURES:
        values = [part[name] for part in parts if part.get(name) is not None]
        if len(values) == len(parts):
            interval: dict[str, Any] = seeds_interval(values, share=name in SHARES).as_dict()
            if interval["low"] == interval["high"]:
                interval |= {"low": None, "high": None}
                if name == "accuracy" and found["n"]:
                    whole = wilson_interval(values[0] * found["n"] / times, found["n"] / times)
                    interval |= {"low": whole.low, "high": whole.high}
            found[name] = interval | {"values": values}
    return found


def in_words(found: dict[str, Any]) -> list[str]:
    """The summary, a line for each figure."""
    summary = found["summary"]
    lines = [f"{found['folds']} folds, {found['repeats']} repeat(s), {summary['n']} judged"]
    for name, value in summary.items():
        if isinstance(value, dict):
            interval = "(no interval: all alike)"
            if value["low"] is not None:
                interval = f"[{value['low']:.3f}, {value['high']:.3f}]"
            lines.append(f"{name.replace('_', ' ')} {value['value']:.3f} {interval}")
    return lines
