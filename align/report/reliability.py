"""A reliability diagram before and after a calibration, from `calibration.json`."""

from __future__ import annotations

from markupsafe import Markup

from align.report.forest import reliability
from align.report.reward import reliability_bins
from align.report.svg import join, tag
from align.report.values import Json, figure, mapping, number, text


def before_and_after(state: Json) -> Markup:
    """Two diagrams side by side, each with its ECE; nothing where the state holds no measurement.

    Args:
        state: what `align reward calibrate` saved.
    """
    measured = mapping(state.get("measured"))
    method = text(state.get("method"))
    figures = [
        _figure(mapping(measured.get(part)), caption)
        for part, caption in (("before", "Before"), ("after", f"After ({method})"))
    ]
    shown = [drawn for drawn in figures if drawn is not None]
    return tag("div", *shown, class_="split") if shown else Markup("")


def _figure(held_out: Json, caption: str) -> Markup | None:
    bins = reliability_bins(held_out)
    if not bins:
        return None
    ece = mapping(held_out.get("ece"))
    value, low, high = (number(ece.get(key)) for key in ("value", "low", "high"))
    words = caption
    if value is not None:
        words += f": ECE {figure(value)}"
        if low is not None and high is not None:
            words += f" [{figure(low)}, {figure(high)}]"
    drawn = join([tag("figcaption", words), reliability(bins)])
    return tag("figure", drawn, class_="reliability")
