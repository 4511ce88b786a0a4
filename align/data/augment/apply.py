"""Rows made from rows: which are chosen, what is changed, and what is left out again.

Each transform sees the rows that were read, never what another one made, so that their order in a
configuration does not matter. A made row is left out, and counted, where nothing changed, where the
transform refused what came out, where two answers became equal, where it says what another row
says, and where its prompt is one that is held out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from align.config.augment import Augmentation
from align.data.augment.fields import Path, texts_of, with_texts
from align.data.augment.kinds import Transform
from align.data.augment.labels import default_fields, loses_strength
from align.data.augment.lineage import fingerprint, lineage_of, rng
from align.data.dedup import row_texts
from align.data.rows import Kind, Row, Values, prompt_key
from align.data.split import position_of
from align.errors import DataError


@dataclass
class Augmented:
    """What one entry of `data.augment` came to; a line of the data card."""

    kind: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = 0  # rows that were chosen
    made: int = 0  # rows that stay
    unchanged: int = 0  # nothing to change was found
    refused: int = 0  # by the transform itself, or by the quality filters
    equal: int = 0  # two answers of a row became the same
    repeats: int = 0  # say what a training row, or another made row, says
    leaks: int = 0  # have a prompt that is held out
    reasons: dict[str, int] = field(default_factory=dict)  # of the quality filters

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass
class Attempt:
    """A row that was made from another, before it is known whether it stays."""

    parent: Row
    copy: int
    values: Values


def rewrite_rows(
    rows: Sequence[Row],
    section: Augmentation,
    transform: Transform,
    kind: Kind,
    held_out: Collection[str] = (),
) -> tuple[list[Row], Augmented]:
    """Make rows from rows.

    Args:
        rows: training rows, in any order.
        section: share, copies, seed and fields.
        transform: what `build(section)` gave.
        kind: of the rows.
        held_out: keys of prompts that no made row may have.

    Returns:
        The made rows, in the order of `rows` and of copies, and the counts.

    Raises:
        DataError: one answer alone would be made worse, and a row says by how much it is worse; or
            whatever a model behind the transform raises.
    """
    fields = tuple(section.fields or default_fields(transform.effect, kind))
    report = Augmented(
        section.kind, section.seed, section.model_dump(mode="json", exclude_unset=True)
    )
    purpose = section.kind.encode()[:16]
    chosen = [
        row
        for row in rows
        if position_of(fingerprint(row.values), section.seed, purpose) < section.share
    ]
    for row in chosen:
        if name := loses_strength(transform.effect, fields, row.values):
            raise DataError(
                f"data.augment: {section.kind} makes one answer alone worse ({', '.join(fields)}), "
                f"but {row.where} has a {name}, which says how much better the other is. Fix: "
                "change the prompt or the answers together, or leave that column out."
            )
    report.rows = len(chosen)
    attempts = _attempts(chosen, section, transform, fields, report)
    kept = _kept(rows, attempts, held_out, report)
    options = {**transform.options, "share": section.share, "fields": list(fields)}
    made = [
        Row(
            f"{a.parent.where} ({section.kind} {a.copy})",
            a.parent.source,
            a.values,
            a.parent.key,
            lineage=lineage_of(a.parent, section.kind, section.seed, options, a.copy),
            group=a.parent.group,
        )
        for a in kept
    ]
    report.made = len(made)
    return made, report


def _attempts(
    chosen: Sequence[Row],
    section: Augmentation,
    transform: Transform,
    fields: Sequence[str],
    report: Augmented,
) -> list[Attempt]:
    """All texts of all chosen rows through the transform at once; rows in order."""
    jobs: list[tuple[Row, int, Path, str]] = []
    for row in chosen:
        texts = texts_of(row.values, fields)
        jobs += [(row, c, path, t) for c in range(section.copies) for path, t in texts.items()]
    draws = [
        rng(section.seed, section.kind, fingerprint(row.values), copy, *path)
        for row, copy, path, _ in jobs
    ]
    found = transform.rewrite([text for *_, text in jobs], draws)
    made: dict[tuple[int, int], dict[Path, str | None]] = {}
    parents: dict[tuple[int, int], Row] = {}
    for (row, copy, path, _), text in zip(jobs, found, strict=True):
        made.setdefault((id(row), copy), {})[path] = text
        parents[id(row), copy] = row
    report.unchanged += (len(chosen) * section.copies) - len(made)  # rows without such a text
    attempts = []
    for place, replies in made.items():
        parent = parents[place]
        whole = {path: text for path, text in replies.items() if text is not None and text.strip()}
        if len(whole) < len(replies):
            report.refused += 1
            continue
        values = with_texts(parent.values, whole)
        if values == parent.values:
            report.unchanged += 1
        elif same_answers(values) and not same_answers(parent.values):
            report.equal += 1
        else:
            attempts.append(Attempt(parent, place[1], values))
    return attempts


def _kept(
    rows: Sequence[Row], attempts: Sequence[Attempt], held_out: Collection[str], report: Augmented
) -> list[Attempt]:
    """Without leaks and repetitions; which of two alike stays does not depend on their order."""
    seen = {row_texts(row) for row in rows}
    order = sorted(
        range(len(attempts)),
        key=lambda i: (fingerprint(attempts[i].parent.values), attempts[i].copy),
    )
    stays = set()
    for place in order:
        attempt = attempts[place]
        if prompt_of(attempt.values) in held_out:
            report.leaks += 1
            continue
        texts = row_texts(Row("", 0, attempt.values))
        if texts in seen:
            report.repeats += 1
            continue
        seen.add(texts)
        stays.add(place)
    return [attempt for place, attempt in enumerate(attempts) if place in stays]


def prompt_of(values: Values) -> str:
    """What the split of such a row would go by, if it were read from a file."""
    return prompt_key(values["prompt"] if "prompt" in values else values["text"])


def same_answers(values: Values) -> bool:
    """Whether two answers of one row are equal."""
    if "chosen" in values:
        return bool(values["chosen"] == values["rejected"])
    responses = [repr(response) for response in values.get("responses", ())]
    return len(set(responses)) < len(responses)
