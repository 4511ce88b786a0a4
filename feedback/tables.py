"""The tables of a feedback store.

`items` holds what was issued, `events` what people did. `projects`, `pushes`, `tasks`, `pulls` and
`quarantine` are the journal of the traffic with labelling servers. `store` and `alembic_version`
name the format. Rows are only ever inserted: on SQLite, triggers refuse updates and deletions.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Dialect

FORMAT = "align-feedback"
VERSION = 2  # migrations/versions holds one step for each


class UTCDateTime(sa.TypeDecorator[datetime]):
    """An aware datetime, stored as UTC (SQLite keeps no time zone)."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To naive UTC; a naive value is taken to be UTC already."""
        if value is None or value.tzinfo is None:
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To aware UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


metadata = sa.MetaData()

store_table = sa.Table(
    "store",
    metadata,
    sa.Column("format", sa.String(32), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

revision_table = sa.Table(
    "alembic_version",
    metadata,
    sa.Column("version_num", sa.String(32), primary_key=True),
)

items_table = sa.Table(
    "items",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),  # pair, ranking, rating or thumb
    sa.Column("prompt", sa.JSON, nullable=False),
    sa.Column("responses", sa.JSON, nullable=False),
    sa.Column("sources", sa.JSON, nullable=False),
    sa.Column("columns", sa.JSON, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("shown", sa.JSON, nullable=False),  # place on the page -> index of the answer
    sa.Column("round", sa.Text, nullable=False),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

events_table = sa.Table(
    "events",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    # annotation, skip, deletion or adjudication
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("annotation", sa.String(128), nullable=False, index=True),
    sa.Column("item", sa.String(32), sa.ForeignKey("items.id"), nullable=False, index=True),
    sa.Column("annotator", sa.Text, nullable=False),
    # What was said, in the item's own order; `type` names the class, a comparison without it.
    sa.Column("judgement", sa.JSON, nullable=False),
    sa.Column("raw", sa.JSON, nullable=False),  # as it was received
    sa.Column("created_at", UTCDateTime, nullable=False),  # when the person acted
    sa.Column("recorded_at", UTCDateTime, nullable=False),  # when the store heard of it
    sqlite_autoincrement=True,
)

projects_table = sa.Table(
    "projects",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("project", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),  # what the user calls it
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("annotator", sa.Text, nullable=False),  # "" where people share the project
    sa.Column("role", sa.String(16), nullable=False),  # labels, or adjudication of others' labels
    sa.Column("config", sa.Text, nullable=False),  # the labelling configuration as created
    sa.Column("config_hash", sa.String(64), nullable=False),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.UniqueConstraint("server", "project", name="one_record_per_project"),
    sqlite_autoincrement=True,
)

pushes_table = sa.Table(
    "pushes",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("project", sa.Integer, nullable=False, index=True),
    sa.Column("batch", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # planned, then confirmed
    sa.Column("after", sa.Integer, nullable=False),  # tasks of this batch have greater numbers
    sa.Column("keys", sa.JSON, nullable=False),  # of the tasks of the batch
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

tasks_table = sa.Table(
    "tasks",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("project", sa.Integer, nullable=False),
    sa.Column("key", sa.String(64), nullable=False),  # item id, or with ~ its turned twin
    sa.Column("item", sa.String(32), sa.ForeignKey("items.id"), nullable=False, index=True),
    sa.Column("task", sa.Integer, nullable=False),
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sa.UniqueConstraint("server", "project", "key", name="one_task_per_key"),
    sqlite_autoincrement=True,
)

pulls_table = sa.Table(
    "pulls",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("project", sa.Integer, nullable=False, index=True),
    sa.Column("seen_until", UTCDateTime, nullable=False),  # greatest updated_at of a task read
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

quarantine_table = sa.Table(
    "quarantine",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", sa.Text, nullable=False),
    sa.Column("project", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False, unique=True),  # of the raw record
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("raw", sa.JSON, nullable=False),
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

APPEND_ONLY = (
    items_table,
    events_table,
    projects_table,
    pushes_table,
    tasks_table,
    pulls_table,
    quarantine_table,
)


def refusals(table: str) -> list[str]:
    """SQLite statements that make a table append-only."""
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ]


for _table in APPEND_ONLY:
    for _statement in refusals(_table.name):
        event.listen(_table, "after_create", sa.DDL(_statement).execute_if(dialect="sqlite"))
