"""What `align reward evaluate` found, three ways: in a terminal, as JSON, and as one HTML page.

The page is made of the building blocks of `align report`, and like it loads nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from math import floor
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text as Line

from align import __version__
from align.errors import RunError
from align.evaluate.reward_bench import RewardBench
from align.evaluate.reward_compare import RewardComparison
from align.evaluate.reward_tables import (
    TONES,
    WORDS,
    accuracy_table,
    comparison_table,
    consistency_table,
    pair_table,
    probe_table,
    ranking_table,
)
from align.report.environment import page_environment
from align.report.evidence import Estimate
from align.report.forest import forest_row
from align.report.reward import gather
from align.report.values import percent
from align.run import write_json
from reward.consistency import EditConsistency
from reward.functions import plain
from reward.probing import ProbeReport
from reward.statistics import Interval

SHOWN = 600  # characters of an example on the page


@dataclass(frozen=True)
class RewardReport:
    """Everything that was measured in one go."""

    target: str
    data: str
    rows: int
    bad: dict[str, int]  # rows set aside, by reason
    bench: RewardBench
    against: RewardBench | None = None
    comparison: RewardComparison | None = None
    probes: ProbeReport | None = None
    consistency: list[EditConsistency] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what could not be measured

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {
            "probes": self.probes.as_dict() if self.probes else None,
            "version": __version__,
        }

    def save_json(self, path: Path) -> None:
        """Write it as JSON, in one step.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.as_dict())
        except OSError as error:
            raise RunError(_unwritable(path, error)) from error

    def save_html(self, path: Path) -> None:
        """Write it as one self-contained page, in one step.

        Raises:
            RunError: the file cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(render_html(self), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise RunError(_unwritable(path, error)) from error

    def render(self) -> Group:
        """Tables for a terminal."""
        parts: list[RenderableType] = [
            accuracy_table(self.bench, self.data, self.bad, self.against),
            pair_table(self.bench),
        ]
        if self.bench.rankings:
            parts.append(ranking_table(self.bench))
        if self.comparison:
            parts.append(comparison_table(self.comparison))
        if self.probes:
            parts.append(probe_table(self.probes))
        if self.consistency:
            parts.append(consistency_table(self.consistency))
        warnings = (*self.bench.warnings, *self.warnings)
        parts += [Line(f"! {warning}", style="yellow") for warning in warnings]
        return Group(*parts)


def render_html(report: RewardReport) -> str:
    """The page as a string."""
    bench = report.bench
    pairs = bench.pair_report.as_dict()
    lows = [one.accuracy.low for one in bench.categories]
    section = gather("single pairs", [("", pairs)])
    context = {
        "report": report,
        "bench": bench,
        "title": f"{bench.reward} on {Path(report.data).name or report.data}",
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "style": Markup(_resource("style.css") + _resource("figures.css")),
        "rewards": [section] if section else [],
        "low": floor(4 * min([0.4, bench.micro.low, *lows])) / 4,  # the axis, in round steps
        "level": f"{100 * bench.level:g}%",
        "words": WORDS,
        "tones": TONES,
        "short": _short,
    }
    return _environment().get_template("reward_report.html").render(context)


def _unwritable(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror}. Fix: choose a folder you may write to."


def _short(text: Any) -> str:
    words = plain(text)
    return words if len(words) <= SHOWN else words[:SHOWN] + " …"


def _estimate(value: Interval) -> Estimate:
    return Estimate(value.value, value.low, value.high, value.n, level=value.level)


def _bars(
    value: Interval, label: str, hue: str, low: float = 0.0, high: float = 1.0, guide: float = 0.5
) -> Markup:
    return forest_row(_estimate(value), hue, label, low, high, guide)


@cache
def _resource(name: str) -> str:
    return files("align.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = page_environment("align.evaluate", "align.report")
    environment.filters["percent"] = percent
    environment.globals["bars"] = _bars
    return environment
