"""The first thing on the page: the verdict in words and numbers, and the figures beside it.

"Wins" is said only where the whole interval lies above 50%; everything else is called unclear or
worse. The best of several policies is named first, and the others stand right beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from align.report.collect import TRAINING, RunData
from align.report.evidence import Estimate, Evaluation, WinRow
from align.report.families import display_name, hue, is_start, judge_name
from align.report.reward import RewardEvidence
from align.report.values import figure, number, percent_interval, shown

_LAST_LOSS = (("eval_loss", "held-out loss"), ("loss", "loss"))
_LAST = {  # what stands for a stage's training, the best first
    **dict.fromkeys(
        ("ppo", "online_dpo", "grpo", "rloo"), (("reward/mean", "reward"), ("loss", "loss"))
    ),
    "reward": (("eval_accuracy", "held-out accuracy"), *_LAST_LOSS),
}

Tone = Literal["better", "worse", "unclear", "none"]


@dataclass(frozen=True)
class Verdict:
    """The headline. `rows` are drawn beside it."""

    tone: Tone
    headline: Markup
    detail: str
    rows: list[WinRow]


@dataclass(frozen=True)
class KeyFigure:
    """One figure of the strip below the headline."""

    label: str
    value: Markup
    detail: str
    hue: str = ""


def decide(runs: Sequence[RunData], evaluation: Evaluation | None, evaluations: int = 1) -> Verdict:
    """The verdict over the deciding judge's comparisons with the baseline.

    Args:
        runs: all runs of the page.
        evaluation: the one to speak of; None if there is none.
        evaluations: how many the page has.
    """
    if evaluation is None or not evaluation.key_rows:
        return _without_evaluation(runs)
    table = evaluation.key_rows
    best = table[0]
    policy, baseline = display_name(best.a), display_name(best.b)
    rate = shown(best.rate.value, "percent", f"headline.{best.key}")
    bounds = _bounds(best.rate)
    tone = tone_of(best.rate)
    if tone == "better":
        headline = Markup("{} wins {} {} against {}").format(policy, rate, bounds, baseline)
    elif tone == "worse":
        headline = Markup("{} loses to {}: it wins only {} {}").format(
            policy, baseline, rate, bounds
        )
    else:
        headline = Markup("{} is not shown to beat {}: it wins {} {}").format(
            policy, baseline, rate, bounds
        )
    detail = _detail(best, sum(not is_start(row.a) for row in table))
    if evaluations > 1:
        others = "the other is" if evaluations == 2 else f"{evaluations - 1} others are"
        detail += f" This is {evaluation.family.label}; {others} below."
    return Verdict(tone, headline, detail + _unfinished(runs), table)


def tone_of(rate: Estimate) -> Tone:
    """Better or worse only where the interval excludes 50%; without an interval, unclear."""
    if rate.low is not None and rate.low > 0.5:
        return "better"
    if rate.high is not None and rate.high < 0.5:
        return "worse"
    return "unclear"


def judged_on(rate: Estimate) -> str:
    """`n = 200`, or `mean of 3 seeds, n = 200 each`."""
    if rate.over == "seeds":
        each = f", n = {rate.n:,g} each" if rate.n else ""
        return f"mean of {len(rate.dots)} seeds{each}"
    return f"n = {rate.n:,g}" if rate.n else "n was not recorded"


def key_figures(
    runs: Sequence[RunData],
    evaluation: Evaluation | None,
    rewards: Sequence[RewardEvidence] = (),
) -> list[KeyFigure]:
    """Win rates, reward-model accuracy, and the time it took."""
    figures = []
    if evaluation:
        for row in [row for row in evaluation.key_rows if not is_start(row.a)][:3]:
            figures.append(
                KeyFigure(
                    f"{display_name(row.a)} against {display_name(row.b)}",
                    shown(row.rate.value, "percent", f"figure.{row.key}"),
                    f"{_interval_text(row.rate)} · {judge_name(row.judge)} judge",
                    hue(row.a),
                )
            )
    if evaluation and rewards and (accuracy := rewards[0].figures.get("accuracy")):
        figures.append(
            KeyFigure(
                "Reward-model accuracy",
                shown(accuracy.value, "percent", "figure.reward_model.accuracy"),
                f"{_interval_text(accuracy)} · held-out pairs",
                "hue-reward",
            )
        )
    figures += _training_figures(runs) if not evaluation else []
    if spent := [run.seconds for run in runs if run.seconds is not None]:
        trained = sum(run.stage in TRAINING for run in runs)
        detail = f"{len(runs)} run{'s' * (len(runs) > 1)}"
        detail += f", {trained} of them training" if trained < len(runs) else ""
        figures.append(KeyFigure("Time spent", shown(sum(spent), "duration"), detail))
    return figures


def _without_evaluation(runs: Sequence[RunData]) -> Verdict:
    stages = ", ".join(dict.fromkeys(display_name(run.stage) for run in runs))
    done = sum(run.status == "completed" for run in runs)
    ended = (
        f"{done} of {len(runs)} runs completed" if len(runs) > 1 else f"one run, {runs[0].status}"
    )
    detail = (
        f"{stages}: {ended}. The curves below show how training went; whether answers got better "
        "is for 'align evaluate' to say."
    )
    return Verdict("none", Markup("Not judged yet"), detail, [])


def _training_figures(runs: Sequence[RunData]) -> list[KeyFigure]:
    """Where each stage's training ended; of several seeds, the first."""
    figures = []
    for stage, run in {run.stage: run for run in reversed(runs)}.items():
        for key, title in _LAST.get(stage, _LAST_LOSS):
            series = run.series.get(key)
            if series and series.values:
                start = f"; was {figure(series.values[0])} at step {series.steps[0]:g}"
                figures.append(
                    KeyFigure(
                        f"{display_name(stage)}, {title}",
                        shown(series.values[-1]),
                        f"step {series.steps[-1]:g}{start if len(series.steps) > 1 else ''}",
                        hue(stage),
                    )
                )
                break
    return figures[::-1][:4]


def _detail(row: WinRow, compared: int) -> str:
    kind = "t-interval over seeds" if row.rate.over == "seeds" else "interval over prompts"
    if not row.rate.has_interval:
        kind = "no interval was recorded"
    sentence = f"By the {judge_name(row.judge)} judge, {judged_on(row.rate)}; 95% {kind}."
    if not row.rate.has_interval:
        sentence = f"By the {judge_name(row.judge)} judge, {judged_on(row.rate)}; {kind}."
    if compared > 1:
        sentence += f" Best of {compared} policies compared; all are shown."
    gap = row.score_difference
    if gap is not None and number(gap.value) is not None:
        sign = "+" if gap.value > 0 else "−" if gap.value < 0 else ""
        sentence += f" Mean score difference {sign}{figure(abs(gap.value))}."
    return sentence


def _unfinished(runs: Sequence[RunData]) -> str:
    """A caution where the figures rest on runs that did not end well."""
    short = sum(run.status != "completed" for run in runs)
    if not short:
        return ""
    return f" {short} of the {len(runs)} runs behind this did not complete: see the warnings."


def _bounds(rate: Estimate) -> Markup:
    if rate.low is None or rate.high is None:
        return Markup('<span class="bounds">(no interval)</span>')
    return Markup('<span class="bounds" title="{} to {}">{}</span>').format(
        rate.low, rate.high, percent_interval(rate.low, rate.high)
    )


def _interval_text(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return percent_interval(estimate.low, estimate.high)
