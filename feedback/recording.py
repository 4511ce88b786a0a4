"""Events into a store, on an open connection inside a transaction: what is new, and nothing else.

An event that says what its annotation's last event said is left out; so is one that an older
reading brings late. Two pulls may overlap: the slower one may have read version 1 of an annotation
before the other recorded version 2, and must not put version 1 back in its place.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feedback.errors import StoreError
from feedback.queries import find_items, insert_new_items, last_events, unchanged
from feedback.records import event_row, item_of_judgement, row_of_judgement
from feedback.schema import Comparison, Correction, Judgement, pair_id
from feedback.standing import changed_at
from feedback.tables import events_table

Raw = Mapping[str, Any]
Skip = tuple[str, str, str | None, Raw | None]  # item, annotator, annotation, raw


def record_judgements(
    connection: Connection,
    said: Sequence[Judgement],
    ids: Sequence[str],
    raws: Sequence[Raw | None],
    *,
    adjudicated: bool,
) -> None:
    """Record judgements, and the items that the store does not have yet.

    Raises:
        DataError: a judgement does not fit its item.
    """
    named = [_named_item(judgement) for judgement in said]
    known = find_items(connection, [name for name in named if name])
    # A correction may name the item that another judgement of this call brings along.
    brought = [
        item_of_judgement(judgement)
        for name, judgement in zip(named, said, strict=True)
        if name not in known and not isinstance(judgement, Correction)
    ]
    known |= {item.id: item for item in brought}
    items = [
        known.get(name) or item_of_judgement(judgement)
        for name, judgement in zip(named, said, strict=True)
    ]
    insert_new_items(connection, {item.id: vars(item) for item in items})
    stored = find_items(connection, list({item.id for item in items}))
    kind = "adjudication" if adjudicated else "annotation"
    rows = []
    for judgement, item, annotation, raw in zip(said, items, ids, raws, strict=True):
        row = row_of_judgement(judgement, stored[item.id])
        when, who = judgement.created_at, judgement.annotator
        rows.append(event_row(kind, annotation, item.id, who, raw, row, when))
    _insert_news(connection, rows)


def record_skips(connection: Connection, skips: Sequence[Skip], store: str) -> list[str]:
    """Record that people declined to judge items; returns the annotations' ids.

    Raises:
        StoreError: `store`, as messages name it, has no such item.
    """
    known = find_items(connection, list({item for item, *_ in skips}))
    rows = []
    for item, annotator, annotation, raw in skips:
        if item not in known:
            raise StoreError(f"feedback store {store}: no pair {item!r}. Fix: add the pair first.")
        rows.append(event_row("skip", annotation or uuid.uuid4().hex, item, annotator, raw))
    _insert_news(connection, rows)
    return [row["annotation"] for row in rows]


def _insert_news(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    last = last_events(connection, [row["annotation"] for row in rows])
    news = []
    for row in rows:
        before = last.get(row["annotation"])
        if unchanged(before, row) or _outdated(before, row):
            continue
        news.append(row)
        last[row["annotation"]] = row
    if news:
        connection.execute(sa.insert(events_table), news)


def _outdated(last: Raw | None, row: Raw) -> bool:
    """Whether the server had changed the annotation again before the last event was read."""
    if last is None:
        return False
    before, now = changed_at(last["raw"]), changed_at(row["raw"])
    return before is not None and now is not None and now < before


def _named_item(judgement: Judgement) -> str:
    """The id of the item a judgement names, or for a comparison the one its text makes."""
    if not isinstance(judgement, Comparison):
        return judgement.item
    return pair_id(judgement.prompt, judgement.response_a, judgement.response_b)
