"""Run directories as the stages write them, made up so that every case can be tried."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from align.config.stages import STAGES
from align.data.card import DataCard, SourceCard
from align.data.lengths import Lengths, TokenStatistics
from align.data.rows import Kind
from align.report import build_report
from align.run import append_jsonl, write_json

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
MINUTES = {"sft": 1.2, "reward": 0.6, "dpo": 0.9, "ppo": 2.6, "evaluate": 0.5}


def beside(name: str) -> ModuleType:
    """A module of this folder: tests are no package that it could be imported from."""
    file = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"report_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_evaluation = beside("made_evaluation").make_evaluation
Page = beside("made_page").Page

MakeRun = Callable[..., Path]
MakePipeline = Callable[..., dict[str, Path]]


@pytest.fixture
def pipeline(tmp_path: Path) -> MakePipeline:
    """`pipeline(seed=1)` writes SFT, reward, DPO, PPO and evaluation below tmp_path/runs."""

    def make(seed: int = 1, folder: str = "", **options: Any) -> dict[str, Path]:
        return make_pipeline(tmp_path / "runs" / (folder or f"seed{seed}"), seed, **options)

    return make


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Any]:
    """`page(*runs)` builds the report and reads it."""

    def make(*paths: Path, **options: object) -> Any:
        return Page(build_report(list(paths), tmp_path / "out" / "report.html", **options))

    return make


@pytest.fixture
def edit() -> Callable[..., None]:
    """`edit(file, key=value)` changes keys of a JSON file."""
    return edit_json


@pytest.fixture
def read() -> Callable[[Path], dict[str, Any]]:
    """`read(file)` is what a JSON file holds."""
    return read_json


def make_pipeline(
    root: Path, seed: int, *, steps: int = 120, prompts: int = 200
) -> dict[str, Path]:
    """One seed of the whole pipeline; returns each stage's directory."""
    base, store = str(root / "base"), str(root / "comparisons.db")
    paths = {stage: root / stage for stage in ("sft", "reward", "dpo", "ppo", "evaluate")}
    models = {name: str(paths[name] / "model") for name in ("sft", "dpo", "ppo")}
    parents: dict[str, list[tuple[str, str]]] = {
        "sft": [("model", base), ("data", str(root / "answers.jsonl"))],
        "reward": [("model", models["sft"]), ("data", store)],
        "dpo": [("model", models["sft"]), ("data", store)],
        "ppo": [("model", models["sft"]), ("reward", str(paths["reward"] / "model"))],
        "evaluate": [("model", path) for path in models.values()]
        + [("reward", str(paths["reward"] / "model"))],
    }
    start = START + timedelta(hours=seed)
    for stage, path in paths.items():
        config = _config(stage, base, store, models, paths)
        start = make_run(path, stage, seed, start, config, parents[stage], steps=steps)
    write_json(paths["evaluate"] / "evaluation.json", make_evaluation(models, seed, prompts))
    return paths


def make_run(
    path: Path,
    stage: str,
    seed: int,
    start: datetime,
    config: dict[str, Any],
    parents: list[tuple[str, str]],
    steps: int = 120,
) -> datetime:
    """One run directory as `align.run.open_run` leaves it; returns when the run ended."""
    path.mkdir(parents=True)
    (path / "model").mkdir()
    seconds = 60 * MINUTES[stage] * (0.9 + 0.05 * seed)
    end = start + timedelta(seconds=seconds)
    resolved = STAGES[stage].model_validate(config | {"run": {"dir": str(path), "seed": seed}})
    text = yaml.safe_dump(resolved.model_dump(mode="json") | {"stage": stage}, sort_keys=False)
    (path / "config.yaml").write_text(text)
    folders = {role_path: Path(role_path).parent for _, role_path in parents}
    write_json(
        path / "run.json",
        {
            "schema": 1,
            "stage": stage,
            "name": path.name,
            "status": "completed",
            "started": start.isoformat(timespec="seconds"),
            "finished": end.isoformat(timespec="seconds"),
            "seed": seed,
            "parents": [
                {
                    "role": role,
                    "path": where,
                    "run": str(folders[where]) if (folders[where] / "run.json").is_file() else None,
                    "fingerprint": f"{random.Random(where).getrandbits(64):016x}",
                }
                for role, where in parents
            ],
            "warnings": [],
            "results": {"train_runtime": seconds} if stage != "evaluate" else {},
            "command": ["align", stage, f"configs/quickstart/{stage}.yaml", f"run.seed={seed}"],
            "pid": 4242,
            "device": "CPU (x86_64, 2 threads)",
            "versions": {"align": "0.1.0", "torch": "2.13.0", "transformers": "5.19.0"},
            "git": {"commit": "9ddf7aa3c1b24a9bb0c9d2f7d2f6fb7b1a0c55e1", "dirty": False},
            "python": "3.11.9",
            "error": None,
        },
    )
    if stage != "evaluate":
        write_metrics(path, stage, seed, steps, start, seconds)
        write_json(path / "data_card.json", make_card(stage))
    return end


def write_metrics(
    path: Path, stage: str, seed: int, steps: int, start: datetime, seconds: float
) -> None:
    """metrics.jsonl in the names that transformers, TRL and our PPO log."""
    rng = random.Random(f"{stage}{seed}")
    for step in range(1, steps + 1):
        done = step / steps
        time = start.timestamp() + seconds * done
        line = {"step": step, "time": round(time, 3)} | STAGE_METRICS[stage](done, rng)
        line |= {
            "grad_norm": 1.2 + rng.gauss(0, 0.25) ** 2 + (6.5 if step == steps // 3 else 0),
            "learning_rate": 3e-4 * min(1, done / 0.1) * (0.5 + 0.5 * math.cos(math.pi * done)),
            "epoch": 2 * done,
            "speed/tokens_per_second": 1900 + rng.gauss(0, 60),
        }
        append_jsonl(path / "metrics.jsonl", line)
        if step % (steps // 6) == 0 and stage != "ppo":
            held_out = {
                f"eval_{key}": value * 1.04 for key, value in line.items() if key in HELD_OUT
            }
            append_jsonl(path / "metrics.jsonl", {"step": step, "time": time, **held_out})
    totals = {"train_runtime": seconds, "train_loss": 1.4, "train_samples_per_second": 22.1}
    append_jsonl(path / "metrics.jsonl", {"step": steps, "time": time} | totals)


HELD_OUT = {
    "loss",
    "mean_token_accuracy",
    "accuracy",
    "margin",
    "rewards/margins",
    "rewards/accuracies",
}


def _sft(done: float, rng: random.Random) -> dict[str, float]:
    loss = 0.55 + 2.9 * math.exp(-5 * done) + rng.gauss(0, 0.05)
    return {"loss": loss, "entropy": loss * 0.9, "mean_token_accuracy": 1 - 0.26 * loss}


def _reward(done: float, rng: random.Random) -> dict[str, float]:
    margin = 1.9 * (1 - math.exp(-4 * done)) + rng.gauss(0, 0.12)
    return {
        "loss": 0.69 - 0.26 * (1 - math.exp(-4 * done)) + rng.gauss(0, 0.03),
        "accuracy": min(1.0, 0.5 + 0.29 * (1 - math.exp(-5 * done)) + rng.gauss(0, 0.04)),
        "margin": margin,
        "min_reward": -2.1 - margin / 2,
        "mean_reward": rng.gauss(0, 0.1),
        "max_reward": 2.0 + margin / 2,
    }


def _dpo(done: float, rng: random.Random) -> dict[str, float]:
    margin = 1.4 * (1 - math.exp(-3 * done)) + rng.gauss(0, 0.09)
    return {
        "loss": 0.693 - 0.25 * (1 - math.exp(-3 * done)) + rng.gauss(0, 0.02),
        "rewards/chosen": 0.2 * margin,
        "rewards/rejected": -0.8 * margin,
        "rewards/margins": margin,
        "rewards/accuracies": min(1.0, 0.5 + 0.3 * (1 - math.exp(-6 * done)) + rng.gauss(0, 0.05)),
        "logps/chosen": -31 - 2 * done + rng.gauss(0, 0.8),
        "logps/rejected": -35 - 9 * done + rng.gauss(0, 0.8),
    }


def _ppo(done: float, rng: random.Random) -> dict[str, float]:
    kl = 4.2 * done**1.4 + abs(rng.gauss(0, 0.12))
    mean = 1.75 * (1 - math.exp(-3.2 * done)) + rng.gauss(0, 0.09)
    return {
        "reward/mean": mean,
        "reward/std": 0.95 - 0.3 * done + rng.gauss(0, 0.03),
        "reward/kl_shaped": mean - 0.05 * kl,
        "kl/reference": kl,
        "kl/k3": kl * 1.03 + abs(rng.gauss(0, 0.05)),
        "policy/loss": rng.gauss(-0.01, 0.01),
        "policy/entropy": 1.45 - 0.6 * done + rng.gauss(0, 0.03),
        "policy/clip_fraction": abs(rng.gauss(0.06, 0.02)),
        "policy/ratio_max": 1.3 + abs(rng.gauss(0, 0.3)),
        "value/loss": 0.4 * math.exp(-3 * done) + abs(rng.gauss(0.08, 0.02)),
        "value/explained_variance": 0.72 * (1 - math.exp(-4 * done)) + rng.gauss(0, 0.04),
        "rollout/eos_rate": min(1.0, 0.93 + 0.07 * done + rng.gauss(0, 0.01)),
        "rollout/length_mean": 34 + 5 * done + rng.gauss(0, 0.9),
    }


STAGE_METRICS: dict[str, Callable[[float, random.Random], dict[str, float]]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "ppo": _ppo,
}


def make_card(stage: str) -> dict[str, Any]:
    """A data card as `align.data` writes it."""
    kind: Kind = "preference" if stage in ("reward", "dpo") else "sft"
    card = DataCard(kind=kind, layout="conversation")
    card.sources = [
        SourceCard(
            path="runs/quickstart/comparisons.db" if kind == "preference" else "answers.jsonl",
            role="train",
            format="store" if kind == "preference" else "prompt-completion",
            sha256="9f2b77c01e5d3a44",
            read=2000,
            bad=3,
            exact_duplicates=71,
            used=1926,
            share=1.0,
        )
    ]
    card.splits, card.prompts = {"train": 1830, "validation": 96}, {"train": 915, "validation": 48}
    card.reasons, card.ties = {"chosen equals rejected": 3}, 29 if kind == "preference" else 0
    lengths = Lengths(mean=24.1, p50=23, p95=41, max=67)
    for split, rows in card.splits.items():
        statistics = TokenStatistics(rows, rows, 0, 128, rows * 51, lengths, lengths, lengths, 0)
        card.add_tokens(split, statistics)
    card.warn("3 of 2000 rows were quarantined.")
    return card.as_dict()


def _config(
    stage: str, base: str, store: str, models: dict[str, str], paths: dict[str, Path]
) -> dict[str, Any]:
    """What the configuration file and its overrides said."""
    start = {"path": base if stage == "sft" else models["sft"]}
    data = {"train": f"sqlite:///{store}" if stage in ("reward", "dpo") else f"{base}.jsonl"}
    if stage == "evaluate":
        judge = {"function": "align.quickstart.gold:score"}
        return {"evaluate": {"models": models, "prompts": 200}, "data": data, "judge": judge}
    config: dict[str, Any] = {"model": start, "data": data}
    config["trainer"] = {"learning_rate": 3e-4, "per_device_train_batch_size": 16}
    if stage == "ppo":
        config["reward"] = [{"path": str(paths["reward"] / "model")}]
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    write_json(path, read_json(path) | changes)
