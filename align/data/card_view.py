"""The data card on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from align.data.card import DataCard

COUNTS = {
    "read": "read",
    "bad": "bad",
    "left_out": "left out",
    "exact_duplicates": "exact dup.",
    "near_duplicates": "near dup.",
    "leaks": "leaks",
    "unused": "unused",
    "used": "used",
}


def render(card: DataCard) -> Group:
    """Sources, splits with their tokens, reasons of bad rows and warnings."""
    parts: list[RenderableType] = [_sources(card), _splits(card)]
    if card.augmented:
        parts.append(_augmented(card))
    if card.balanced:
        parts.append(_balanced(card.balanced))
    if card.tokens:
        parts.append(_tokens(card))
    if card.reasons:
        parts.append(_reasons(card))
    notes = [f"{source.path}  sha256 {source.sha256[:16]}" for source in card.sources]
    if card.quarantine:
        notes.append(f"bad rows are kept in {card.quarantine}")
    if card.kind == "preference":
        notes.append(
            f"ties: {card.ties}, contested pairs: {card.contested}, "
            f"rows with the opposite preference: {card.contradictions}"
        )
    parts += [Text(note, style="dim", overflow="fold") for note in notes]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in card.warnings]
    return Group(*parts)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _sources(card: DataCard) -> Table:
    """One line a source; columns that are zero everywhere are left out."""
    table = _table(f"Data ({card.kind}, {card.layout})")
    for name in ("source", "role", "format"):
        table.add_column(name, overflow="fold")
    shown = [n for n in COUNTS if n in ("read", "used") or card.count(n)]
    for name in shown:
        table.add_column(COUNTS[name], justify="right")
    table.add_column("share", justify="right")
    for source in card.sources:
        counts = [f"{getattr(source, name):,}" for name in shown]
        name = escape(_short_name(source.path))
        table.add_row(name, source.role, source.format, *counts, f"{source.share:.0%}")
    return table


def _short_name(path: str) -> str:
    """The last part of a path; the whole of a URL or hub id."""
    return path if "://" in path or not Path(path).exists() else Path(path).name


def _splits(card: DataCard) -> Table:
    """One line a split: prompts and rows and, once measured, the rows that fit the length limit."""
    table = _table("Splits")
    table.add_column("split")
    for name in ("prompts", "rows", *(("overlong", "kept", "tokens") if card.tokens else ())):
        table.add_column(name, justify="right")
    for split, rows in card.splits.items():
        tokens = card.tokens.get(split)
        cells = [f"{tokens[name]:,}" for name in ("overlong", "kept", "tokens")] if tokens else []
        table.add_row(split, f"{card.prompts.get(split, 0):,}", f"{rows:,}", *cells)
    return table


def _tokens(card: DataCard) -> Table:
    """Tokens per row, by split and part of the row."""
    table = _table("Tokens per row, overlong rows included")
    for name in ("split", "part"):
        table.add_column(name)
    for name in ("mean", "p50", "p95", "max"):
        table.add_column(name, justify="right")
    for split, tokens in card.tokens.items():
        label = split
        for part in ("prompt", "completion", "sequence"):
            if lengths := tokens.get(part):
                cells = [f"{lengths[name]:,.0f}" for name in ("mean", "p50", "p95", "max")]
                table.add_row(label, part, *cells)
                label = ""
    return table


def _augmented(card: DataCard) -> Table:
    """One line for each entry of `data.augment`; columns that are zero everywhere are left out."""
    table = _table("Augmentation (training rows)")
    table.add_column("kind")
    table.add_column("options", overflow="fold")
    names = ("rows", "made", "unchanged", "refused", "equal", "repeats", "leaks")
    shown = [n for n in names if n in ("rows", "made") or any(e[n] for e in card.augmented)]
    for name in shown:
        table.add_column(name, justify="right")
    for entry in card.augmented:
        options = ", ".join(f"{k}: {v}" for k, v in entry["options"].items() if k != "kind")
        table.add_row(entry["kind"], escape(options), *(f"{entry[name]:,}" for name in shown))
    return table


def _balanced(balanced: dict[str, Any]) -> Table:
    """One line a class: its training rows before and after, or what each of them counts."""
    table = _table(f"Balance ({balanced['method']}, by {balanced['by']})")
    table.add_column("class", overflow="fold")
    for name in ("before", "after", *(("weight",) if balanced["weights"] else ())):
        table.add_column(name, justify="right")
    for name, count in balanced["before"].items():
        cells = [f"{count:,}", f"{balanced['after'].get(name, 0):,}"]
        if balanced["weights"]:
            cells.append(f"{balanced['weights'][name]:.3f}")
        table.add_row(escape(_short_name(name)), *cells)
    return table


def _reasons(card: DataCard) -> Table:
    table = _table("Bad rows")
    table.add_column("reason", overflow="fold")
    table.add_column("rows", justify="right")
    for reason, count in card.reasons.items():
        table.add_row(escape(reason), f"{count:,}")
    return table
