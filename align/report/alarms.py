"""The alarms of runs with the curves that they point to, and gold against distance.

Read from `alarms.jsonl` and run.json's `signals`; odd lines are left out. That nothing was raised
is only worth saying beside what was watched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from align.report.catalogue import describe
from align.report.charts import Chart, Kind, Line
from align.report.collect import RunData, Series
from align.report.curves import thin
from align.report.evidence import seed_label
from align.report.families import display_name, hue
from align.report.values import Json, items, mapping, number, rows, text

GOLD = "gold/"
PROXY, UNSCALED, KL = "reward/mean", "reward/unscaled", "kl/reference"
_POINTS = 200  # of a line in these charts
_LEAST = 8  # updates before gold against distance is drawn
_BLOCKS = 12  # points of that curve
_GRADES = ("critical", "warning")


@dataclass(frozen=True)
class Evidence:
    """What one metric did: figures, and its curve with the moment the alarm was raised."""

    metric: str
    verb: str
    since: float | None
    before: float | None
    now: float | None
    low: float | None
    high: float | None
    chart: Chart | None


@dataclass(frozen=True)
class Raised:
    """One alarm of one run."""

    name: str
    run: str
    hue: str
    severity: str
    step: float
    since: float | None
    message: str
    evidence: list[Evidence]


@dataclass(frozen=True)
class Watched:
    """What was looked for in one run."""

    run: str
    hue: str
    alarms: list[tuple[str, list[str]]]  # name, metrics
    raised: int
    stopped: str  # why training ended early, if it did


@dataclass(frozen=True)
class Distance:
    """Proxy and gold of one run against its distance from the start."""

    run: str
    chart: Chart


@dataclass(frozen=True)
class Alarms:
    """The section; None where no run watched anything."""

    raised: list[Raised]
    watched: list[Watched]
    distances: list[Distance]


def gather_alarms(runs: Sequence[RunData], summary: Json | None = None) -> Alarms | None:
    """Everything the section shows, the gravest alarm first.

    Args:
        runs: the page's runs.
        summary: further results; curves under `overoptimisation`, as `Curve.as_dict` writes them,
            are drawn beside the runs' own.
    """
    watching = [run for run in runs if run.alarms or mapping(run.record.get("signals"))]
    given = [
        one for line in rows((summary or {}).get("overoptimisation")) if (one := given_curve(line))
    ]
    if not watching and not given:
        return None
    raised = [_raised(run, line) for run in watching for line in run.alarms]
    raised.sort(key=lambda one: (_grade(one.severity), one.step))
    return Alarms(
        raised=raised,
        watched=[_watched(run) for run in watching],
        distances=[*given, *(one for run in watching for one in _distances(run))],
    )


def title_of(name: str) -> str:
    """`reward_hacking` as `Reward hacking`, `kl_runaway` as `KL runaway`."""
    words = name.replace("_", " ").strip()
    first, _, rest = words.partition(" ")
    known = {"kl": "KL", "eos": "EOS"}
    return f"{known.get(first, first.capitalize())} {rest}".strip()


def run_label(run: RunData) -> str:
    """A run in one phrase: `PPO, seed 3`."""
    return f"{display_name(run.stage)}, {seed_label(run)}"


def _grade(severity: str) -> int:
    return _GRADES.index(severity) if severity in _GRADES else len(_GRADES)


def _raised(run: RunData, line: Json) -> Raised:
    step = number(line.get("step")) or 0
    return Raised(
        name=title_of(text(line.get("name")) or "unnamed"),
        run=run_label(run),
        hue=hue(run.stage),
        severity=text(line.get("severity")) or "warning",
        step=step,
        since=number(line.get("since")),
        message=text(line.get("message")),
        evidence=[_evidence(run, sign, step) for sign in rows(line.get("evidence"))],
    )


def _evidence(run: RunData, sign: Json, step: float) -> Evidence:
    metric = text(sign.get("metric"))
    since = number(sign.get("since"))
    series = run.series.get(metric)
    marks = tuple(at for at in (since, step) if at is not None)
    return Evidence(
        metric=metric,
        verb=text(sign.get("verb")),
        since=since,
        before=number(sign.get("before")),
        now=number(sign.get("now")),
        low=number(sign.get("low")),
        high=number(sign.get("high")),
        chart=_curve(run, series, marks) if series and len(series.steps) > 1 else None,
    )


def _curve(run: RunData, series: Series, marks: tuple[float, ...]) -> Chart:
    about = describe(series.key)
    steps, values = thin(series, _POINTS)
    line = Line(seed_label(run), steps, values, hue(run.stage), 0, "run", series.values[-1])
    return Chart(series.key, about.title, about.about, about.guide, [line], marks)


def _watched(run: RunData) -> Watched:
    signals = mapping(run.record.get("signals"))
    found = mapping(signals.get("watched"))
    return Watched(
        run=run_label(run),
        hue=hue(run.stage),
        alarms=[
            (title_of(name), [text(key) for key in items(keys)]) for name, keys in found.items()
        ],
        raised=len(run.alarms),
        stopped=text(signals.get("stopped")),
    )


def _distances(run: RunData) -> list[Distance]:
    """One chart for each held-out gold reward that was logged with the KL."""
    found = []
    for key in sorted(run.series):
        if key.startswith(GOLD) and (chart := distance_chart(run, key)) is not None:
            found.append(Distance(run_label(run), chart))
    return found


def given_curve(line: Json) -> Distance | None:
    """A measured curve of a summary: gold with its interval, and the proxy; None for an odd one."""
    d, reward, gold, half = (
        [number(value) for value in items(line.get(key))]
        for key in ("d", "proxy", "gold", "gold_half_width")
    )
    if len(d) < 2 or not len(d) == len(reward) == len(gold) == len(half):
        return None
    table = np.array([d, reward, gold, half], dtype=np.float64)  # None becomes NaN
    if not np.isfinite(table).all():
        return None
    at, proxies, middle, width = table[:, np.argsort(table[0], kind="stable")]
    name, steps = text(line.get("name")) or "curve", at.tolist()
    drawn = [
        ("reward", proxies, hue("reward"), 0, "run"),
        ("gold", middle, hue("ppo"), 0, "mean"),
        ("gold, low end of 95%", middle - width, hue("ppo"), 1, "faint"),
        ("gold, high end of 95%", middle + width, hue("ppo"), 1, "faint"),
    ]
    lines = [
        Line(label, steps, values.tolist(), colour, dash, cast(Kind, kind), float(values[-1]))
        for label, values, colour, dash, kind in drawn
    ]
    units = number(line.get("units"))
    about = f"Dashed: 95% intervals over {units:g} prompts or seeds." if units else ""
    return Distance(
        name,
        Chart(name, f"{name}: gold and reward against distance", about, None, lines, across="√KL"),
    )


def distance_chart(run: RunData, gold: str) -> Chart | None:
    """Gold and proxy against d = sqrt(KL), in blocks of updates, as Gao et al. (2023) draw them."""
    proxy = UNSCALED if UNSCALED in run.series else PROXY  # normalised, its line says nothing
    parts = [run.series.get(key) for key in (KL, proxy, gold)]
    if any(part is None for part in parts):
        return None
    at = [dict(zip(part.steps, part.values, strict=True)) for part in parts if part is not None]
    shared = sorted(set(at[0]) & set(at[1]) & set(at[2]))
    if len(shared) < _LEAST:
        return None
    table = np.array([[one[step] for one in at] for step in shared])
    blocks = np.array([b.mean(axis=0) for b in np.array_split(table, min(_BLOCKS, len(table)))])
    d = np.sqrt(np.clip(blocks[:, 0], 0, None))
    order = np.argsort(d, kind="stable")
    steps, last = d[order].tolist(), blocks[-1]
    reward, judged = blocks[order, 1].tolist(), blocks[order, 2].tolist()
    lines = [
        Line("reward", steps, reward, hue("reward"), 0, "run", float(last[1])),
        Line(gold, steps, judged, hue(run.stage), 0, "mean", float(last[2])),
    ]
    about = "Where gold turns down while the reward rises, the reward model is over-optimised."
    title = f"{describe(gold).title} and reward against distance"
    return Chart(f"{gold} and {proxy}", title, about, None, lines, across="√KL")
