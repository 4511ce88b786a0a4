"""What the store remembers of the traffic with labelling servers. Rows are only added."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from feedback.labelstudio.tasks import item_of_key
from feedback.queries import chunks
from feedback.schema import Kind
from feedback.store import FeedbackStore
from feedback.tables import (
    events_table,
    projects_table,
    pulls_table,
    pushes_table,
    quarantine_table,
    tasks_table,
)

Role = Literal["labels", "adjudication"]


@dataclass(frozen=True)
class Project:
    """A project on a server, as it was created."""

    server: str
    project: int
    name: str  # what the user calls it; projects of several annotators share it
    kind: Kind
    annotator: str  # "" where people share the project
    config: str
    config_hash: str
    role: Role = "labels"  # adjudication: its labels settle what others disagreed on


@dataclass(frozen=True)
class Batch:
    """Tasks that were about to be sent, and not yet confirmed."""

    batch: str
    keys: tuple[str, ...]
    after: int


class Journal:
    """The store's tables about one project."""

    def __init__(self, store: FeedbackStore, project: Project):
        """Read and write what concerns `project`."""
        self.store, self.project = store, project
        self._here = {"server": project.server, "project": project.project}

    def tasks(self) -> dict[str, int]:
        """Task numbers by key."""
        with self.store.reading() as connection:
            query = self._of(sa.select(tasks_table.c.key, tasks_table.c.task), tasks_table)
            return {row.key: row.task for row in connection.execute(query)}

    def open_batches(self) -> list[Batch]:
        """Batches planned and never confirmed, oldest first."""
        query = self._of(sa.select(pushes_table), pushes_table).order_by(pushes_table.c.position)
        with self.store.reading() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        done = {row["batch"] for row in rows if row["state"] == "confirmed"}
        return [
            Batch(row["batch"], tuple(row["keys"]), row["after"])
            for row in rows
            if row["state"] == "planned" and row["batch"] not in done
        ]

    def plan(self, batch: Batch) -> None:
        """Write down a batch before it is sent."""
        row = self._push_row(batch, "planned")
        self.store.write(lambda connection: connection.execute(sa.insert(pushes_table).values(row)))

    def confirm(self, batch: Batch, tasks: Mapping[str, int]) -> None:
        """Write down, in one transaction, the tasks of a batch and that it is done."""
        now = datetime.now(UTC)
        rows = [
            self._here | {"key": key, "item": item_of_key(key), "task": task, "recorded_at": now}
            for key, task in tasks.items()
        ]

        def write(connection: sa.Connection) -> None:
            known: set[str] = set()
            for chunk in chunks(list(tasks)):
                query = self._of(sa.select(tasks_table.c.key), tasks_table)
                known.update(connection.scalars(query.where(tasks_table.c.key.in_(chunk))))
            new = [row for row in rows if row["key"] not in known]
            if new:
                connection.execute(sa.insert(tasks_table), new)
            connection.execute(
                sa.insert(pushes_table).values(self._push_row(batch, "confirmed", list(tasks)))
            )

        self.store.write(write)

    def seen_until(self) -> datetime | None:
        """The greatest `updated_at` of the tasks read so far."""
        query = self._of(sa.select(sa.func.max(pulls_table.c.seen_until)), pulls_table)
        with self.store.reading() as connection:
            return connection.scalar(query)

    def saw(self, moment: datetime) -> None:
        """Everything up to this `updated_at` was read and recorded."""
        row = self._here | {"seen_until": moment, "recorded_at": datetime.now(UTC)}
        self.store.write(lambda connection: connection.execute(sa.insert(pulls_table).values(row)))

    def annotations(self) -> dict[str, dict[str, Any]]:
        """The last event of every annotation that came from this project, by annotation id."""
        spans = (
            sa.select(sa.func.max(events_table.c.position))
            .where(events_table.c.annotation.like(f"{self.prefix}%"))
            .group_by(events_table.c.annotation)
        )
        query = sa.select(events_table).where(events_table.c.position.in_(spans))
        with self.store.reading() as connection:
            rows = connection.execute(query).mappings()
            return {row["annotation"]: dict(row) for row in rows}

    @property
    def prefix(self) -> str:
        """What the ids of this project's annotations begin with."""
        return f"{self.project.server}/{self.project.project}/"

    def quarantine(self, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
        """Keep (reason, raw record) that could not be used; how many were new."""
        rows = {}
        for reason, raw in entries:
            plain = json.dumps(raw, sort_keys=True, ensure_ascii=False)
            mark = hashlib.sha256(f"{self.prefix}{plain}".encode()).hexdigest()
            rows[mark] = self._here | {
                "fingerprint": mark,
                "reason": reason,
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

        return self.store.write(write) if rows else 0

    def quarantined(self) -> list[dict[str, Any]]:
        """What was kept aside, with reasons, oldest first."""
        query = self._of(sa.select(quarantine_table), quarantine_table)
        with self.store.reading() as connection:
            ordered = query.order_by(quarantine_table.c.position)
            return [dict(row) for row in connection.execute(ordered).mappings()]

    def _of(self, query: sa.Select[Any], table: sa.Table) -> sa.Select[Any]:
        return query.where(
            table.c.server == self.project.server, table.c.project == self.project.project
        )

    def _push_row(
        self, batch: Batch, state: str, keys: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return self._here | {
            "batch": batch.batch,
            "state": state,
            "after": batch.after,
            "keys": list(batch.keys if keys is None else keys),
            "recorded_at": datetime.now(UTC),
        }


def add_project(store: FeedbackStore, project: Project) -> None:
    """Remember a project that was created on a server."""
    row = vars(project) | {"created_at": datetime.now(UTC)}
    store.write(lambda connection: connection.execute(sa.insert(projects_table).values(row)))


def projects(store: FeedbackStore, name: str | None = None) -> list[Project]:
    """The projects that a store knows (of one name), oldest first."""
    query = sa.select(projects_table).order_by(projects_table.c.position)
    if name is not None:
        query = query.where(projects_table.c.name == name)
    with store.reading() as connection:
        rows = connection.execute(query).mappings()
        kept = ("server", "project", "name", "kind", "annotator", "config", "config_hash", "role")
        return [Project(**{key: row[key] for key in kept}) for row in rows]
