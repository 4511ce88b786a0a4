"""The section on continual runs: each task after each task, what was forgotten, and the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from align.report.collect import RunData
from align.report.evidence import Estimate
from align.report.notices import run_title
from align.report.svg import Scale, join, padded_range, tag, tick_label, ticks
from align.report.values import Json, items, mapping, number, rows, text

SHADES = 7  # of a heat map: `.heat-0` is the worst of a column, `.heat-6` the best
WIDTH, HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 40
FIGURES = {
    "average": "Mean at the end",
    "learned": "Each when learnt",
    "forgetting": "Forgetting",
    "backward": "Backward transfer",
    "forward": "Forward transfer",
    "forgetting removed": "Of naive forgetting removed",
    "old less naive": "Old tasks, less naive",
    "new less naive": "New task, less naive",
}


@dataclass(frozen=True)
class Cell:
    """One score of a heat map."""

    value: float | None
    shade: int | None  # None: not measured


@dataclass(frozen=True)
class ArmEvidence:
    """One arm."""

    name: str
    guards: str
    seeds: int
    front: bool  # no other arm is better on old and new tasks
    map: list[tuple[str, list[Cell]]]  # a row for the start and for each task
    figures: dict[str, Estimate]


@dataclass(frozen=True)
class ContinualEvidence:
    """One continual run."""

    title: str
    finished: bool
    columns: list[Json]
    arms: list[ArmEvidence]
    figures: dict[str, str]  # those that any arm has, with their titles
    naive: str
    scatter: Markup | None


def continual_evidence(runs: Sequence[RunData]) -> list[ContinualEvidence]:
    """Each continual run's section; what is not measured yet is left blank."""
    return [_evidence(run) for run in runs if run.continual]


def _evidence(run: RunData) -> ContinualEvidence:
    story = run.continual
    columns = rows(story.get("columns"))
    front = [text(name) for name in items(story.get("front"))]
    given = mapping(story.get("arms"))
    matrices = [_matrix(mapping(one)) for one in given.values()]
    tasks = [text(one.get("name")) for one in columns if one.get("task")]
    arms = []
    for name, matrix in zip(given, matrices, strict=True):
        one = mapping(given[name])
        shaded = _shaded(matrix, matrices, len(columns))
        labels = ["before", *(f"after {task}" for task in tasks)]
        arms.append(
            ArmEvidence(
                name,
                ", ".join(_guard(mapping(guard)) for guard in items(one.get("guards"))) or "none",
                len(items(one.get("seeds"))),
                name in front,
                list(zip(labels, shaded, strict=False)),
                _figures(mapping(one.get("figures"))),
            )
        )
    known = {key: title for key, title in FIGURES.items() if any(key in a.figures for a in arms)}
    each = ("change of ", "forgetting of ")
    others = {key: None for arm in arms for key in arm.figures if key.startswith(each)}
    known |= {key: key.capitalize() for key in others}
    return ContinualEvidence(
        run_title(run),
        run.status == "completed",
        columns,
        arms,
        known,
        text(story.get("naive")),
        _scatter(rows(story.get("points")), front),
    )


def _guard(guard: Json) -> str:
    """A guard in a few words: `ewc 100`."""
    strength = number(guard.get("strength"))
    return f"{text(guard.get('type'))}{'' if strength is None else f' {strength:g}'}"


def _figures(given: Json) -> dict[str, Estimate]:
    found = {}
    for key, one in given.items():
        value = number(mapping(one).get("value"))
        if value is not None:
            low, high, n = (number(mapping(one).get(end)) for end in ("low", "high", "n"))
            found[key] = Estimate(value, low, high, n)
    return found


def _matrix(arm: Json) -> list[list[float | None]]:
    return [[number(value) for value in items(row)] for row in items(arm.get("matrix"))]


def _shaded(
    matrix: list[list[float | None]], all_of: Sequence[list[list[float | None]]], width: int
) -> list[list[Cell]]:
    """Each score with its shade: where it lies among all arms' scores of its column."""
    ranges = []
    for column in range(width):
        values = [
            row[column]
            for one in all_of
            for row in one
            if column < len(row) and row[column] is not None
        ]
        ranges.append((min(values), max(values)) if values else (0.0, 0.0))  # type: ignore[type-var]
    return [
        [_cell(value, *ranges[place]) for place, value in enumerate(row[:width])]  # type: ignore[arg-type]
        for row in matrix
    ]


def _cell(value: float | None, low: float, high: float) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(None, None)
    share = 1.0 if high <= low else (value - low) / (high - low)
    return Cell(value, round(share * (SHADES - 1)))


def _scatter(points: Sequence[Json], front: Sequence[str]) -> Markup | None:
    """Old against new scores, a dot for each arm, those of the front joined."""
    dots: list[tuple[str, Estimate, Estimate]] = []
    for point in points:
        pair = _figures({key: point.get(key) for key in ("old", "new")})
        if len(pair) == 2:
            dots.append((text(point.get("arm")), pair["old"], pair["new"]))
    if len(dots) < 2:
        return None
    x = _axis([old for _, old, _ in dots], _LEFT, WIDTH - _RIGHT)
    y = _axis([new for _, _, new in dots], HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x, y)]
    line = sorted((x(old.value), y(new.value)) for name, old, new in dots if name in front)
    joined = " ".join(f"{a},{b}" for a, b in line)
    parts.append(tag("polyline", points=joined, class_="front"))
    for name, old, new in dots:
        a, b = x(old.value), y(new.value)
        if old.low is not None and old.high is not None:
            parts.append(tag("line", x1=x(old.low), x2=x(old.high), y1=b, y2=b, class_="bar"))
        if new.low is not None and new.high is not None:
            parts.append(tag("line", x1=a, x2=a, y1=y(new.low), y2=y(new.high), class_="bar"))
        about = tag("title", f"{name}: old {old.value:.3f}, new {new.value:.3f}")
        kind = "dot best" if name in front else "dot"
        parts.append(tag("circle", about, cx=a, cy=b, r=4.5, class_=kind))
        parts.append(tag("text", name, x=a + 7, y=b - 6))
    label = "Score on the old tasks against the new one, at the end, for each arm"
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="pareto", role="img",
        aria_label=label,
    )  # fmt: skip


def _axis(values: Sequence[Estimate], start: float, end: float) -> Scale:
    ends = [v for one in values for v in (one.low, one.value, one.high) if v is not None]
    low, high = padded_range(ends)
    return Scale(low, high, start, end)


def _grid(x: Scale, y: Scale) -> list[Markup]:
    bottom, parts = HEIGHT - _BOTTOM, []
    marks = ticks(x.low, x.high, 5)
    for mark in marks:
        label = tick_label(mark, marks[1] - marks[0] if len(marks) > 1 else 1.0)
        parts.append(tag("line", x1=x(mark), x2=x(mark), y1=_TOP, y2=bottom, class_="grid"))
        parts.append(tag("text", label, x=x(mark), y=bottom + 14, text_anchor="middle"))
    marks = ticks(y.low, y.high, 5)
    for mark in marks:
        label = tick_label(mark, marks[1] - marks[0] if len(marks) > 1 else 1.0)
        parts.append(
            tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y(mark), y2=y(mark), class_="grid")
        )
        parts.append(tag("text", label, x=_LEFT - 6, y=y(mark) + 3, text_anchor="end"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        tag("text", "old tasks (right is better)", x=middle, y=HEIGHT - 6, text_anchor="middle")
    )
    name = "new task (up is better)"
    turn = f"rotate(-90 12 {bottom / 2})"
    parts.append(tag("text", name, x=12, y=bottom / 2, text_anchor="middle", transform=turn))
    return [join(parts)]
