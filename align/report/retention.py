"""What models forgot, before and after: rows of an evaluation's retention, drawn on one axis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from align.report.evidence import Estimate, Evaluation
from align.report.forest import forest_row

Range = tuple[float, float]
nats_row = partial(forest_row, guide=0.0, show=lambda value: f"{value:+.3f} nats")


@dataclass(frozen=True)
class RetentionRow:
    """One model."""

    model: str
    before: Estimate | None  # of the model before training; None: that is this one
    after: Estimate
    forgotten: Estimate | None


@dataclass(frozen=True)
class RetentionEvidence:
    """One evaluation's models, the one before training first."""

    title: str
    rows: list[RetentionRow]
    axis: Range  # of what was forgotten; 0 is on it


def retention_evidence(evaluations: Sequence[Evaluation]) -> list[RetentionEvidence]:
    """Of each evaluation that measured it."""
    found = []
    for evaluation in evaluations:
        losses = evaluation.metrics.get("retention_nats", {})
        growth = evaluation.metrics.get("forgotten_nats", {})
        start = evaluation.before
        models = [start, *(name for name in evaluation.models if name != start)]
        rows = [
            RetentionRow(
                name, None if name == start else losses.get(start), losses[name], growth.get(name)
            )
            for name in models
            if name in losses
        ]
        if rows:
            found.append(RetentionEvidence(evaluation.family.label, rows, _axis(growth.values())))
    return found


def _axis(estimates: Iterable[Estimate]) -> Range:
    ends = [0.0]
    for one in estimates:
        ends += [value for value in (one.low, one.value, one.high) if value is not None]
        ends += [value for _, value in one.dots]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
