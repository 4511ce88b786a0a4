"""Evaluation: `align evaluate`. Several models, the same held-out prompts, a judge, intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.config.sections import (
    DataSection,
    EvaluateSection,
    JudgeSection,
    RetentionSection,
    RolloutSection,
)
from align.config.stages import EvaluateStage
from align.data import load_splits
from align.engine.models import load_policy
from align.errors import ConfigError, Problem
from align.evaluate.evaluate import Evaluation, evaluate_models
from align.evaluate.judge import as_judge
from align.evaluate.policy import policy_metrics
from align.evaluate.retention import Losses, forgotten, retention_losses
from align.evaluate.reward_model import RewardModelReport, evaluate_reward_model
from align.rollout.transformers import TransformersSampler
from align.run import Run, fingerprint
from align.stages.common import console
from align.stages.order_checks import refuse_order
from align.stages.preflight import gather, hub_fault, is_classifier, is_local, model_fault
from align.stages.sft import read_either
from align.types import Rollout, Sampler
from reward.functions import load_reward_function, reward_name
from reward.process import load_reward


def run(config: EvaluateStage, run: Run, *, resume: bool = False, dry_run: bool = False) -> None:
    """Compare models on held-out prompts; a crashed evaluation resumes from its cache.

    Raises:
        AlignError: bad input of any kind, before a model loads wherever that is possible.
    """
    settings = config.evaluate
    gather(
        lambda: check_models(settings, config.judge),
        lambda: check_sampler(config.rollout),
        lambda: refuse_order(config.data, "evaluate"),
    )
    splits = load_splits(config.data, "prompts", quarantine=run.path / "quarantine.jsonl")
    rows = splits.test or splits.validation or splits.train
    rows = rows.select(range(min(settings.prompts, len(rows))))
    known = None if settings.retention is None else read_retention(settings.retention, run)
    judge, judge_name, judge_identity = open_judge(config.judge)
    if dry_run:
        console.print(f"dry run of evaluate: {len(rows)} prompts, {len(settings.models)} models.")
        run.finish(dry_run=True)
        return
    for name, path in settings.models.items():
        run.add_parent("model", path, fingerprint=fingerprint(path), name=name)
    baseline = next(iter(settings.models))
    models = LazyModels(settings.models, config.rollout, known)
    reference = reference_of(settings)
    measured = config.rollout.top_p == 1 and config.rollout.top_k == 0
    with Progress(console=console, disable=not console.is_terminal) as progress:
        evaluation = evaluate_models(
            models,
            list(rows["prompt"]),
            as_judge(judge, judge_name, identity=judge_identity),
            {k: list(rows[k]) for k in rows.column_names if k != "prompt"},
            baseline=baseline,
            paths=settings.models,
            identities={
                name: fingerprint(path) + json.dumps(config.rollout.model_dump(), sort_keys=True)
                for name, path in settings.models.items()
            },
            measures={
                name: models.measure(name, reference if measured else None, settings.samples)
                for name in settings.models
            },
            reward_model=measure_reward_model(settings.reward_model, settings.preferences),
            samples=settings.samples,
            seed=config.run.seed,
            batch_size=config.rollout.batch_size,
            run_dir=run.path,
            progress=_progress(progress),
        )
    if settings.retention is not None:
        before = settings.retention.before or baseline
        evaluation = add_forgotten(evaluation, models.losses, before)
    finish(evaluation, run)


def reference_of(settings: EvaluateSection) -> str:
    """Where the model is that the KL is measured to: a model's name goes before a path."""
    wanted = settings.reference or next(iter(settings.models))
    return settings.models.get(wanted, wanted)


def read_retention(section: RetentionSection, run: Run) -> list[dict[str, Any]]:
    """The rows that models should still know, spread evenly over the data.

    Raises:
        DataError: the data is not there, or no row can be read.
    """
    rows = read_either(section.data, section.columns)
    run.add_parent("data", section.data, fingerprint=fingerprint(section.data), name="retention")
    count = min(section.rows, len(rows))
    return list(rows.select([place * len(rows) // count for place in range(count)]))


def add_forgotten(evaluation: Evaluation, losses: Mapping[str, Losses], before: str) -> Evaluation:
    """The evaluation with what each model forgot since the one before training."""
    figures = {name: dict(found) for name, found in evaluation.models.items()}
    warnings = list(evaluation.warnings)
    for name, found in losses.items():
        if name == before:
            continue
        growth = forgotten(losses[before], found, evaluation.level, evaluation.seed)
        figures[name] |= growth or {}
        if growth is None:
            warnings.append(
                f"{name} and {before} cut the retention rows into different tokens: what {name} "
                "forgot cannot be said."
            )
    return replace(evaluation, models=figures, warnings=warnings, before=before)


def check_sampler(rollout: RolloutSection) -> None:
    """Every answer is drawn by the transformers sampler, in one turn.

    Raises:
        ConfigError: another engine, or an environment, which nothing here would use.
    """
    problems = []
    if rollout.engine != "transformers" or rollout.vllm.model_fields_set:
        what = "evaluation draws with transformers, whatever the training drew with."
        problems.append(Problem("rollout.engine", what, "remove it, and rollout.vllm."))
    if rollout.environment is not None:
        what = (
            "evaluation asks for one answer and plays no episodes, so it would judge another task."
        )
        fix = "remove it, or play `align.rollout.episodes.EnvironmentSampler` from Python."
        problems.append(Problem("rollout.environment", what, fix))
    if problems:
        raise ConfigError(problems)


def finish(evaluation: Evaluation, run: Run) -> None:
    """Save, print and record an evaluation."""
    evaluation.save(run.path)
    console.print(evaluation.render())
    for warning in evaluation.warnings:
        run.warn(warning)
    run.finish(**{k: v for k, v in evaluation.as_dict().items() if k in ("models", "win_rates")})


class LazyModels(Mapping[str, Sampler]):
    """Samplers loaded when they are looked up; only the last one stays in memory."""

    def __init__(
        self,
        paths: Mapping[str, str],
        rollout: RolloutSection,
        known: Sequence[Mapping[str, Any]] | None = None,
    ):
        self.paths, self.rollout, self.known = dict(paths), rollout, known
        self.losses: dict[str, Losses] = {}  # on `known`, of every model measured
        self.loaded: tuple[str, PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self.reference: tuple[str, PreTrainedModel] | None = None

    def __getitem__(self, name: str) -> Sampler:
        model, tokenizer = self.open(name)
        return TransformersSampler(
            model,
            tokenizer,
            max_new_tokens=self.rollout.max_new_tokens,
            min_new_tokens=self.rollout.min_new_tokens,
            temperature=self.rollout.temperature,
            top_p=self.rollout.top_p,
            top_k=self.rollout.top_k,
            batch_size=self.rollout.batch_size,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a model, letting the one before go."""
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None
            model, _, tokenizer = load_policy(self.paths[name], with_reference=False)
            self.loaded = (name, model, tokenizer)
        return self.loaded[1], self.loaded[2]

    def measure(
        self, name: str, reference: str | None, samples: int
    ) -> Callable[[Rollout], dict[str, float]]:
        """KL to the reference and entropy on a model's own samples; its loss on what is known."""

        def metrics(rollout: Rollout) -> dict[str, float]:
            model, tokenizer = self.open(name)
            found: dict[str, float] = {}
            if reference is not None:
                if self.reference is None:
                    self.reference = (reference, load_policy(reference, with_reference=False)[0])
                found |= policy_metrics(model, self.reference[1], rollout, group_size=samples)
            if self.known is not None:
                self.losses[name] = retention_losses(model, tokenizer, self.known)
                found |= self.losses[name].metrics()
            return found

        return metrics


def check_models(settings: EvaluateSection, judge: JudgeSection) -> None:
    """At least one model, all of them there, exactly one judge, and no half a measurement.

    Raises:
        ConfigError: with every problem found.
    """
    problems = []
    models = settings.models
    if not models:
        problems.append(Problem("evaluate.models", "is empty.", "add `name: directory` lines."))
    named = {f"evaluate.models.{name}": path for name, path in models.items()}
    others = {
        "evaluate.reference": None if settings.reference in models else settings.reference,
        "evaluate.reward_model": settings.reward_model,
        "judge.path": judge.path,
    }
    named |= {where: path for where, path in others.items() if path is not None}
    for where, path in named.items():
        fault = model_fault(path) or hub_fault(path)
        writes = where not in ("evaluate.reward_model", "judge.path")
        if fault is None and writes and is_classifier(path):
            fault = "is a reward model and cannot write answers.", "name a policy."
        if fault and where == "evaluate.reference":
            fix = f"name one of evaluate.models ({', '.join(models)}), or a policy's directory."
            fault = fault[0], fix
        if fault:
            problems.append(Problem(where, f"{path} {fault[0]}", fault[1]))
    if (judge.path is None) == (judge.function is None):
        what = "names both `path` and `function`." if judge.path else "names nothing."
        fix = "set exactly one of `path` (a reward model) and `function` (module:function)."
        problems.append(Problem("judge", what, fix))
    if (settings.reward_model is None) != (settings.preferences is None):
        what = "reward_model and preferences belong together: the one is measured on the other."
        problems.append(Problem("evaluate", what, "set both, or neither."))
    kept = settings.retention
    if kept and kept.before is not None and kept.before not in models:
        what = f"there is no model {kept.before!r}."
        fix = f"name one of {', '.join(models) or 'evaluate.models'}."
        problems.append(Problem("evaluate.retention.before", what, fix))
    if kept and is_local(kept.data) and not Path(kept.data).exists():
        problems.append(Problem("evaluate.retention.data", f"{kept.data} does not exist."))
    preferences = settings.preferences
    if preferences and is_local(preferences) and not Path(preferences).exists():
        problems.append(Problem("evaluate.preferences", f"{preferences} does not exist."))
    if problems:
        raise ConfigError(problems)


def open_judge(section: JudgeSection) -> tuple[Any, str, str]:
    """The judge, its name, and what identifies it in caches."""
    if section.function:
        function = load_reward_function(section.function)
        return function, reward_name(function), section.function
    model = load_reward(str(section.path), normalise=False)
    return model, model.__name__, fingerprint(str(section.path))


def measure_reward_model(path: str | None, preferences: str | None) -> RewardModelReport | None:
    """Accuracy and calibration of a reward model on held-out preferences, if both are named."""
    if path is None or preferences is None:
        return None
    model = load_reward(path, normalise=False)
    section = DataSection.model_validate({"train": preferences, "validation_fraction": 0.5})
    splits = load_splits(section, "preference")
    fit = list(splits.train) if splits.validation is not None else None
    held_out = splits.validation if splits.validation is not None else splits.train

    def score(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return model.score(prompts, completions)

    with torch.inference_mode():
        return evaluate_reward_model(list(held_out), score, fit_rows=fit)


def _progress(progress: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)

    return show
