"""The section on active learning: its curve, its end, its cost, and why each pair was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from align.report.charts import Chart, Kind, Line
from align.report.collect import RunData
from align.report.evidence import Estimate
from align.report.families import hue
from align.report.notices import run_title
from align.report.values import Json, items, mapping, number, rows, text


@dataclass(frozen=True)
class RoundRow:
    """One round in the table."""

    number: float | None
    answered: float | None
    rows: float | None  # it was trained on
    accuracy: Estimate | None
    most: float | None  # nats that the most telling pair left tells
    asked: float | None
    kind: str
    note: str


@dataclass(frozen=True)
class ActiveEvidence:
    """One active run."""

    title: str
    hue: str
    status: Literal["stopped", "waiting", "unfinished"]
    why: list[str]  # rules that hold
    next: str  # what people are to do
    strategy: str
    annotators: str
    chart: Chart | None
    legend: list[Line]
    difference: Estimate | None  # from random choice, at the end
    random: str  # whether that is known
    rounds: list[RoundRow]
    cost: Json
    choices: list[Json]
    left_out: int  # choices that are in the run directory alone


def active_evidence(runs: Sequence[RunData]) -> list[ActiveEvidence]:
    """Each active run's section; a run that has not measured anything yet has a short one."""
    return [_evidence(run) for run in runs if run.active]


def _evidence(run: RunData) -> ActiveEvidence:
    story = run.active
    settings = mapping(story.get("settings"))
    measured = rows(story.get("rounds"))
    status = text(story.get("status"))
    lines = _lines(measured)
    ends = [mapping(mapping(one.get("curve")).get("difference")) for one in measured]
    last = next((end for end in reversed(ends) if end), {})
    choices = [_choice(one) for one in rows(story.get("choices"))]
    total = number(story.get("choices_in_all")) or 0
    return ActiveEvidence(
        title=run_title(run),
        hue=hue(run.stage),
        status=status if status in ("stopped", "waiting") else "unfinished",  # type: ignore[arg-type]
        why=[text(why) for why in items(story.get("why"))],
        next=text(story.get("next")),
        strategy=text(settings.get("strategy")),
        annotators=text(settings.get("annotators")),
        chart=_chart(lines),
        legend=[line for line in lines if line.kind != "faint"],
        difference=_estimate(last),
        random=text(story.get("random")),
        rounds=[_round(one) for one in measured],
        cost=mapping(story.get("cost")),
        choices=choices,
        left_out=max(0, int(total) - len(choices)),
    )


def _choice(one: Json) -> Json:
    """A choice with every key that the page prints."""
    words = {key: text(one.get(key)) for key in ("prompt", "reason", "label")}
    answers = [text(answer) for answer in items(one.get("answers"))]
    return words | {"round": number(one.get("round")), "answers": answers}


def _round(one: Json) -> RoundRow:
    note = [text(one.get("note")), text(one.get("why_kind"))]
    return RoundRow(
        number(one.get("round")),
        number(one.get("answered")),
        number(one.get("rows")),
        _estimate(mapping(one.get("accuracy"))),
        number(one.get("most")),
        number(one.get("asked")),
        text(one.get("kind")),
        " ".join(filter(None, note)),
    )


def _estimate(found: Json) -> Estimate | None:
    value = number(found.get("value"))
    if value is None:
        return None
    low, high, n = (number(found.get(key)) for key in ("low", "high", "n"))
    return Estimate(value, low, high, n)


def _lines(measured: Sequence[Json]) -> list[Line]:
    """Curves over the number of answered questions."""
    points: dict[str, list[tuple[float, float]]] = {}
    for one in measured:
        step = number(one.get("answered"))
        curve = mapping(one.get("curve"))
        arms = [value for arm in items(curve.get("random")) if (value := number(arm)) is not None]
        found = {
            "on the holdout": number(mapping(one.get("accuracy")).get("value")),
            "chosen": number(curve.get("chosen")),
            "at random": sum(arms) / len(arms) if arms else None,
        }
        found |= {f"random arm {place}": arm for place, arm in enumerate(arms, 1) if len(arms) > 1}
        for name, value in found.items():
            if step is not None and value is not None:
                points.setdefault(name, []).append((step, value))
    kinds: dict[str, tuple[Kind, str, int]] = {
        "chosen": ("mean", "hue-reward", 0),
        "at random": ("run", "hue-base", 1),
        "on the holdout": ("held-out", "hue-reward", 0),
    }
    lines = []
    for name in sorted(points, key=lambda one: list(kinds).index(one) if one in kinds else 9):
        kind, colour, dash = kinds.get(name, ("faint", "hue-base", 1))
        steps, values = zip(*points[name], strict=True)
        lines.append(Line(name, list(steps), list(values), colour, dash, kind, values[-1]))
    return lines


def _chart(lines: list[Line]) -> Chart | None:
    if not lines:
        return None
    about = "Share of pairs on which the model agrees with people, by answered questions."
    return Chart("holdout/accuracy", "Learning curve", about, 0.5, lines, across="answers")
