"""The statements of a feedback store, on an open connection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feedback.records import item_of
from feedback.schema import Item
from feedback.tables import events_table, items_table

CHUNK = 500  # ids per query: databases limit the parameters of one statement


def chunks(ids: list[str]) -> Iterable[list[str]]:
    """The ids in pieces that one statement can take."""
    return (ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK))


def find_items(connection: Connection, ids: list[str]) -> dict[str, Item]:
    """Items by id, for those the store has."""
    found: dict[str, Item] = {}
    for chunk in chunks(ids):
        query = sa.select(items_table).where(items_table.c.id.in_(chunk))
        for row in connection.execute(query).mappings():
            found[row["id"]] = item_of(dict(row))
    return found


def insert_new_items(connection: Connection, items: Mapping[str, dict[str, Any]]) -> int:
    """Insert the items that the store does not have; how many."""
    known: set[str] = set()
    for chunk in chunks(list(items)):
        query = sa.select(items_table.c.id).where(items_table.c.id.in_(chunk))
        known.update(connection.scalars(query))
    new = [row for name, row in items.items() if name not in known]
    if new:
        connection.execute(sa.insert(items_table), new)
    return len(new)


def last_events(connection: Connection, annotations: list[str]) -> dict[str, dict[str, Any]]:
    """The newest event of each annotation."""
    last: dict[str, dict[str, Any]] = {}
    for chunk in chunks(annotations):
        query = sa.select(events_table).where(events_table.c.annotation.in_(chunk))
        rows = connection.execute(query.order_by(events_table.c.position)).mappings()
        last.update({row["annotation"]: dict(row) for row in rows})
    return last


def unchanged(last: Mapping[str, Any] | None, row: Mapping[str, Any]) -> bool:
    """Whether an event would say again what the last one said.

    Compared as JSON where they differ in Python: a tuple comes back as a list, and NaN is NaN.
    """
    same = ("kind", "item", "annotator", "judgement", "raw")
    return last is not None and all(
        last[key] == row[key] or _as_json(last[key]) == _as_json(row[key]) for key in same
    )


def _as_json(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except TypeError as error:  # the insertion will say so
        return f"no JSON: {error}"


def current_events() -> sa.Select[Any]:
    """The last event of each annotation beside its item, in the order annotations began."""
    spans = (
        sa.select(
            sa.func.min(events_table.c.position).label("first"),
            sa.func.max(events_table.c.position).label("last"),
        )
        .group_by(events_table.c.annotation)
        .subquery()
    )
    item_columns = [items_table.c[name] for name in ("prompt", "responses", "sources")]
    asked = items_table.c.kind.label("asked")
    return (
        sa.select(events_table, *item_columns, asked)
        .join(spans, events_table.c.position == spans.c.last)
        .join(items_table, items_table.c.id == events_table.c.item)
        .order_by(spans.c.first)
    )
