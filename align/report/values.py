"""Reading JSON that may be wrong, and printing numbers a person can read.

A report must survive any run directory, so nothing here raises on a value of the wrong kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

Json = dict[str, Any]


def number(value: object) -> float | None:
    """A finite number as it is, anything else as None (booleans are no numbers here)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def mapping(value: object) -> Json:
    """A JSON object, or an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def rows(value: object) -> list[Json]:
    """The objects in a JSON array, or none."""
    return [dict(item) for item in items(value) if isinstance(item, Mapping)]


def items(value: object) -> list[Any]:
    """A JSON array, or an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def text(value: object) -> str:
    """A string as it is, None as nothing, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def moment(value: object) -> datetime | None:
    """An ISO 8601 time, or None."""
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def percent(value: float) -> str:
    """`0.781` as `78%`. One decimal where rounding would hide a side of 50%, of 0% or of 100%."""
    return f"{_hundredth(value)}%"


def percent_interval(low: float, high: float) -> str:
    """`[71, 83]`, in per cent; a t-interval's ends beyond 0% or 100% are cut there."""
    return f"[{_hundredth(max(0.0, low))}, {_hundredth(min(1.0, high))}]"


def _hundredth(value: float) -> str:
    whole = round(100 * value)
    hides = whole in (0, 50, 100) and abs(100 * value - whole) > 1e-9
    return f"{100 * value:.1f}" if hides else str(whole)


def figure(value: float) -> str:
    """Three significant digits: `1.23`, `0.0123`, `12,345`, `3.0e-6`; counts in full."""
    size = abs(value)
    sign = "−" if value < 0 else ""
    if isinstance(value, int) and size < 1e6:
        return f"{sign}{size:,}"
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-3:
        return sign + f"{size:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{sign}{size:,.{max(0, 2 - math.floor(math.log10(size)))}f}"


def probability(value: float) -> str:
    """A p-value: `0.032`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """`48 s`, `1 min 12 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def raw(value: object) -> str:
    """A value as JSON writes it."""
    return json.dumps(value, ensure_ascii=False, default=str)


def shown(value: object, kind: str = "figure", key: str = "") -> Markup:
    """A number for display, with the raw one beside it.

    Args:
        value: the number; anything else is shown as an en dash.
        kind: `figure`, `percent`, `probability` or `duration`.
        key: what the number is, for scripts and tests (`data-figure`).
    """
    plain = number(value)
    if plain is None:
        return Markup('<span class="absent" title="not in the run directory">–</span>')
    write = {"percent": percent, "probability": probability, "duration": duration}.get(kind, figure)
    named = Markup(' data-figure="{}"').format(key) if key else Markup("")
    return Markup('<data value="{0}" title="{0}"{1}>{2}</data>').format(
        raw(plain), named, escape(write(plain))
    )
