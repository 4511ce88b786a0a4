"""Which curves a stage shows, and the lines in each: seeds overlaid, their mean, held-out values.

Charts are drawn by `align.report.charts`. Long series are thinned for the page; every bucket keeps
its smallest and largest value, so a spike is never lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from align.report.catalogue import NAMESPACES, describe, main_metrics, namespace
from align.report.charts import Chart, Line
from align.report.collect import RunData, Series
from align.report.evidence import Estimate, Over, over_seeds, seed_label
from align.report.families import Family, hue

# Totals that trainers log once at the end: figures, not curves.
_TOTALS = re.compile(r"^(train|eval)_(runtime|steps_per_second|samples_per_second)$|^train_loss$")
_EVAL = "eval_"
DASHES = 4  # dash patterns that tell seeds apart


@dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


@dataclass(frozen=True)
class Key:
    """One entry of the legend."""

    label: str
    hue: str
    dash: int
    kind: Literal["run", "mean", "held-out"]


@dataclass(frozen=True)
class StageCurves:
    """Everything drawn about one stage."""

    stage: str
    main: list[Chart]
    groups: list[Group]
    legend: list[Key]
    totals: list[tuple[str, str, Estimate]]  # run label, metric, value
    thinned: bool


def stage_curves(stage: str, families: Sequence[Family], max_points: int) -> StageCurves:
    """Gather the charts of one stage.

    Args:
        stage: the stage.
        families: its families.
        max_points: how many points a line may have on the page.
    """
    runs = [run for family in families for run in family.runs]
    keys = list(dict.fromkeys(key for run in runs for key in run.series))
    curves = [key for key in keys if _is_curve(key, runs)]
    # A held-out value is drawn in the chart of the metric that it is a held-out value of.
    bases = list(dict.fromkeys(_base(key) for key in curves))
    charts = {base: _chart(base, families, max_points) for base in bases}
    wanted = [base for base in main_metrics(stage) if base in charts]
    if not wanted:
        wanted = bases[:3]
    rest: dict[str, list[Chart]] = {}
    for base in bases:
        if base not in wanted:
            rest.setdefault(namespace(base), []).append(charts[base])
    order = list(NAMESPACES)
    names = sorted(rest, key=lambda name: (order.index(name) if name in order else 99, name))
    return StageCurves(
        stage=stage,
        main=[charts[base] for base in wanted],
        groups=[Group(NAMESPACES.get(name, name), rest[name]) for name in names],
        legend=_legend(families, any(key.startswith(_EVAL) for key in curves)),
        totals=_totals(families, [key for key in keys if key not in curves]),
        thinned=any(len(run.series[key].steps) > max_points for run in runs for key in _own(run)),
    )


def count_lines(runs: Sequence[RunData]) -> int:
    """How many lines a page about these runs has."""
    return sum(len(run.series) for run in runs)


def thin(series: Series, max_points: int) -> tuple[list[float], list[float]]:
    """At most `max_points` points: the extremes of equal buckets, the first and last point kept."""
    count = len(series.steps)
    if count <= max_points:
        return series.steps, series.values
    buckets = max(1, (max_points - 2) // 2)
    keep = {0, count - 1}
    for bucket in range(buckets):
        inside = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        if inside:
            keep.add(min(inside, key=series.values.__getitem__))
            keep.add(max(inside, key=series.values.__getitem__))
    return [series.steps[i] for i in sorted(keep)], [series.values[i] for i in sorted(keep)]


def mean_series(series: Sequence[Series]) -> Series | None:
    """The mean over runs at the steps that all of them logged; None if those are fewer than 2."""
    at = [dict(zip(one.steps, one.values, strict=True)) for one in series]
    shared = sorted(set(at[0]).intersection(*at[1:])) if len(at) > 1 else []
    if len(shared) < 2:
        return None
    return Series(series[0].key, shared, [sum(one[s] for one in at) / len(at) for s in shared])


def _chart(base: str, families: Sequence[Family], max_points: int) -> Chart:
    lines: list[Line] = []
    for index, family in enumerate(families):
        colour = _family_hue(family, index, len(families))
        for key in (base, _EVAL + base):
            held_out = key != base
            own = [(run, run.series[key]) for run in family.runs if _drawn(run, key)]
            mean = None if held_out else mean_series([series for _, series in own])
            for order, (run, series) in enumerate(own):
                steps, values = thin(series, max_points)
                label = _line_label(family, families, run)
                lines.append(
                    Line(
                        label=f"{label}, held out" if held_out else label,
                        steps=steps,
                        values=values,
                        hue=colour,
                        dash=order % DASHES,
                        kind="held-out" if held_out else "faint" if mean else "run",
                        last=series.values[-1],
                    )
                )
            if mean:
                steps, values = thin(mean, max_points)
                label = "mean" if len(families) == 1 else f"{family.label}, mean"
                lines.append(Line(label, steps, values, colour, 0, "mean", mean.values[-1]))
    about = describe(base)
    return Chart(key=base, title=about.title, about=about.about, guide=about.guide, lines=lines)


def _legend(families: Sequence[Family], held_out: bool) -> list[Key]:
    keys: list[Key] = []
    for index, family in enumerate(families):
        colour = _family_hue(family, index, len(families))
        for order, run in enumerate(family.runs):
            keys.append(Key(_line_label(family, families, run), colour, order % DASHES, "run"))
        if len(family.runs) > 1:
            label = "mean" if len(families) == 1 else f"{family.label}, mean"
            keys.append(Key(label, colour, 0, "mean"))
    if held_out and families:
        keys.append(Key("held out", _family_hue(families[0], 0, len(families)), 0, "held-out"))
    return keys


def _totals(families: Sequence[Family], keys: Sequence[str]) -> list[tuple[str, str, Estimate]]:
    """Metrics with one value a run, over seeds."""
    totals = []
    for family in families:
        for key in keys:
            found = [
                (seed_label(run), Estimate(series.values[-1]))
                for run in family.one_per_seed
                if (series := run.series.get(key)) and series.values
            ]
            over: Over = "folds" if family.folds else "seeds"
            if estimate := over_seeds(found, key.endswith("accuracy"), over):
                totals.append((family.label, key, estimate))
    return totals


def _is_curve(key: str, runs: Sequence[RunData]) -> bool:
    if _TOTALS.match(key):
        return False
    longest = max((len(run.series[key].steps) for run in runs if key in run.series), default=0)
    if key.startswith(_EVAL):
        return longest > 0 and any(key.removeprefix(_EVAL) in run.series for run in runs)
    return longest > 1


def _drawn(run: RunData, key: str) -> bool:
    return key in run.series and bool(run.series[key].steps)


def _base(key: str) -> str:
    return key.removeprefix(_EVAL)


def _own(run: RunData) -> list[str]:
    return list(run.series)


def _line_label(family: Family, families: Sequence[Family], run: RunData) -> str:
    same_seed = sum(other.seed == run.seed for other in family.runs) > 1
    label = run.name if same_seed and not run.fold else seed_label(run)
    return label if len(families) == 1 else f"{family.label}, {label}"


def _family_hue(family: Family, index: int, count: int) -> str:
    """The stage's colour; variants of one stage take the colours of the cycle."""
    return hue(family.stage) if count == 1 or index == 0 else f"hue-{index % 6}"
