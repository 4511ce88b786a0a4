"""Line charts as inline SVG: readable without scripts, on paper and in both colour schemes.

`templates/page.js` adds hovering and smoothing from the same data (`data-x`, `data-y`, `data-box`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from align.report.svg import Scale, join, padded_range, tag, tick_label, ticks
from align.report.values import figure, raw

WIDTH, HEIGHT = 340, 196
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 30
Kind = Literal["run", "faint", "mean", "held-out"]


@dataclass(frozen=True)
class Line:
    """One line of a chart: N steps with N values, and the last value before thinning."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    hue: str
    dash: int
    kind: Kind
    last: float


@dataclass(frozen=True)
class Chart:
    """One metric with its lines."""

    key: str
    title: str
    about: str
    guide: float | None
    lines: list[Line]
    marks: tuple[float, ...] = ()  # steps worth an upright line
    across: str = "step"  # what runs from left to right

    @property
    def last(self) -> Line:
        """The line whose last value stands beside the title: the mean if there is one."""
        return next((line for line in self.lines if line.kind == "mean"), self.lines[0])

    @property
    def held_out(self) -> float | None:
        """The last held-out value, averaged over runs."""
        last = [line.last for line in self.lines if line.kind == "held-out"]
        return sum(last) / len(last) if last else None

    @property
    def summary(self) -> str:
        """What the chart shows, for those who cannot see it."""
        parts = []
        for line in self.lines:
            if line.kind != "faint":
                parts.append(
                    f"{line.label}: from {figure(line.values[0])} at {self.across} "
                    f"{line.steps[0]:.4g} to {figure(line.last)} at {self.across} "
                    f"{line.steps[-1]:.4g}, between "
                    f"{figure(min(line.values))} and {figure(max(line.values))}"
                )
        return f"{self.title}. " + "; ".join(parts) + "."


def draw(chart: Chart) -> Markup:
    """The chart as SVG."""
    all_steps = [step for line in chart.lines for step in line.steps] + [*chart.marks]
    all_values = [value for line in chart.lines for value in line.values]
    low, high = padded_range(all_values, _near_guide(chart.guide, all_values))
    first, last = min(all_steps), max(all_steps)
    if first == last:
        first, last = first - 1, last + 1
    across = Scale(first, last, LEFT, WIDTH - RIGHT)
    down = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(down, low, high), _x_axis(across, first, last, chart.across)]
    if chart.guide is not None and low <= chart.guide <= high:
        parts.append(
            tag("line", class_="guide", x1=LEFT, x2=WIDTH - RIGHT, y1=down(chart.guide),
                y2=down(chart.guide))
        )  # fmt: skip
    parts += [
        tag("line", class_="mark", x1=across(mark), x2=across(mark), y1=TOP, y2=HEIGHT - BOTTOM)
        for mark in chart.marks
    ]
    parts += [_line(line, across, down) for line in chart.lines]
    parts.append(tag("g", class_="hover"))
    box = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, first, last, low, high]
    return tag(
        "svg",
        tag("title", chart.summary),
        join(parts),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex="0",
        class_="plot",
        aria_label=chart.summary,
        data_box=raw(box),
        data_across=None if chart.across == "step" else chart.across,
    )


def _near_guide(guide: float | None, values: Sequence[float]) -> list[float]:
    """Make room for the guide where the data come near it; else it would flatten them."""
    if guide is None:
        return []
    low, high = min(values), max(values)
    reach = 0.5 * (high - low)
    return [guide] if low - reach <= guide <= high + reach else []


def _y_axis(down: Scale, low: float, high: float) -> Markup:
    marks = ticks(low, high)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return tag(
        "g",
        *(
            tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down(mark), y2=down(mark), class_="grid")
            + tag("text", tick_label(mark, step), x=LEFT - 6, y=down(mark) + 3.5, class_="y-tick")
            for mark in marks
        ),
    )


def _x_axis(across: Scale, first: float, last: float, name: str = "step") -> Markup:
    marks = ticks(first, last)
    step = marks[1] - marks[0] if len(marks) > 1 else last - first
    base = HEIGHT - BOTTOM
    return tag(
        "g",
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"),
        *(
            tag("text", tick_label(mark, step), x=min(across(mark), WIDTH - RIGHT - 8),
                y=base + 14, class_="x-tick")
            for mark in marks
            if name != "step" or float(mark).is_integer()
        ),
        tag("text", name, x=WIDTH - RIGHT, y=base + 23, class_="x-name"),
    )  # fmt: skip


def _line(line: Line, across: Scale, down: Scale) -> Markup:
    spots = [
        (across(step), down(value)) for step, value in zip(line.steps, line.values, strict=True)
    ]
    points = " ".join(f"{x:g},{y:g}" for x, y in spots)
    shape = tag("polyline", points=points, class_="raw")
    if line.kind == "held-out" or len(spots) == 1:
        shape += join(tag("circle", cx=x, cy=y, r=2.6) for x, y in spots)
    return tag(
        "g",
        shape,
        class_=f"line {line.kind} dash-{line.dash} {line.hue}",
        data_label=line.label,
        data_x=_steps(line.steps),
        data_y=",".join(f"{value:.6g}" for value in line.values),
    )


def _steps(steps: Sequence[float]) -> str:
    """Steps as `first:step:count` where they are evenly spaced, else one by one."""
    if len(steps) > 2:
        gap = steps[1] - steps[0]
        if all(b - a == gap for a, b in pairwise(steps)):
            return f"{steps[0]:g}:{gap:g}:{len(steps)}"
    return ",".join(f"{step:.9g}" for step in steps)
