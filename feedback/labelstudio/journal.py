"""What the store remembers of the traffic with labelling servers. Rows are only added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    tasks_table,
)

CORRECTED = "#correction"  # behind an annotation's id: the better answer it brought along
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


@dataclass(frozen=True)
class Seen:
    """How far pulls have read."""

    until: datetime | None = None  # the greatest `updated_at` of a task that was read
    recent: Mapping[int, str] = field(default_factory=dict)  # `updated_at` of those just before


class Journal:
    """The store's tables about one project."""

    def __init__(self, store: FeedbackStore, project: Project):
        """Read and write what concerns `project`."""
        self.store, self.project = store, project
        self.here = {"server": project.server, "project": project.project}

    def tasks(self) -> dict[str, int]:
        """Task numbers by key."""
        with self.store.reading() as connection:
            query = self.of(sa.select(tasks_table.c.key, tasks_table.c.task), tasks_table)
            return {row.key: row.task for row in connection.execute(query)}

    def open_batches(self) -> list[Batch]:
        """Batches planned and never confirmed, oldest first."""
        query = self.of(sa.select(pushes_table), pushes_table).order_by(pushes_table.c.position)
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
            self.here | {"key": key, "item": item_of_key(key), "task": task, "recorded_at": now}
            for key, task in tasks.items()
        ]

        def write(connection: sa.Connection) -> None:
            known: set[str] = set()
            for chunk in chunks(list(tasks)):
                query = self.of(sa.select(tasks_table.c.key), tasks_table)
                known.update(connection.scalars(query.where(tasks_table.c.key.in_(chunk))))
            new = [row for row in rows if row["key"] not in known]
            if new:
                connection.execute(sa.insert(tasks_table), new)
            connection.execute(
                sa.insert(pushes_table).values(self._push_row(batch, "confirmed", list(tasks)))
            )

        self.store.write(write)

    def seen(self) -> Seen:
        """How far the last pull came."""
        query = self.of(sa.select(pulls_table), pulls_table)
        with self.store.reading() as connection:
            last = query.order_by(pulls_table.c.position.desc()).limit(1)
            row = connection.execute(last).mappings().first()
        if row is None:
            return Seen()
        return Seen(row["seen_until"], {int(n): moment for n, moment in row["recent"].items()})

    def saw(self, until: datetime, recent: Mapping[int, str] | None = None) -> None:
        """Everything up to this `updated_at` was read and recorded, see `Seen`."""
        row = self.here | {
            "seen_until": until,
            "recent": {str(number): moment for number, moment in (recent or {}).items()},
            "recorded_at": datetime.now(UTC),
        }
        self.store.write(lambda connection: connection.execute(sa.insert(pulls_table).values(row)))

    def standing(self, items: list[str]) -> dict[str, dict[str, Any]]:
        """The last event of each of this project's annotations of some items, by annotation id."""
        found: dict[str, dict[str, Any]] = {}
        query = self._ours(sa.select(events_table)).order_by(events_table.c.position)
        with self.store.reading() as connection:
            for chunk in chunks(items):
                rows = connection.execute(query.where(events_table.c.item.in_(chunk))).mappings()
                found.update({row["annotation"]: dict(row) for row in rows})
        return found

    def annotations(self) -> Iterator[dict[str, Any]]:
        """The last event of every annotation of this project: id, kind and the raw record."""
        names = ("annotation", "kind", "raw")
        query = self._last().with_only_columns(*(events_table.c[name] for name in names))
        with self.store.reading() as connection:
            for row in connection.execute(query).mappings():
                yield dict(row)

    def counts(self) -> Counter[str]:
        """How many of this project's annotations ended as each kind of event."""
        last = self._last().with_only_columns(events_table.c.kind)
        with self.store.reading() as connection:
            query = last.where(~events_table.c.annotation.endswith(CORRECTED, autoescape=True))
            return Counter(connection.scalars(query))

    @property
    def prefix(self) -> str:
        """What the ids of this project's annotations begin with."""
        return f"{self.project.server}/{self.project.project}/"

    def of(self, query: sa.Select[Any], table: sa.Table) -> sa.Select[Any]:
        """The query, of this project's rows only."""
        return query.where(
            table.c.server == self.project.server, table.c.project == self.project.project
        )

    def _ours(self, query: sa.Select[Any]) -> sa.Select[Any]:
        return query.where(events_table.c.annotation.startswith(self.prefix, autoescape=True))

    def _last(self) -> sa.Select[Any]:
        last = self._ours(sa.select(sa.func.max(events_table.c.position)))
        spans = last.group_by(events_table.c.annotation)
        return sa.select(events_table).where(events_table.c.position.in_(spans))

    def _push_row(
        self, batch: Batch, state: str, keys: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return self.here | {
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
