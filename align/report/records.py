"""Data cards, configurations and provenance of runs, as the templates print them.

Seeds share most of this: what is equal is printed once, what differs is named.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import yaml
from markupsafe import Markup
from pydantic import BaseModel

from align.config.stages import STAGES
from align.report.collect import RunData
from align.report.families import Family, hue
from align.report.notices import run_title
from align.report.svg import tag
from align.report.values import Json, items, mapping, moment, number, raw, rows, text

_CARD_PARTS = {"kind", "layout", "sources", "splits", "prompts", "tokens", "totals", "warnings"}
_TOTALS = (
    ("read", "read"),
    ("bad", "bad"),
    ("left_out", "left out"),
    ("exact_duplicates", "exact duplicates"),
    ("near_duplicates", "near duplicates"),
    ("leaks", "leaked prompts"),
    ("unused", "unused"),
    ("used", "used"),
)


@dataclass(frozen=True)
class Pair:
    """A name with a value, for definition lists."""

    name: str
    value: str
    number: float | None = None


@dataclass(frozen=True)
class Card:
    """One data card; `runs` says whose."""

    runs: str
    hue: str
    kind: str
    totals: list[Pair]
    splits: list[tuple[str, float | None, float | None, Json]]  # name, rows, prompts, tokens
    sources: list[Json]
    rest: list[Pair]


@dataclass(frozen=True)
class Configuration:
    """One family's configuration; `differing` lists what else its runs were given."""

    label: str
    hue: str
    name: str
    yaml: Markup
    differing: list[str]


@dataclass(frozen=True)
class Provenance:
    """Where one run's figures come from."""

    title: str
    hue: str
    path: str
    status: str
    seconds: float | None
    error: str
    facts: list[Pair]
    versions: list[Pair]
    parents: list[tuple[str, str, str]]  # role, path, fingerprint
    results: list[Pair]
    command: str


def data_cards(families: Sequence[Family]) -> list[Card]:
    """Each different card once, with the runs that share it."""
    shared: dict[str, list[tuple[Family, RunData]]] = {}
    for family in families:
        for run in family.runs:
            if run.data_card:
                shared.setdefault(raw(run.data_card), []).append((family, run))
    return [_card(owners) for owners in shared.values()]


def _card(owners: list[tuple[Family, RunData]]) -> Card:
    family, run = owners[0]
    card = run.data_card
    labels: dict[str, list[RunData]] = {}
    for owner, member in owners:
        labels.setdefault(owner.label, []).append(member)
    whose = ", ".join(
        run_title(members[0]) if len(members) == 1 else f"{label} ({len(members)} seeds)"
        for label, members in labels.items()
    )
    totals = mapping(card.get("totals"))
    splits = mapping(card.get("splits"))
    prompts, tokens = mapping(card.get("prompts")), mapping(card.get("tokens"))
    names = list(dict.fromkeys([*splits, *prompts, *tokens]))
    return Card(
        runs=whose,
        hue=hue(family.stage),
        kind=" · ".join(filter(None, [text(card.get("kind")), text(card.get("layout"))])),
        totals=[
            Pair(label, text(totals[name]), number(totals[name]))
            for name, label in _TOTALS
            if number(totals.get(name)) or (name in ("read", "used") and name in totals)
        ],
        splits=[
            (name, number(splits.get(name)), number(prompts.get(name)), mapping(tokens.get(name)))
            for name in names
        ],
        sources=rows(card.get("sources")),
        rest=pairs({key: value for key, value in card.items() if key not in _CARD_PARTS}),
    )


def pairs(values: Json, prefix: str = "") -> list[Pair]:
    """A JSON object as flat name-value pairs; empty values are left out."""
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            found += pairs(value, f"{name}.")
        elif value not in (None, "", []):
            found.append(Pair(name, text(value), number(value)))
    return found


def configurations(families: Sequence[Family]) -> list[Configuration]:
    """Each family's configuration once."""
    shown = []
    for family in families:
        first = next((run for run in family.runs if run.config_text), None)
        if first is None:
            continue
        shown.append(
            Configuration(
                label=family.label,
                hue=hue(family.stage),
                name=run_title(first),
                yaml=highlight(first.config_text, default_leaves(STAGES.get(family.stage))),
                differing=_differing([run.config for run in family.runs if run.config]),
            )
        )
    return shown


def _differing(configs: Sequence[Json]) -> list[str]:
    """The settings in which runs of a family differ; where they write is no setting."""
    leaves = [{pair.name: pair.value for pair in pairs(config)} for config in configs]
    keys = sorted({key for leaf in leaves for key in leaf} - {"run.dir"})
    return [
        f"{key}: " + " / ".join(dict.fromkeys(leaf.get(key, "–") for leaf in leaves))
        for key in keys
        if len({leaf.get(key) for leaf in leaves}) > 1
    ]


def default_leaves(section: type[BaseModel] | None, prefix: str = "") -> Json:
    """The defaults of a configuration by dotted key, None included.

    The items of a list count under the list's own key: `data.train.weight`.
    """
    leaves: Json = {}
    for name, field in section.model_fields.items() if section else ():
        inner = _section_in(field.annotation)
        leaves |= default_leaves(inner, f"{prefix}{name}.")
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            leaves[f"{prefix}{name}"] = None if isinstance(value, BaseModel) else value
    return leaves


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The section that an annotation holds, also inside a list or an optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in found if section), None)


def highlight(yaml_text: str, defaults: Json) -> Markup:
    """YAML with what was set marked, and what was left at its default dimmed; all escaped."""
    lines = []
    path: list[tuple[int, str]] = []  # indentation and key of the blocks around a line
    for line in yaml_text.splitlines():
        body = line.lstrip(" -")
        key, colon, value = body.partition(":")
        if not colon or (value and not value.startswith(" ")) or key.startswith(("'", '"', "#")):
            lines.append(Markup("{}").format(line))
            continue
        indent = len(line) - len(body)
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key)]
        dotted = ".".join(name for _, name in path)
        if not value:
            lines.append(Markup("{}").format(line))
        elif dotted in defaults and defaults[dotted] == _parse(value):
            lines.append(tag("i", line))
        else:
            lines.append(Markup("{}{}:{}").format(line[:indent], tag("b", key), value))
    return Markup("\n").join(lines)


def _parse(value: str) -> object:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def provenance(runs: Sequence[RunData]) -> list[Provenance]:
    """Where each run's figures come from, in the order of the page."""
    return [_provenance(run) for run in runs]


def without_tables(values: Json) -> Json:
    """Without lists of objects, such as the bins of a reliability diagram."""
    return {
        key: without_tables(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not rows(value)
    }


def _provenance(run: RunData) -> Provenance:
    record = run.record
    git = mapping(record.get("git"))
    commit = text(git.get("commit"))[:12]
    started, finished = moment(record.get("started")), moment(record.get("finished"))
    facts = [
        Pair("Seed", "" if run.seed is None else str(run.seed)),
        Pair("Started", f"{started:%Y-%m-%d %H:%M:%S %Z}" if started else ""),
        Pair("Ended", f"{finished:%Y-%m-%d %H:%M:%S %Z}" if finished else ""),
        Pair("Duration (s)", "" if run.seconds is None else f"{run.seconds:g}", run.seconds),
        Pair(
            "Resumed", f"{len(resumed)} times" if (resumed := items(record.get("resumed"))) else ""
        ),
        Pair("Device", text(record.get("device"))),
        Pair("Python", text(record.get("python"))),
        Pair("Git commit", commit + (" + uncommitted changes" if git.get("dirty") else "")),
    ]
    command = record.get("command")
    return Provenance(
        title=run_title(run),
        hue=hue(run.stage),
        path=str(run.path),
        status=run.status,
        seconds=run.seconds,
        error=text(record.get("error")),
        facts=[fact for fact in facts if fact.value.strip()],
        versions=pairs(mapping(record.get("versions"))),
        parents=[
            (text(p.get("role")), text(p.get("path")), text(p.get("fingerprint")))
            for p in run.parents
        ],
        results=pairs(without_tables(mapping(record.get("results")))),
        command=shlex.join(map(text, command)) if isinstance(command, list) else text(command),
    )
