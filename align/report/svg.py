"""Small helpers for hand-written SVG: escaped tags, scales and round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """An element with everything escaped: `tag("text", "a < b", x=3, class_="axis")`.

    A trailing underscore is dropped from attribute names and the others become dashes
    (`class_`, `stroke_width`); attributes that are None are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def join(parts: Iterable[Markup]) -> Markup:
    """Markup side by side."""
    return Markup("").join(parts)


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`

    def __call__(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def padded_range(values: Sequence[float], include: Sequence[float] = ()) -> tuple[float, float]:
    """Smallest and largest value with a little air; never an empty range."""
    low, high = min([*values, *include]), max([*values, *include])
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # a constant, as far as floats can tell
        room = abs(high) * 0.1 or 1.0
        return low - room, high + room
    air = 0.04 * (high - low)
    return (low if low == 0 else low - air), high + air


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, at most `most`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = power * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick with as many decimals as its step needs: `0.05`, `1.5k`, `2e-5`."""
    if value == 0:
        return "0"
    sign, size = "−" if value < 0 else "", abs(value)
    if size < 1e-3 or size >= 1e7:
        digits = max(0, math.floor(math.log10(size)) - math.floor(math.log10(step) + 1e-9))
        return sign + f"{size:.{digits}e}".replace("e-0", "e-").replace("e+0", "e").replace(
            "e+", "e"
        )
    suffix = ""
    if size >= 1000:
        size, step, suffix = size / 1000, step / 1000, "k"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{size:.{decimals}f}"
    if suffix and "." in text:
        text = text.rstrip("0").rstrip(".")
    return sign + text + suffix
