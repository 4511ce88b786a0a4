"""A reliability diagram before and after a calibration, from `calibration.json`."""

from __future__ import annotations

from importlib.resources import files

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


def page(state: Json, name: str) -> str:
    """A self-contained page of both diagrams.

    Args:
        state: what `align reward calibrate` saved.
        name: of the model.
    """
    read = files("align.report").joinpath("templates")
    styles = [read.joinpath(file).read_text("utf-8") for file in ("style.css", "figures.css")]
    title = f"Calibration of {name}"
    head = join(
        [
            Markup('<meta charset="utf-8">'),
            tag("title", title),
            tag("style", Markup("\n".join(styles))),  # our own files
        ]
    )
    body = tag("main", tag("h1", title), before_and_after(state))
    document = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


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
