"""Trainings of a round: `align sft`, `align dpo` and `align reward` in folders of their own.

A training is done once. One that was killed goes on from its checkpoint, if it has come to one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.config.stages import DPOStage, RewardStage, SFTStage, TrainingStage
from align.run import open_run
from align.stages import dpo as dpo_stage
from align.stages import reward as reward_stage
from align.stages import sft as sft_stage
from align.stages.reward_repeats import done_already
from feedback.schema import Text
from reward.model import RewardModel

Settings = Mapping[str, Any]  # model, trainer, peft, guards, tracking of a stage's configuration
STAGES: dict[str, tuple[type[TrainingStage], Any]] = {
    "sft": (SFTStage, sft_stage),
    "dpo": (DPOStage, dpo_stage),
    "reward": (RewardStage, reward_stage),
}


def train(config: TrainingStage, folder: Path) -> Path:
    """Run a stage unless that is done; returns its model's directory.

    Args:
        config: of the stage; `run.dir` is `folder`.
        folder: of the training.

    Raises:
        AlignError: of the training.
    """
    if not done_already(folder, config):
        resume = (folder / "run.json").is_file()
        with open_run(config, resume=resume, command=["align", "selftrain"]) as run:
            STAGES[config.stage][1].run(config, run, resume=resume)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder / "model"


@dataclass(frozen=True)
class PolicyLearner:
    """Trains a policy on rows that a round kept, and on what is to stand beside them."""

    stage: str  # "sft" or "dpo"
    settings: Settings
    beside: Sequence[Mapping[str, Any]] = ()  # sources of further rows

    def config(self, start: str, data: Path, folder: Path, seed: int) -> TrainingStage:
        """The configuration of a training.

        Args:
            start: the model that it begins with.
            data: the round's rows.
            folder: where it runs.
            seed: of the round.
        """
        given = dict(self.settings)
        given["model"] = given["model"] | {"path": start}
        sources = [{"path": str(data)}, *self.beside]
        # The loop holds its own questions out, and has told equal answers apart.
        rows = {"train": sources, "validation_fraction": 0.0, "deduplicate": "none"}
        more = {"run": {"dir": str(folder), "seed": seed}, "data": rows}
        return STAGES[self.stage][0].model_validate(given | more)

    def fit(self, start: str, data: Path, folder: Path, seed: int) -> Path:
        """Train, unless that is done; the model's directory."""
        return train(self.config(start, data, folder, seed), folder)


@dataclass(frozen=True)
class RewardEnsemble:
    """Reward models that differ in their seed: the head they begin with and the order of rows."""

    settings: Settings  # model, trainer, peft, normalisation, tracking
    count: int = 3
    seed: int = 0

    def config(self, data: Path, place: Path, member: int) -> RewardStage:
        """The configuration of one member, which has the same seed in every round."""
        given = dict(self.settings) | {
            "run": {"dir": str(place), "seed": self.seed + member},
            "data": {"train": str(data), "validation_fraction": 0.0, "deduplicate": "none"},
        }
        return RewardStage.model_validate(given)

    def fit(self, data: Path, folder: Path) -> list[Path]:
        """Train every member on the same rows, unless that is done; their directories."""
        models = []
        for member in range(self.count):
            place = folder / f"member-{member}"
            models.append(train(self.config(data, place, member), place))
        return models


def margins_of(
    models: Sequence[Path], prompts: Sequence[Text], first: Sequence[Text], second: Sequence[Text]
) -> np.ndarray:
    """r(first) - r(second) by each of K reward models, raw, (K, n).

    Raises:
        ModelError: a model cannot be loaded, or an answer is longer than its context.
    """
    found = []
    for path in models:
        model = RewardModel.load(path, normalise=False)
        both = model.score([*prompts, *prompts], [*first, *second])
        scores = np.asarray(both, dtype=np.float64)
        found.append(scores[: len(prompts)] - scores[len(prompts) :])
    return np.stack(found)
