"""The page: collect, judge, draw, render, write.

The page loads nothing: styles, script and drawings are inside it, and its content-security policy
forbids everything else, any script but ours included.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from align import __version__
from align.errors import RunError
from align.report.active import active_evidence
from align.report.alarms import gather_alarms
from align.report.catalogue import MODEL_METRICS, SHARES, model_metric_title
from align.report.charts import draw
from align.report.collect import TRAINING, RunData, collect
from align.report.continual import continual_evidence
from align.report.curves import count_lines, stage_curves
from align.report.environment import page_environment
from align.report.evidence import Evaluation, evaluate_family
from align.report.families import display_name, hue, judge_name, make_families, trace
from align.report.feedback import FeedbackQuality, feedback_quality
from align.report.feedback_charts import (
    axis,
    lead_axis,
    lead_row,
    lowest,
    time_range,
    timeline,
)
from align.report.forest import outcome_bar
from align.report.notices import find_notices
from align.report.pipeline import draw_pipeline
from align.report.records import configurations, data_cards, pairs, provenance, without_tables
from align.report.retention import retention_evidence
from align.report.reward import reward_evidence
from align.report.samples import gather_samples
from align.report.selftrain import selftrain_evidence
from align.report.values import (
    Json,
    duration,
    number,
)
from align.report.verdict import decide, judged_on, key_figures, tone_of

MAX_BYTES = 2_000_000
_POINTS = 40_000  # of all lines on the page together
_POINTS_PER_LINE = (60, 400)
_SAMPLE_CHARACTERS = 500_000


def build_report(
    runs: Sequence[Path],
    output: Path,
    title: str | None = None,
    summary: Json | None = None,
    feedback: str | None = None,
) -> Path:
    """Write one self-contained HTML page about runs and the runs they descend from.

    Args:
        runs: run directories, or folders that hold some; runs with the same configuration and
            different seeds are averaged.
        output: the file to write; a folder gets a `report.html`.
        title: of the page; default: the folder the runs lie in.
        summary: further results to print and embed, for example summary.json. A `reward_model` in
            it, or in each of its `runs` (one per seed), is shown beside the evaluations'.
        feedback: the URL of a feedback store, whose quality is shown, for example
            sqlite:///feedback.db.

    Returns:
        The file written.

    Raises:
        DataError: no runs were given.
        RunError: a path is no run directory, or the page cannot be written.
        StoreError: there is no such feedback store.
    """
    data = collect(runs)
    quality = feedback_quality(feedback) if feedback is not None else None
    html = ""
    for share in (1.0, 0.5, 0.2, 0.05):  # less detail where the page would get too heavy
        html = render(data, title, summary, share, quality)
        if len(html.encode()) <= MAX_BYTES:
            break
    target = output / "report.html" if output.is_dir() else output
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"cannot write the report {target}: {error.strerror}. Fix: choose an output in a "
            "folder you may write to."
        ) from error
    return target


def render(
    runs: Sequence[RunData],
    title: str | None,
    summary: Json | None,
    share: float = 1.0,
    feedback: FeedbackQuality | None = None,
) -> str:
    """The page as a string.

    Args:
        runs: what `collect` read.
        title: of the page.
        summary: further results.
        share: of the usual number of curve points and sample characters.
        feedback: what a feedback store's section shows.
    """
    families = make_families(runs)
    lineage = trace(families)
    found = (evaluate_family(family) for family in families)
    evaluations = [evaluation for evaluation in found if evaluation]
    main = _main_evaluation(evaluations)
    rewards = reward_evidence(families, evaluations, summary)
    ordered = [run for family in families for run in family.runs]
    stages = list(dict.fromkeys(family.stage for family in families))
    points = int(share * _POINTS / max(1, count_lines(runs)))
    points = min(max(points, int(share * _POINTS_PER_LINE[0])), _POINTS_PER_LINE[1])
    script = _resource("page.js")
    context = {
        "title": title or _default_title(runs),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "style": Markup(_resource("style.css") + _resource("figures.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "runs": ordered,
        "families": families,
        "verdict": decide(ordered, main, len(evaluations)),
        "key_figures": key_figures(ordered, main, rewards),
        "notices": find_notices(ordered, families, lineage, evaluations),
        "evaluations": evaluations,
        "rewards": rewards,
        "actives": active_evidence(ordered),
        "selftrains": selftrain_evidence(ordered),
        "retentions": retention_evidence(evaluations),
        "continuals": continual_evidence(ordered),
        "feedback": feedback,
        "alarms": gather_alarms(ordered, summary),
        "pipeline_across": draw_pipeline(lineage),
        "pipeline_down": draw_pipeline(lineage, vertical=True),
        "lineage": lineage,
        "samples": gather_samples(ordered, int(share * _SAMPLE_CHARACTERS)),
        "stages": [
            stage_curves(stage, [f for f in families if f.stage == stage], max(8, points))
            for stage in stages
            if any(run.series for f in families if f.stage == stage for run in f.runs)
        ],
        "cards": data_cards(families),
        "configurations": configurations(families),
        "provenance": provenance(ordered),
        "summary": pairs(without_tables(summary or {})),
        "data": _embedded(evaluations, ordered, summary),
    }
    return _environment().get_template("page.html").render(context)


def _main_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one the headline speaks of: the most seeds, then the last in the pipeline's order."""
    judged = [evaluation for evaluation in evaluations if evaluation.wins]
    return max(reversed(judged), key=lambda one: len(one.family.one_per_seed), default=None)


def _default_title(runs: Sequence[RunData]) -> str:
    folders = {run.path.resolve().parent for run in runs}
    if len(folders) > 1:
        common = Path(os.path.commonpath([str(folder) for folder in folders]))
        return common.name or "Runs"
    only = folders.pop()
    return runs[0].name if len(runs) == 1 else only.name or "Runs"


def _embedded(
    evaluations: Sequence[Evaluation], runs: Sequence[RunData], summary: Json | None
) -> Markup:
    """What the page says, for programs: JSON that cannot end its script element."""
    value = {
        "win_rates": [
            {
                "evaluation": evaluation.family.label,
                "a": row.a,
                "b": row.b,
                "judge": row.judge,
                "rate": row.rate.value,
                "low": row.rate.low,
                "high": row.rate.high,
                "n": row.rate.n,
                "over": row.rate.over,
                "seeds": dict(row.rate.dots),
            }
            for evaluation in evaluations
            for row in evaluation.wins
        ],
        "runs": [
            {"stage": run.stage, "path": str(run.path), "status": run.status, "seed": run.seed}
            for run in runs
        ],
        "summary": summary,
    }
    written = json.dumps(value, ensure_ascii=False, default=str)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)


@cache
def _resource(name: str) -> str:
    return files("align.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = page_environment("align.report")
    environment.filters |= {
        "duration": duration,
        "name": display_name,
        "judge": judge_name,
        "hue": hue,
        "number": number,
    }
    environment.globals |= {
        "draw": draw,
        "outcome_bar": outcome_bar,
        "coefficient_axis": axis,
        "coefficient_low": lowest,
        "lead_row": lead_row,
        "lead_axis": lead_axis,
        "time_range": time_range,
        "timeline": timeline,
        "judged_on": judged_on,
        "tone_of": tone_of,
        "metric_title": model_metric_title,
        "main_metrics": MODEL_METRICS,
        "shares": SHARES,
        "training": TRAINING,
    }
    return environment
