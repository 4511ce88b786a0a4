"""From a `data:` section to the datasets a stage trains on, and the card that accounts for them.

The order is the meaning: read, refuse or set aside bad rows, remove duplicates, remove prompts
that leak into held-out sources, mix by weight, split by prompt, augment and balance what is left
to train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from align.config.sections import DataSection, SourceSection
from align.data.card import DataCard, SourceCard
from align.data.carried import Carried, carry
from align.data.columns import odd_rows, to_dataset
from align.data.dedup import count_contradictions, drop_exact, drop_near
from align.data.enrich import check_enrichment, origin_of
from align.data.formats import check_serves, convert, detect_format
from align.data.mix import mix
from align.data.parse import EQUAL_ANSWERS
from align.data.quarantine import settle_bad_rows
from align.data.remote import is_store, read_source
from align.data.rows import BadRow, Kind, Row, prompt_key
from align.data.split import remove_leaks, split_rows
from align.data.uniform import check_layout, check_one_strength
from align.errors import ConfigError, DataError, Problem
from feedback.dialogue import RowProblem

ROLES = ("train", "validation", "test")


@dataclass
class Splits:
    """What a stage trains on and is measured on."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    card: DataCard
    carried: Carried = field(default_factory=dict)  # columns of train that only its order reads


def load_splits(section: DataSection, kind: Kind, *, quarantine: Path | None = None) -> Splits:
    """Read, check, clean, mix and split the data of a stage.

    Args:
        section: the `data:` section.
        kind: "sft" (text, or prompt and completion), "preference" (prompt, chosen, rejected and,
            where the data have them, margin and weight), "prompts" (prompt and all further
            columns), "ranking" (prompt, responses, ranks), "rating" (prompt, completion, scores)
            or "steps" (prompt, completions, labels).
        quarantine: the JSON-lines file for bad rows when `bad_rows` is "quarantine"; None only
            counts them.

    Returns:
        Datasets in TRL's formats with the data card. Validation and test are None where none was
        asked for, or where chance left them empty (the card warns).

    Raises:
        DataError: a source is missing, damaged, empty or in a format that cannot serve `kind`; a
            row is bad and `bad_rows` is "strict"; conversations and plain text are mixed; margins
            and soft labels are mixed; no training row is left.
        ConfigError: `labels` where no store's preferences are read; `augment` or `balance` that
            cannot work, with every problem found.
    """
    check_labels(section, kind)
    enrichment = check_enrichment(section, kind, quarantine and quarantine.parent)
    card = DataCard(kind, options=_options(section))
    given = {
        "train": section.train,
        "validation": section.validation or [],
        "test": section.test or [],
    }
    pools: dict[str, list[list[Row]]] = {}
    bad: list[BadRow] = []
    for role in ROLES:
        loaded = [_load(s, i, role, kind, section, card) for i, s in enumerate(given[role])]
        pools[role] = [rows for rows, _ in loaded]
        bad += [row for _, problems in loaded for row in problems]
    bad += _set_odd_rows_aside(pools, card)
    card.add_bad(bad)
    if settle_bad_rows(bad, card.rows_read, section.bad_rows, quarantine):
        card.quarantine = str(quarantine)
    rows = [row for pool in pools.values() for rows in pool for row in rows]
    card.layout = check_layout(rows)
    check_one_strength(rows)
    pools = {role: _deduplicate(pool, role, section, card) for role, pool in pools.items()}
    pools = _remove_leaks(pools, card)
    _check_not_empty(pools, given, card)

    mixed = {}
    for role, pool in pools.items():
        weights = [_weight(source) for source in given[role]]
        mixed[role] = mix(pool, weights, section.split_seed)
        chosen = {id(row) for row in mixed[role]}
        card.count_rows(role, "unused", [r for rows in pool for r in rows if id(r) not in chosen])
        card.count_rows(role, "used", mixed[role])
    parts = split_rows(
        mixed["train"],
        0.0 if section.validation else section.validation_fraction,
        0.0 if section.test else section.test_fraction,
        section.split_seed,
        section.fold,
    )
    for role in ("validation", "test"):
        parts[role] += mixed[role]
    enrichment.apply(parts, card)
    _finish_card(card, parts, section)
    if not parts["train"]:
        raise DataError(
            f"no training row is left: {_account(card)}. Fix: lower data.validation_fraction and "
            "data.test_fraction, or give more data."
        )
    train, validation, test = (to_dataset(parts[role], kind) for role in ROLES)
    assert train is not None
    return Splits(train, validation, test, card)


def check_labels(section: DataSection, kind: Kind) -> None:
    """Refuse soft labels where nothing would read them.

    Raises:
        ConfigError: `data.labels` is not "majority", and the stage learns from no preferences or
            no source is a feedback store.
    """
    if section.labels == "majority":
        return
    sources = [*section.train, *(section.validation or []), *(section.test or [])]
    what = None
    if kind != "preference":
        what = "soft labels are for `align reward` and `align dpo`, which compare two answers."
    elif not any(is_store(source.path, source.format == "store") for source in sources):
        what = "is made of the votes in a feedback store, but no source of data is a store's URL."
    if what:
        fix = "leave it out; a file says P(chosen is better) in a column soft_label."
        raise ConfigError([Problem("data.labels", f"{section.labels}: {what}", fix)])


def _load(
    source: SourceSection, index: int, role: str, kind: Kind, section: DataSection, card: DataCard
) -> tuple[list[Row], list[BadRow]]:
    """One source's rows in canonical columns, and its bad rows; its line on the card."""
    store = source.format == "store"
    data = read_source(
        source.path,
        split=source.split,
        limit=source.limit,
        store=store,
        labels=section.labels,
        kind=kind,
    )
    readable = [record.values for record in data.records if record.values is not None]
    if not data.records:
        why = [f"{data.ties} pairs are ties"] if data.ties else []
        why += [data.unread] if data.unread else []
        empty = f" ({'; '.join(why)})" if why else ""
        raise DataError(f"{source.path}: holds no rows{empty}. Fix: check that it was written.")
    format = data.format or source.format
    if format == "auto":
        format = detect_format(readable, source.columns, source.path) if readable else "unreadable"
    if readable:
        check_serves(format, kind, source.path)
    if section.system_prompt is not None and format == "text":
        raise DataError(
            f"{source.path}: text has no conversation that data.system_prompt could begin. "
            "Fix: leave system_prompt out, or use prompt-completion data."
        )
    entry = SourceCard(source.path, role, format, data.sha256, weight=_weight(source))
    rows, bad = [], []
    for record in data.records:
        try:
            if record.values is None:
                raise record.problem or RowProblem("unreadable")
            lineage, group = origin_of(record.values, section, role, source.path)
            values = convert(record.values, format, kind, source.columns, section.system_prompt)
        except RowProblem as problem:
            held = record.raw if record.values is None else record.values
            bad.append(BadRow(record.where, problem.reason, problem.detail, held))
            continue
        if values is None:
            entry.left_out += 1
            continue
        key = prompt_key(values["prompt"] if "prompt" in values else values["text"])
        key = lineage["key"] if lineage else key  # a made row goes where its origin goes
        if lineage or values.get("lineage", "") is None:
            values.pop("lineage", None)  # prompts keep every other column of a file
        values |= carry(record.values, index, section)
        rows.append(Row(record.where, index, values, key, lineage=lineage, group=group))
    entry.read, entry.bad = len(data.records), len(bad)
    card.ties += data.ties + sum(row.reason == EQUAL_ANSWERS for row in bad)
    card.contested += data.contested
    if data.unread:
        card.warn(f"{source.path}: {data.unread}.")
    card.sources.append(entry)
    return rows, bad


def _weight(source: SourceSection) -> float | None:
    """The weight that was written down; sources without one are used whole."""
    return source.weight if "weight" in source.model_fields_set else None


def _set_odd_rows_aside(pools: dict[str, list[list[Row]]], card: DataCard) -> list[BadRow]:
    """Take rows whose columns fit no table with the others out of the pools."""
    odd = odd_rows(row for pool in pools.values() for rows in pool for row in rows)
    ids = {id(row) for row, _ in odd}
    for role, pool in pools.items():
        card.count_rows(role, "bad", [row for rows in pool for row in rows if id(row) in ids])
        pools[role] = [[row for row in rows if id(row) not in ids] for rows in pool]
    return [BadRow(row.where, p.reason, p.detail, row.values) for row, p in odd]


def _deduplicate(
    pool: list[list[Row]], role: str, section: DataSection, card: DataCard
) -> list[list[Row]]:
    """The pool of a role's sources without repeated rows."""
    rows = [row for source in pool for row in source]
    if section.deduplicate != "none":
        rows, dropped = drop_exact(rows)
        card.count_rows(role, "exact_duplicates", dropped)
    if section.deduplicate == "near":
        rows, dropped = drop_near(rows, section.near_threshold)
        card.count_rows(role, "near_duplicates", dropped)
    card.contradictions += count_contradictions(rows)
    return _by_source(rows, len(pool))


def _remove_leaks(pools: dict[str, list[list[Row]]], card: DataCard) -> dict[str, list[list[Row]]]:
    """Held-out sources win: their prompts leave train, and test's prompts leave validation."""
    flat = {role: [row for rows in pool for row in rows] for role, pool in pools.items()}
    flat["validation"], leaked = remove_leaks(flat["validation"], flat["test"])
    card.count_rows("validation", "leaks", leaked)
    flat["train"], leaked = remove_leaks(flat["train"], flat["validation"], flat["test"])
    card.count_rows("train", "leaks", leaked)
    return {role: _by_source(rows, len(pools[role])) for role, rows in flat.items()}


def _by_source(rows: Sequence[Row], count: int) -> list[list[Row]]:
    pool: list[list[Row]] = [[] for _ in range(count)]
    for row in rows:
        pool[row.source].append(row)
    return pool


def _check_not_empty(
    pools: dict[str, list[list[Row]]], given: dict[str, list[SourceSection]], card: DataCard
) -> None:
    """Refuse a role without rows and a source without a good one; warn of a wholly repeated one."""
    for role, pool in pools.items():
        for rows, source in zip(pool, given[role], strict=True):
            if rows:
                continue
            counts = _account(card, source.path)
            entries = [e for e in card.sources if (e.role, e.path) == (role, source.path)]
            if not any(pool) or all(e.read == e.bad + e.left_out for e in entries):
                raise DataError(
                    f"{source.path}: no row is left for {role}: {counts}. Fix: see the counts; "
                    "data.bad_rows, data.deduplicate and the held-out sources decide them."
                )
            card.warn(f"{source.path}: gives no row to {role}: {counts}.")


def _account(card: DataCard, path: str | None = None) -> str:
    """The counts of the card, or of one source, in words."""
    sources = [source for source in card.sources if path in (None, source.path)]
    words = {
        "read": "read",
        "bad": "bad",
        "left_out": "left out",
        "exact_duplicates": "exact duplicates",
        "near_duplicates": "near duplicates",
        "leaks": "in held-out sources",
        "unused": "unused by weight",
    }
    counts = {name: sum(getattr(source, name) for source in sources) for name in words}
    held_out = {k: n for k, n in card.splits.items() if path is None and k != "train" and n}
    parts = [f"{counts[name]:,} {label}" for name, label in words.items() if counts[name]]
    parts += [f"{count:,} in {split}" for split, count in held_out.items()]
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in card.reasons.items())
    return ", ".join(parts) + (f" ({reasons})" if reasons else "")


def _finish_card(card: DataCard, parts: dict[str, list[Row]], section: DataSection) -> None:
    card.splits = {role: len(rows) for role, rows in parts.items() if rows or role == "train"}
    card.prompts = {role: len({row.key for row in parts[role]}) for role in card.splits}
    for role in ROLES:
        sources = [source for source in card.sources if source.role == role]
        total = sum(source.used for source in sources)
        for source in sources:
            source.share = source.used / total if total else 0.0
            if source.unused:
                card.warn(
                    f"{source.path}: {source.unused:,} of {source.unused + source.used:,} rows are "
                    f"unused, because its weight gives it {source.share:.0%} of the mixture."
                )
    asked = {"validation": section.validation_fraction, "test": section.test_fraction}
    for role, fraction in asked.items():
        if not parts[role] and fraction > 0:
            card.warn(
                f"the {role} split is empty: {fraction:g} of {len(parts['train']):,} rows came to "
                f"nothing. Raise data.{role}_fraction, or name a {role} source."
            )


def _options(section: DataSection) -> dict[str, Any]:
    names = "validation_fraction test_fraction fold split_seed bad_rows labels deduplicate"
    return {n: getattr(section, n) for n in [*names.split(), "near_threshold", "system_prompt"]}
