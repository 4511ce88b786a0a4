"""Reward models of a round, trained as `align reward` trains them, and what they believe.

A fit lives in a folder and is done once: the rows it was trained on are written first and read
again by a process that goes on, so that labels which came in between change nothing half-way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from align.active.belief import Belief
from align.config.stages import RewardStage
from align.run import open_run, read_jsonl
from align.stages import reward as reward_stage
from align.stages.reward_repeats import done_already
from feedback.schema import Text
from reward.laplace import LastLayerLaplace
from reward.model import RewardModel
from reward.posterior_reward import STATE
from reward.score import head_parameters

Row = dict[str, Any]


class Learner(Protocol):
    """Trains in a folder, and says what it believes of answers."""

    def fit(self, rows: Sequence[Row], folder: Path, seed: int, warm: Path | None) -> None:
        """Train on preference rows, unless that is done; `warm` is an earlier fit's folder."""

    def believe(self, folder: Path, prompts: Sequence[Text], answers: Sequence[str]) -> Belief:
        """What the fit in a folder believes of R answers."""

    def forget(self, folder: Path) -> None:
        """Let go of what only a warm start or `believe` reads."""


@dataclass(frozen=True)
class RewardLearner:
    """One reward model with Laplace's posterior, one with several heads, or several members."""

    settings: Mapping[str, Any]  # model, trainer, peft, normalisation, tracking of `align reward`
    kind: str = "laplace"  # "laplace", "members" or "heads"
    count: int = 4  # members or heads
    draws: int = 16  # of Laplace
    precision: float | None = None

    def fit(self, rows: Sequence[Row], folder: Path, seed: int, warm: Path | None) -> None:
        """Train on preference rows, unless that is done.

        Raises:
            AlignError: of a training.
        """
        data = folder / "train.jsonl"
        if not data.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            temporary = data.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            temporary.replace(data)
        for member, place in enumerate(self._places(folder)):
            start = None if warm is None else self._places(warm)[member] / "model"
            config = self._config(place, data, seed + member, start)
            if done_already(place, config):
                continue
            # A killed training goes on from its checkpoint, if it has come to one.
            resume = (place / "run.json").is_file()
            with open_run(config, resume=resume, command=["align", "active"]) as run:
                reward_stage.run(config, run, resume=resume)
            shutil.rmtree(place / "checkpoints", ignore_errors=True)

    def believe(self, folder: Path, prompts: Sequence[Text], answers: Sequence[str]) -> Belief:
        """Scores of R answers by every function, and the first model's states.

        Raises:
            ModelError: an answer is longer than the model's context.
        """
        scores, states = [], []
        posterior: LastLayerLaplace | None = None
        with torch.inference_mode():
            for place in self._places(folder):
                model = RewardModel.load(place / "model", normalise=False)
                features = model.features(prompts, _as_given(prompts, answers)).double()
                weight, bias = head_parameters(model.model)
                states.append(features.numpy())
                scores.append((features @ weight.T + bias).T)
                if self.kind == "laplace":
                    posterior = self._posterior(model, folder)
                    scores = [posterior.sample(features, self.draws, seed=0)]
        middle = None if posterior is None else posterior.mean(torch.from_numpy(states[0])).numpy()
        prior = 1.0 if posterior is None else posterior.precision[0]
        return Belief(torch.cat(scores).numpy().astype(np.float64), states[0], middle, prior)

    def models(self, folder: Path) -> list[Path]:
        """The reward models of a fit."""
        return [place / "model" for place in self._places(folder)]

    def save_posterior(self, folder: Path, target: Path) -> None:
        """Beside a copy of the fit's only model, save its Laplace posterior, as PPO reads it."""
        if self.kind == "laplace":
            model = RewardModel.load(target, normalise=False)
            with torch.inference_mode():
                (target / STATE).mkdir(exist_ok=True)
                self._posterior(model, folder).save(target / STATE)

    def forget(self, folder: Path) -> None:
        """Delete the weights of a fit; rows, metrics and results stay."""
        for model in self.models(folder):
            shutil.rmtree(model, ignore_errors=True)

    def _places(self, folder: Path) -> list[Path]:
        if self.kind == "members":
            return [folder / f"member-{number}" for number in range(self.count)]
        return [folder / "reward"]

    def _posterior(self, model: RewardModel, folder: Path) -> LastLayerLaplace:
        rows = read_jsonl(folder / "train.jsonl")
        prompts = [row["prompt"] for row in rows]
        sides = [model.features(prompts, [row[k] for row in rows]) for k in ("chosen", "rejected")]
        return LastLayerLaplace.fit(*head_parameters(model.model), *sides, precision=self.precision)

    def _config(self, place: Path, data: Path, seed: int, start: Path | None) -> RewardStage:
        given = dict(self.settings)
        if start is not None:
            given["model"] = given["model"] | {"path": str(start)}
        return RewardStage.model_validate(
            given
            | {
                "run": {"dir": str(place), "seed": seed},
                # The loop keeps its own holdout, and has told equal pairs apart.
                "data": {"train": str(data), "validation_fraction": 0.0, "deduplicate": "none"},
                "objective": {"heads": self.count if self.kind == "heads" else 1},
            }
        )


def _as_given(prompts: Sequence[Text], answers: Sequence[str]) -> list[Text]:
    """Answers in the form of their prompts: text beside text, else an assistant's message."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, answers, strict=True)
    ]
