"""Intervals, shares and reliability as inline SVG.

Horizontal places are percentages of the drawing's width, so a row stretches with its table cell
and its dots stay round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from align.report.evidence import Estimate
from align.report.svg import Scale, join, tag, ticks
from align.report.values import Json, number, percent

ROW = 34  # height of a row in pixels
_MARGIN = 4.0  # per cent kept free left and right for the outermost dots and labels


def place(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """A value's place on the axis as `12.34%`, kept inside the drawing."""
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return f"{_MARGIN + share * (100 - 2 * _MARGIN):.2f}%"


def forest_row(
    estimate: Estimate, hue: str, label: str, low: float = 0.0, high: float = 1.0,
    guide: float | None = 0.5, show: Callable[[float], str] = percent,
) -> Markup:  # fmt: skip
    """One estimate with its interval; the seeds' own figures are small dots on the line below.

    Args:
        estimate: what to draw.
        hue: the colour class.
        label: what it is, for those who cannot see it.
        low: value at the left end.
        high: value at the right end.
        guide: where the line of no difference stands, if anywhere.
        show: a number as text, for the description.
    """
    parts = []
    if estimate.low is not None and estimate.high is not None:
        start, end = place(estimate.low, low, high), place(estimate.high, low, high)
        parts.append(tag("line", x1=start, x2=end, y1=0, y2=0, class_="interval"))
        for end_value, x in ((estimate.low, start), (estimate.high, end)):
            if low <= end_value <= high:  # an end beyond the axis has no cap: it goes on
                parts.append(tag("line", x1=x, x2=x, y1=-4, y2=4, class_="interval"))
    parts.append(_marker(place(estimate.value, low, high), estimate.over != "prompts"))
    for seed, value in estimate.dots:
        spot = tag("title", f"{seed}: {value}")
        parts.append(tag("circle", spot, cx=place(value, low, high), cy=13, r=3, class_="seed"))
    # The inner drawing starts at half height, whatever height the row is given.
    lift = tag("g", *parts, transform="translate(0 -5)") if estimate.dots else join(parts)
    return tag(
        "svg",
        _grid(low, high, guide),
        tag("svg", lift, width="100%", height=1, y="50%", overflow="visible"),
        width="100%",
        height=ROW,
        class_=f"forest row {hue}",
        role="img",
        aria_label=f"{label}: {describe_estimate(estimate, show)}",
    )


def forest_axis(low: float = 0.0, high: float = 1.0, steps: int = 4) -> Markup:
    """The axis above or below forest rows, in per cent."""
    marks = [low + (high - low) * index / steps for index in range(steps + 1)]
    labels = [
        tag("text", f"{100 * mark:.0f}%", x=place(mark, low, high), y=12, class_="axis-label")
        for mark in marks
    ]
    return tag("svg", *labels, width="100%", height=16, class_="forest", aria_hidden="true")


def describe_estimate(estimate: Estimate, show: Callable[[float], str] = percent) -> str:
    """`78%, 95% interval 71% to 83%`."""
    parts = [show(estimate.value)]
    if estimate.low is not None and estimate.high is not None:
        parts.append(f"95% interval {show(estimate.low)} to {show(estimate.high)}")
    else:
        parts.append("no interval")
    if estimate.dots:
        kind = "folds" if estimate.over == "folds" else "seeds"
        parts.append(f"{kind} " + ", ".join(show(value) for _, value in estimate.dots))
    return ", ".join(parts)


def outcome_bar(wins: float, losses: float, ties: float, hue: str) -> Markup:
    """Wins, ties and losses as one stacked bar."""
    total = wins + losses + ties
    if total <= 0:
        return Markup("")
    start = 0.0
    parts = []
    for name, count in (("wins", wins), ("ties", ties), ("losses", losses)):
        width = 100 * count / total
        parts.append(
            tag("rect", tag("title", f"{count:g} {name}"), x=f"{start:.2f}%", y=0, height=8,
                width=f"{width:.2f}%", class_=name)
        )  # fmt: skip
        start += width
    label = f"{wins:g} wins, {ties:g} ties, {losses:g} losses"
    return tag(
        "svg", join(parts), width="100%", height=8, class_=f"outcome {hue}", role="img",
        aria_label=label,
    )  # fmt: skip


def reliability(bins: Sequence[Json]) -> Markup:
    """Observed against predicted, with Wilson intervals and the number of pairs per bin below.

    Args:
        bins: `predicted`, `observed`, and where known `low`, `high` (of the observed) and `n`.
    """
    counts = [number(item.get("n")) or 0 for item in bins]
    equal = max(counts) <= 1.2 * min(counts)  # bins of equal mass need no bars
    size, left, bars = 280, 34, 36
    bottom = 44 if equal else 44 + bars
    first = 0.5 if min(item["predicted"] for item in bins) >= 0.5 else 0.0
    lowest = min(number(item.get("low")) or item["observed"] for item in bins)
    across = Scale(first, 1, left + 8, size - 16)
    down = Scale(min(first, math.floor(10 * lowest) / 10), 1, size - bottom, 10)
    parts = [
        tag("line", x1=across(first), y1=down(first), x2=across(1), y2=down(1), class_="guide")
    ]
    for mark in ticks(down.low, 1):
        y = down(mark)
        parts.append(tag("line", x1=left, x2=size - 8, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", percent(mark), x=left - 4, y=y + 3.5, class_="y-tick"))
    for mark in ticks(first, 1):
        parts.append(
            tag("text", percent(mark), x=across(mark), y=size - bottom + 15, class_="x-tick")
        )
    spots = []
    for item, count in zip(bins, counts, strict=True):
        x, y = across(item["predicted"]), down(item["observed"])
        about = (
            f"sure {percent(item['predicted'])}, right {percent(item['observed'])}, {count:g} pairs"
        )
        spots.append((x, y))
        low, high = number(item.get("low")), number(item.get("high"))
        if low is not None and high is not None:
            parts.append(tag("line", x1=x, x2=x, y1=down(low), y2=down(high), class_="whisker"))
        parts.append(tag("circle", tag("title", about), cx=x, cy=y, r=4, class_="dot"))
        if not equal:
            height = round(bars * count / max(counts), 1)
            parts.append(
                tag("rect", tag("title", about), x=round(x - 4, 1), width=8, height=height,
                    y=round(size - 22 - height, 1), class_="bar")
            )  # fmt: skip
    points = " ".join(f"{x:g},{y:g}" for x, y in spots)
    parts.append(tag("polyline", points=points, class_="raw"))
    below = f"how sure it was (about {counts[0]:g} pairs a dot)" if equal else "bars: pairs"
    parts.append(tag("text", below, x=(left + size) / 2, y=size - 6, class_="x-tick"))
    summary = "Reliability diagram: " + "; ".join(
        f"sure {percent(item['predicted'])}, right {percent(item['observed'])}" for item in bins
    )
    return tag(
        "svg", join(parts), viewBox=f"0 0 {size} {size}", class_="plot reliability hue-reward",
        role="img", aria_label=summary,
    )  # fmt: skip


def _grid(low: float, high: float, guide: float | None) -> Markup:
    lines = []
    for mark in _marks(low, high, guide):
        x = place(mark, low, high)
        kind = "guide" if mark == guide else "grid"
        lines.append(tag("line", x1=x, x2=x, y1=0, y2="100%", class_=kind))
    return join(lines)


def _marks(low: float, high: float, guide: float | None) -> list[float]:
    marks = {low + (high - low) * index / 4 for index in range(5)}
    return sorted(marks | ({guide} if guide is not None else set()))


def _marker(x: str, mean: bool) -> Markup:
    """A square for one evaluation, a diamond for a mean over seeds (as in meta-analyses)."""
    shape = "M0,-7 L8,0 L0,7 L-8,0 Z" if mean else "M-5.5,-5.5 H5.5 V5.5 H-5.5 Z"
    return tag("svg", tag("path", d=shape, class_="marker"), x=x, y=0, overflow="visible")
