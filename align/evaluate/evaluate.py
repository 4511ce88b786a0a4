"""The evaluation as a whole: sample from every model, measure, judge, and gather evaluation.json.

It loads nothing: samplers, judges and measurements arrive as values, so any model, judge or metric
that fits their signatures can take part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import DataError
from align.evaluate.generate import Completions, Progress, check_columns, complete
from align.evaluate.judge import Judge, ScoringJudge, score_completions
from align.evaluate.render import render_evaluation
from align.evaluate.reward_model import RewardModelReport
from align.evaluate.significance import bootstrap_interval
from align.evaluate.text import plain, text_metrics
from align.evaluate.winrate import WinRate, win_rates
from align.run import write_json
from align.types import Rollout, Sampler, Text

Measure = Callable[[Rollout], Mapping[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Everything one evaluation found."""

    baseline: str
    models: dict[str, dict[str, Any]]  # by name: path and metrics
    win_rates: list[WinRate]
    reward_model: RewardModelReport | None
    samples: list[dict[str, Any]]  # a few prompts with every model's completion and score
    prompts: int
    samples_per_prompt: int
    seed: int
    level: float
    warnings: list[str] = field(default_factory=list)
    before: str | None = None  # the model that what was forgotten is counted from

    def as_dict(self) -> dict[str, Any]:
        """What evaluation.json holds."""
        return {
            "baseline": self.baseline,
            "models": self.models,
            "win_rates": [rate.as_dict() for rate in self.win_rates],
            "reward_model": self.reward_model.as_dict() if self.reward_model else None,
            "samples": self.samples,
            "prompts": self.prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "seed": self.seed,
            "level": self.level,
            "warnings": self.warnings,
            "before": self.before,
        }

    def save(self, run_dir: Path) -> Path:
        """Write evaluation.json into a run directory and return its path."""
        path = run_dir / "evaluation.json"
        write_json(path, self.as_dict())
        return path

    def render(self) -> Any:
        """A rich renderable for the terminal: models, win rates, reward model, warnings."""
        return render_evaluation(self.as_dict())


def evaluate_models(
    samplers: Mapping[str, Sampler],
    prompts: list[Text],
    judge: Judge | Sequence[Judge],
    columns: Mapping[str, list[Any]] | None = None,
    *,
    baseline: str | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    paths: Mapping[str, str] | None = None,
    identities: Mapping[str, str] | None = None,
    measures: Mapping[str, Measure] | None = None,
    reward_model: RewardModelReport | None = None,
    samples: int = 1,
    seed: int = 0,
    level: float = 0.95,
    batch_size: int = 64,
    show: int = 8,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate models on the same prompts.

    Each model is sampled from and measured before the next is looked up, so a mapping that loads
    on demand holds one at a time.

    Args:
        samplers: by model name (see `generate.complete`).
        prompts: P held-out prompts.
        judge: one judge, or several; win rates are given for each. The first scoring one also
            gives `score_mean` and the scores beside the samples.
        columns: further dataset columns of length P, handed to samplers and judges.
        baseline: the model that others are compared with; default: the first.
        pairs: comparisons (a, b); default: every other model against the baseline.
        paths: where the models came from, for the record.
        identities: fingerprint of weights and sampling settings by model; with it and `run_dir`
            a crashed evaluation continues where it stopped.
        measures: by model name, further metrics of its rollout (`policy.policy_metrics`,
            perplexity, anything that returns named numbers).
        reward_model: what `reward_model.evaluate_reward_model` found.
        samples: completions per prompt and model.
        seed: of sampling, bootstrap and permutation.
        level: confidence level.
        batch_size: completions per call of a sampler.
        show: prompts kept with their completions, evenly spread over the data, never picked.
        run_dir: the run directory.
        progress: called with (what, prompts done, prompts in all).

    Raises:
        DataError: no models, judges or prompts; an unknown baseline or model in `pairs`; columns
            that do not line up.
        ModelError: a sampler returned the wrong number of completions.
        RewardError: a judge failed.
    """
    judges = [judge] if not isinstance(judge, Sequence) else list(judge)
    columns = dict(columns or {})
    check_columns(prompts, columns)
    baseline = _check_names(samplers, baseline, pairs, judges)
    if pairs is None:
        pairs = [(name, baseline) for name in samplers if name != baseline]

    completions: dict[str, Completions] = {}
    models: dict[str, dict[str, Any]] = {}
    for name in samplers:
        written = complete(
            samplers,
            name,
            prompts,
            columns,
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            run_dir=run_dir,
            identity=(identities or {}).get(name),
            progress=progress,
        )
        completions[name] = written
        models[name] = {"path": (paths or {}).get(name)}
        models[name] |= text_metrics(written.texts, written.lengths, written.finished)
        if measures and name in measures:
            models[name] |= measures[name](written.rollout())

    rates: list[WinRate] = []
    shown_scores: dict[str, np.ndarray] | None = None
    for each in judges:
        scores = None
        if isinstance(each, ScoringJudge):
            scores = {
                name: score_completions(
                    each, name, completions[name], columns, run_dir=run_dir, progress=progress
                )
                for name in samplers
            }
            shown_scores = shown_scores or scores
        rates += win_rates(
            each,
            completions,
            pairs,
            columns,
            scores=scores,
            level=level,
            seed=seed,
            run_dir=run_dir,
            progress=progress,
        )
    for name, grid in (shown_scores or {}).items():
        interval = bootstrap_interval(grid.mean(axis=1), level=level, seed=seed)
        models[name] |= {
            "score_mean": interval.value,
            "score_low": interval.low,
            "score_high": interval.high,
        }
    return Evaluation(
        baseline=baseline,
        models=models,
        win_rates=rates,
        reward_model=reward_model,
        samples=_shown(prompts, completions, shown_scores, show),
        prompts=len(prompts),
        samples_per_prompt=samples,
        seed=seed,
        level=level,
        warnings=find_warnings(models, rates, reward_model),
    )


def find_warnings(
    models: Mapping[str, Mapping[str, Any]],
    rates: Sequence[WinRate],
    reward_model: RewardModelReport | None = None,
) -> list[str]:
    """What a reader of these figures should know before believing them."""
    found = []
    for name, metrics in models.items():
        if metrics["finished_rate"] < 0.8:
            found.append(
                f"{name}: only {metrics['finished_rate']:.0%} of the completions ended by "
                "themselves; the rest were cut off and are judged unfinished."
            )
        if metrics.get("sampler_gap", 0.0) > 0.01:
            found.append(
                f"{name}: log-probabilities of sampler and model differ by "
                f"{metrics['sampler_gap']:.3f} on average; its KL cannot be trusted."
            )
    for rate in rates:
        lengths = models[rate.a]["length_mean"], models[rate.b]["length_mean"]
        change = lengths[0] / lengths[1] - 1 if lengths[1] else 0.0
        if abs(change) > 0.25:
            found.append(
                f"{rate.a} writes {change:+.0%} tokens than {rate.b}: part of its win rate by "
                f"{rate.judge} may be a preference for length."
            )
        if rate.n < 100:
            found.append(
                f"{rate.a} against {rate.b}: {rate.n} prompts settle little; the interval is "
                f"{rate.low:.2f} to {rate.high:.2f}."
            )
        if rate.position and rate.position.p_value < 0.05:
            found.append(
                f"judge {rate.judge} favours the {_favoured(rate.position.first_rate)} answer "
                f"(share of the first {rate.position.first_rate:.2f}, p = "
                f"{rate.position.p_value:.2g}); both orders were asked, so the rate is not tilted."
            )
    baseline = reward_model.length_baseline if reward_model else None
    if reward_model and baseline and reward_model.low <= baseline.accuracy:
        found.append(
            f"the reward model's accuracy {reward_model.accuracy:.3f} (from {reward_model.low:.3f})"
            f" is not clearly above {baseline.accuracy:.3f}, what '{baseline.rule}' achieves."
        )
    return found


def _favoured(first_rate: float) -> str:
    return "first" if first_rate > 0.5 else "second"


def _check_names(
    samplers: Mapping[str, Sampler],
    baseline: str | None,
    pairs: Sequence[tuple[str, str]] | None,
    judges: Sequence[Judge],
) -> str:
    """The baseline's name, once everything that can be wrong without sampling is ruled out."""
    if not len(samplers) or not judges:
        raise DataError(
            f"an evaluation needs at least one model and one judge; got {len(samplers)} models "
            f"and {len(judges)} judges."
        )
    names = list(samplers)
    chosen = names[0] if baseline is None else baseline
    asked = {chosen} | {name for pair in pairs or [] for name in pair}
    unknown = sorted(asked - set(names))
    if unknown:
        raise DataError(f"no model is called {', '.join(unknown)}; there are {', '.join(names)}.")
    return chosen


def _shown(
    prompts: list[Text],
    completions: Mapping[str, Completions],
    scores: Mapping[str, np.ndarray] | None,
    show: int,
) -> list[dict[str, Any]]:
    """The first completion of every model on prompts evenly spread over the data."""
    rows = np.unique(np.linspace(0, len(prompts) - 1, min(show, len(prompts))).round().astype(int))
    return [
        {
            "prompt": prompts[row],
            "completions": {
                name: plain(written.texts[row * written.samples])
                for name, written in completions.items()
            },
            "scores": {name: float(grid[row, 0]) for name, grid in (scores or {}).items()},
        }
        for row in rows.tolist()
    ]
