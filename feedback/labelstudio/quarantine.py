"""Annotations that did not fit: kept whole with the reason, until the server has them no longer.

Rows are only added. A row with the reason `RELEASED` ends what earlier rows of its annotation said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from feedback.labelstudio.journal import Journal
from feedback.queries import chunks
from feedback.tables import quarantine_table

RELEASED = "released: mended or deleted on the server"


class Quarantine:
    """What one project's annotators sent that the store could not use."""

    def __init__(self, journal: Journal):
        """Read and write what concerns the journal's project."""
        self.journal = journal

    def add(self, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
        """Keep (reason, raw record) that could not be used; how many were new."""
        rows = {}
        for reason, raw in entries:
            plain = json.dumps(raw, sort_keys=True)
            mark = hashlib.sha256(f"{self.journal.prefix}{plain}".encode()).hexdigest()
            rows[mark] = self.journal.here | {
                "fingerprint": mark,
                # A reason quotes what was sent, and that may be half a character.
                "reason": reason.encode("utf-8", "backslashreplace").decode(),
                "raw": dict(raw),
                "recorded_at": datetime.now(UTC),
            }

        def write(connection: sa.Connection) -> int:
            known: set[str] = set()
            column = quarantine_table.c.fingerprint
            for chunk in chunks(list(rows)):
                known.update(connection.scalars(sa.select(column).where(column.in_(chunk))))
            new = [row for mark, row in rows.items() if mark not in known]
            if new:
                connection.execute(sa.insert(quarantine_table), new)
            return len(new)

        return self.journal.store.write(write) if rows else 0

    def release(self, raws: Iterable[Mapping[str, Any]]) -> None:
        """Annotations that were kept aside, and now fit or are gone."""
        now = datetime.now(UTC).isoformat()
        kept = ({"id": raw.get("id"), "task": raw.get("task"), "at": now} for raw in raws)
        self.add((RELEASED, raw) for raw in kept)

    def open(self) -> dict[str, dict[str, Any]]:
        """The last misfit of each annotation that is still one, by annotation id."""
        query = self.journal.of(sa.select(quarantine_table), quarantine_table)
        found: dict[str, dict[str, Any]] = {}
        with self.journal.store.reading() as connection:
            ordered = query.order_by(quarantine_table.c.position)
            for row in connection.execute(ordered).mappings():
                name = f"{self.journal.prefix}{row['raw'].get('id')}"
                found.pop(name, None)
                if row["reason"] != RELEASED:
                    found[name] = dict(row)
        return found
