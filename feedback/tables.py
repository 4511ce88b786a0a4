"""The tables of a feedback store.

`items` holds what was issued, `events` what people did. `projects`, `pushes`, `tasks`, `pulls` and
`quarantine` are the journal of the traffic with labelling servers. `store` and `alembic_version`
name the format. Rows are only ever inserted: triggers refuse updates and deletions.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

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


class JSONText(sa.TypeDecorator[Any]):
    """JSON as text, for PostgreSQL: its own types refuse NaN, which Python's JSON may hold.

    Whatever the text is made of, NUL too, comes back as it was: JSON escapes it.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        """To JSON in ASCII."""
        return json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """From JSON."""
        return json.loads(value)


class AnyText(sa.TypeDecorator[str]):
    """Text that may hold NUL; PostgreSQL refuses it: there U+2400, the symbol for it, escapes it.

    NUL becomes the symbol and `0`, the symbol itself is doubled; all other text stays as it is.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """To text without NUL on PostgreSQL, as it is elsewhere."""
        if value is None or dialect.name != "postgresql":
            return value
        return value.replace("\u2400", "\u2400\u2400").replace("\x00", "\u24000")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """To the text that was given."""
        if value is None or dialect.name != "postgresql":
            return value
        return re.sub("\u2400(.)", lambda found: found[1].replace("0", "\x00"), value)


Json = sa.JSON().with_variant(JSONText(), "postgresql")
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
    sa.Column("prompt", Json, nullable=False),
    sa.Column("responses", Json, nullable=False),
    sa.Column("sources", Json, nullable=False),
    sa.Column("columns", Json, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("shown", Json, nullable=False),  # place on the page -> index of the answer
    sa.Column("round", AnyText, nullable=False),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

events_table = sa.Table(
    "events",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    # annotation, skip, deletion or adjudication
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("annotation", AnyText, nullable=False, index=True),
    sa.Column("item", sa.String(32), sa.ForeignKey("items.id"), nullable=False, index=True),
    sa.Column("annotator", AnyText, nullable=False),
    # What was said, in the item's own order; `type` names the class, a comparison without it.
    sa.Column("judgement", Json, nullable=False),
    sa.Column("raw", Json, nullable=False),  # as it was received
    sa.Column("created_at", UTCDateTime, nullable=False),  # when the person acted
    sa.Column("recorded_at", UTCDateTime, nullable=False),  # when the store heard of it
    sqlite_autoincrement=True,
)

projects_table = sa.Table(
    "projects",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", AnyText, nullable=False),
    sa.Column("project", sa.Integer, nullable=False),
    sa.Column("name", AnyText, nullable=False),  # what the user calls it
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("annotator", AnyText, nullable=False),  # "" where people share the project
    sa.Column("role", sa.String(16), nullable=False),  # labels, or adjudication of others' labels
    sa.Column("config", AnyText, nullable=False),  # the labelling configuration as created
    sa.Column("config_hash", sa.String(64), nullable=False),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.UniqueConstraint("server", "project", name="one_record_per_project"),
    sqlite_autoincrement=True,
)

pushes_table = sa.Table(
    "pushes",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", AnyText, nullable=False),
    sa.Column("project", sa.Integer, nullable=False, index=True),
    sa.Column("batch", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # planned, then confirmed
    sa.Column("after", sa.Integer, nullable=False),  # tasks of this batch have greater numbers
    sa.Column("keys", Json, nullable=False),  # of the tasks of the batch
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

tasks_table = sa.Table(
    "tasks",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", AnyText, nullable=False),
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
    sa.Column("server", AnyText, nullable=False),
    sa.Column("project", sa.Integer, nullable=False, index=True),
    sa.Column("seen_until", UTCDateTime, nullable=False),  # greatest updated_at of a task read
    # Those read shortly before that: task number -> its updated_at
    sa.Column("recent", Json, nullable=False),
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sqlite_autoincrement=True,
)

quarantine_table = sa.Table(
    "quarantine",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("server", AnyText, nullable=False),
    sa.Column("project", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False, unique=True),  # of the raw record
    sa.Column("reason", AnyText, nullable=False),
    sa.Column("raw", Json, nullable=False),
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


POSTGRES_REFUSAL = (
    "CREATE OR REPLACE FUNCTION align_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only', ERRCODE = '23000'; "
    "END $$"
)


def refusals(table: str, dialect: str) -> list[str]:
    """The database's statements that make a table append-only."""
    if dialect == "postgresql":
        return [
            POSTGRES_REFUSAL,
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION align_append_only()",
        ]
    return [
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ]


for _table in APPEND_ONLY:
    for _dialect in ("sqlite", "postgresql"):
        for _statement in refusals(_table.name, _dialect):
            event.listen(_table, "after_create", sa.DDL(_statement).execute_if(dialect=_dialect))
