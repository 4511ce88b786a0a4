"""Drawings of the feedback section: lead times on a log axis, judgements over time, axes.

As in `align.report.forest`, places are percentages, so that a row stretches with its cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from align.report.feedback import Bin, LeadTimes
from align.report.forest import ROW, place
from align.report.svg import Scale, join, tag, tick_label, ticks
from align.report.values import duration

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 150, 44, 26, 8
STEPS = (0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 604800)  # seconds on a log axis


def axis(low: float, high: float) -> Markup:
    """An axis in decimals below forest rows, for coefficients."""
    marks = ticks(low, high, 4)
    step = marks[1] - marks[0]
    return _axis([(tick_label(mark, step), place(mark, low, high)) for mark in marks])


def lowest(values: Sequence[float]) -> float:
    """Where an axis of coefficients begins: 0, or a tenth below the lowest value."""
    return min(0.0, math.floor(10 * min(values, default=0.0)) / 10)


def time_range(lead: Sequence[LeadTimes]) -> tuple[float, float]:
    """The ends of a log axis of seconds that holds every quantile."""
    low = min(one.quantiles[0] for one in lead)
    high = max(one.quantiles[-1] for one in lead)
    first = max((step for step in STEPS if step <= low), default=low)
    last = min((step for step in STEPS if step >= high), default=high)
    return (first, last) if first < last else (first / 2, last * 2)


def lead_row(one: LeadTimes, bounds: tuple[float, float]) -> Markup:
    """One annotator's lead times: a line from 5% to 95%, a box of the middle half, the median."""
    low, high = (math.log(bound) for bound in bounds)
    spots = [place(math.log(value), low, high) for value in one.quantiles]
    width = f"{float(spots[3][:-1]) - float(spots[1][:-1]):.2f}%"
    words = [duration(value) for value in one.quantiles]
    label = (
        f"{one.annotator}: median {words[2]}, half between {words[1]} and {words[3]}, "
        f"nine in ten between {words[0]} and {words[4]}"
    )
    inner = join(
        [
            tag("line", x1=spots[0], x2=spots[4], y1=0, y2=0, class_="interval thin"),
            tag("rect", x=spots[1], width=width, y=-6, height=12, class_="box"),
            tag("line", x1=spots[2], x2=spots[2], y1=-9, y2=9, class_="interval"),
        ]
    )
    return tag(
        "svg",
        tag("title", label),
        tag("svg", inner, width="100%", height=1, y="50%", overflow="visible"),
        width="100%",
        height=ROW,
        class_="forest row hue-1",
        role="img",
        aria_label=label,
    )


def lead_axis(bounds: tuple[float, float]) -> Markup:
    """The axis below lead times: at most every other step where there are many."""
    low, high = (math.log(bound) for bound in bounds)
    marks = [step for step in STEPS if bounds[0] <= step <= bounds[1]]
    kept = marks if len(marks) < 5 else marks[::2]
    return _axis([(_short(mark), place(math.log(mark), low, high)) for mark in kept])


def _axis(marks: Sequence[tuple[str, str]]) -> Markup:
    labels = [tag("text", text, x=x, y=12, class_="axis-label") for text, x in marks]
    return tag("svg", *labels, width="100%", height=16, class_="forest", aria_hidden="true")


def _short(seconds: float) -> str:
    """A round time: `15 s`, `5 min`, `4 h`, `7 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def timeline(bins: Sequence[Bin]) -> Markup:
    """Judgements per day (or per several days) as bars."""
    most = max(one.count for one in bins)
    down = Scale(0, most, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - LEFT - 8) / max(len(bins), 8)
    parts = []
    for mark in ticks(0, most, 4):
        if mark.is_integer():
            y = down(mark)
            parts.append(tag("line", x1=LEFT, x2=WIDTH - 8, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", f"{mark:,.0f}", x=LEFT - 6, y=y + 3.5, class_="y-tick"))
    for index, one in enumerate(bins):
        y = down(one.count)
        about = f"{_span(one)}: {one.count:,} judgement{'s' if one.count != 1 else ''}"
        parts.append(
            tag(
                "rect",
                tag("title", about),
                x=round(LEFT + index * slot + 1, 1),
                y=y,
                width=round(max(slot - 2, 1), 1),
                height=round(HEIGHT - BOTTOM - y, 1),
                class_="bar",
            )
        )
    for index in sorted({0, len(bins) - 1} if len(bins) * slot > 180 else {0}):
        parts.append(
            tag(
                "text",
                f"{bins[index].first:%Y-%m-%d}",
                x=round(LEFT + (index + 0.5) * slot, 1) if index else LEFT,
                y=HEIGHT - BOTTOM + 15,
                class_="x-name" if index else "x-start",
            )
        )
    label = f"{sum(one.count for one in bins):,} judgements from {bins[0].first} on"
    return tag(
        "svg",
        tag("title", label),
        join(parts),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="plot timeline hue-1",
        aria_label=label,
    )


def _span(one: Bin) -> str:
    return f"{one.first}" if one.days == 1 else f"{one.days} days from {one.first}"
