"""Runs of `align sft` and `align reward` on small models, as the experiments need them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config import RewardStage, SFTStage, StageConfig, load_config
from align.run import open_run
from align.stages import reward as reward_stage
from align.stages import sft as sft_stage
from align.stages.reward_repeats import done_already

PLAIN = [  # nothing held out, nothing kept but the model
    "data.validation_fraction=0",
    "trainer.per_device_train_batch_size=16",
    "trainer.warmup_steps=10",
    "trainer.save_strategy=no",
    "tracking.report_to=[none]",
]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def warm_up(
    base: Path, rows: Sequence[dict[str, Any]], folder: Path, seed: int, steps: int
) -> Path:
    """The base after some steps of `align sft` on prompts and completions."""
    data = write_rows(folder / "answers.jsonl", rows)
    overrides = [
        f"trainer.max_steps={steps}",
        "trainer.learning_rate=3e-3",
        "trainer.max_length=256",
    ]
    config = load_config(SFTStage, None, _given(base, data, folder / "sft", seed, overrides))
    with open_run(config, command=["benchmarks.small_runs"]) as run:
        sft_stage.run(config, run)
    return folder / "sft" / "model"


def reward_model(
    start: Path, data: str | Path, folder: Path, seed: int, overrides: Sequence[str]
) -> Path:
    """A reward model by `align reward`, with a normalisation of little cost."""
    cheap = ["normalisation.prompts=16", "normalisation.max_new_tokens=8"]
    given = _given(start, data, folder, seed, [*cheap, *overrides])
    config = load_config(RewardStage, None, given)
    with open_run(config, command=["benchmarks.small_runs"]) as run:
        reward_stage.run(config, run)
    return folder / "model"


def finish(config: StageConfig, stage: Any) -> None:
    """Run a stage, or go on with it, unless it is done."""
    place = Path(str(config.run.dir))
    if done_already(place, config):
        return
    resume = (place / "run.json").is_file()
    with open_run(config, resume=resume, command=["benchmarks.small_runs"]) as run:
        stage.run(config, run, resume=resume)


def _given(
    start: Path, data: str | Path, folder: Path, seed: int, overrides: Sequence[str]
) -> list[str]:
    """What every run is given, then its own."""
    own = [f"run.dir={folder}", f"run.seed={seed}", f"model.path={start}", f"data.train={data}"]
    return [*own, *PLAIN, *overrides]
