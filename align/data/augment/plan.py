"""The whole of `data.augment`: checked at once before anything loads, then carried out.

For a stage: `check_augment` and `augment_parts`, called by `align.data.load`. For everybody else:
`augment`, on a `datasets.Dataset` or a list of rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import TypeAdapter, ValidationError

from align.config.augment import Augmentation, Augmentations, Generated, Templates
from align.data.augment.apply import Augmented, prompt_of, rewrite_rows
from align.data.augment.filters import reward_score
from align.data.augment.kinds import EFFECTS, Transform, build, writer_of
from align.data.augment.labels import allowed, default_fields, refusal
from align.data.augment.lineage import LINEAGE, read_lineage
from align.data.augment.made import Maker, make_rows
from align.data.augment.templates import read_templates
from align.data.rows import Kind, Row
from align.errors import ConfigError, DataError, Problem

Entry = Augmentation | Templates
Ready = Transform | Maker


def check_augment(
    entries: Sequence[Entry],
    kind: Kind,
    where: str = "data.augment",
    replies: Path | None = None,
) -> list[Ready]:
    """What each entry asks for, ready to be carried out; no model is loaded and nothing is sent.

    Args:
        entries: the sections.
        kind: of the rows that they are applied to.
        where: the key that holds them.
        replies: a file that keeps what models wrote, so that a resumed run reads it again.

    Raises:
        ConfigError: with every problem of every entry: a field that rows of `kind` do not have, or
            whose label the transform would not keep; a missing file, model or key.
    """
    problems: list[Problem] = []
    ready: list[Ready] = []
    for index, entry in enumerate(entries):
        place = f"{where}.{index}.{entry.kind}"
        problems += [changed(p, where=f"{place}.{p.where}") for p in _field_problems(entry, kind)]
        try:
            ready.append(_ready(entry, replies))
        except ConfigError as error:
            problems += [changed(p, where=f"{place}.{p.where}".rstrip(".")) for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return ready


def augment_parts(
    rows: list[Row],
    entries: Sequence[Entry],
    ready: Sequence[Ready],
    kind: Kind,
    held_out: Sequence[Row] = (),
) -> tuple[list[Row], list[Augmented]]:
    """Training rows with the made ones behind them, and what each entry came to.

    Raises:
        DataError: see `rewrite_rows` and `make_rows`.
    """
    # A row that was made elsewhere is held out by its origin's prompt, and by its own.
    keys = {row.key for row in held_out} | {prompt_of(row.values) for row in held_out}
    made: list[Row] = []
    reports = []
    replaced = set[str]()
    for entry, tool in zip(entries, ready, strict=True):
        if isinstance(tool, Maker):
            new, report = make_rows(tool, rows, kind, keys)
        else:
            assert isinstance(entry, Augmentation)
            new, report = rewrite_rows(rows, entry, tool, kind, keys)
            if entry.mode == "replace":
                replaced |= {row.where.rpartition(" (")[0] for row in new}
        made += new
        reports.append(report)
    return [row for row in rows if row.where not in replaced] + made, reports


def augment(
    data: Dataset | Sequence[Mapping[str, Any]],
    entries: Sequence[Entry | Mapping[str, Any]],
    kind: Kind,
    *,
    held_out: Dataset | Sequence[Mapping[str, Any]] = (),
) -> tuple[Dataset, list[Augmented]]:
    """Augment rows outside of a stage.

    Args:
        data: rows in the columns of `kind`, as `load_splits` gives them.
        entries: as in `data.augment`: `{"kind": "typos", "rate": 0.05, "seed": 1}`.
        kind: "sft", "preference", "prompts", "ranking", "rating" or "steps".
        held_out: rows whose prompts no made row may have.

    Returns:
        The rows and the made ones behind them, in a dataset with the column `lineage` (None for
        rows that were there), and what each entry came to.

    Raises:
        ConfigError: with every problem of every entry.
        DataError: there are no rows; see also `augment_parts`.
    """
    checked = parse(entries)
    ready = check_augment(checked, kind, "augment")
    rows, held = _rows(data), _rows(held_out)
    if not rows:
        raise DataError("there are no rows to augment.")
    every, reports = augment_parts(rows, checked, ready, kind, held)
    names = list(dict.fromkeys(name for row in every for name in row.values))
    columns: dict[str, list[Any]] = {n: [row.values.get(n) for row in every] for n in names}
    return Dataset.from_dict(columns | {LINEAGE: [row.lineage for row in every]}), reports


def parse(entries: Sequence[Entry | Mapping[str, Any]]) -> Augmentations:
    """Sections from mappings.

    Raises:
        ConfigError: with every problem found.
    """
    raw = [e.model_dump(exclude_unset=True) if isinstance(e, Entry) else dict(e) for e in entries]
    try:
        return TypeAdapter(Augmentations).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(
            [
                Problem(".".join(map(str, ("augment", *item["loc"]))), item["msg"])
                for item in error.errors()
            ]
        ) from error


def _ready(entry: Entry, replies: Path | None) -> Ready:
    if isinstance(entry, Templates):
        try:
            file = read_templates(entry.path)
        except DataError as error:
            raise ConfigError([Problem("path", str(error))]) from error
        return Maker(entry, templates=file, score=reward_score(entry.quality))
    try:
        if isinstance(entry, Generated):
            return Maker(entry, writer=writer_of(entry, replies), score=reward_score(entry.quality))
        return build(entry, replies)
    except DataError as error:  # a URL that is none, a key that is not set
        raise ConfigError([Problem("url", str(error))]) from error


def _field_problems(entry: Entry, kind: Kind) -> list[Problem]:
    """Fields that rows of the kind do not have, or that must not be changed so."""
    if isinstance(entry, Generated | Templates):
        return _maker_problems(entry, kind)
    effect = EFFECTS[entry.kind]
    able = ", ".join(allowed(effect, kind)) or "none"
    return [
        Problem("fields", f"{field}: {reason}.", f"of {kind} rows it may change: {able}.")
        for field in entry.fields or default_fields(effect, kind)
        if (reason := refusal(effect, field, kind))
    ]


def _maker_problems(entry: Generated | Templates, kind: Kind) -> list[Problem]:
    problems = []
    if isinstance(entry, Generated) and kind not in ("sft", "prompts"):
        what = f"makes prompts and answers, but no judgements, which {kind} rows are."
        fix = "let people or a judge compare what is generated."
        problems.append(Problem("kind", what, fix))
    if entry.quality.reward is not None and kind not in ("sft", "rating"):
        what = f"scores a completion, which {kind} rows do not have."
        problems.append(Problem("quality.reward", what, "leave it out."))
    return problems


def _rows(data: Dataset | Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows that remember where they come from, if they were made before."""
    rows = []
    for number, values in enumerate(data, start=1):
        lineage = read_lineage(values)
        plain = {k: v for k, v in dict(values).items() if k != LINEAGE}
        key = lineage["key"] if lineage else prompt_of(plain)
        rows.append(Row(f"row {number}", 0, plain, key, lineage=lineage))
    return rows
