"""Opening a feedback store's database: the URL, the file, the pragmas, the format's version."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

from feedback.errors import MissingDependencyError, StoreError
from feedback.tables import FORMAT, VERSION, metadata, revision_table, store_table

BUSY_SECONDS = 30.0  # how long a writer waits for another process's transaction


def open_engine(url: str, create: bool) -> Engine:
    """An engine whose database holds our tables.

    Raises:
        StoreError: the URL is malformed, its folder is missing or read-only, the database cannot
            be reached, is no feedback store, is of a newer version, or is absent with `create`
            off.
        MissingDependencyError: the database's driver is not installed.
    """
    parsed = _parse(url)
    name = parsed.render_as_string(hide_password=True)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite:
        _check_file(name, parsed.database, create)
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}} if sqlite else {}
    try:
        engine = sa.create_engine(parsed, **options)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"feedback store {name}: the driver {error.name!r} is not installed. "
            f"Fix: pip install {error.name}"
        ) from error
    if sqlite:
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    try:
        with engine.connect().execution_options(writes=create) as connection:
            if sqlite and create:
                _use_wal(connection)
            with connection.begin():
                _check_or_create(connection, name, create)
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        engine.dispose()
        raise StoreError(
            f"feedback store {name}: cannot be opened ({getattr(error, 'orig', error)}). "
            "Fix: check that it is a feedback store's database and that you may write to it."
        ) from error
    except StoreError:
        engine.dispose()
        raise
    return engine


def _parse(url: str) -> URL:
    try:
        parsed = sa.engine.make_url(url)
        parsed.get_dialect()
    except sa.exc.ArgumentError as error:
        raise StoreError(
            f"feedback store {url!r} is not a database URL. Fix: write sqlite:///feedback.db, or "
            "another SQLAlchemy URL such as postgresql://user@host/name."
        ) from error
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"feedback store: the driver {error.name!r} is not installed. "
            f"Fix: pip install {error.name}"
        ) from error
    return parsed


def _check_file(name: str, database: str | None, create: bool) -> None:
    """SQLite says 'unable to open database file' for everything; say which it is."""
    if not database or database == ":memory:" or database.startswith("file:"):
        return
    path = Path(database)
    if path.is_dir():
        raise StoreError(f"feedback store {name}: {path} is a folder. Fix: name a file in it.")
    if path.exists():
        return
    if not create:
        raise StoreError(f"feedback store {name}: no such file {path}. Fix: check the path.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise StoreError(
            f"feedback store {name}: {path} cannot be created ({error.strerror}). "
            "Fix: choose a folder you may write to."
        ) from error


def _on_connect(connection: Any, record: object) -> None:
    """Let us begin transactions ourselves (sqlite3's own way begins them too late)."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA foreign_keys=ON")


def _on_begin(connection: Connection) -> None:
    """A writer takes the lock at once: upgrading a reader's lock later fails instead of waiting."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_wal(connection: Connection) -> None:
    """Write-ahead logging lets readers go on while one process writes; it is kept in the file.

    The switch needs the file for itself and ignores SQLite's busy time-out: try until it passes.
    """
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            raw.execute("PRAGMA journal_mode=WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _check_or_create(connection: Connection, name: str, create: bool) -> None:
    tables = set(sa.inspect(connection).get_table_names())
    if not tables and create:
        metadata.create_all(connection)
        connection.execute(sa.insert(store_table).values(format=FORMAT, version=VERSION))
        connection.execute(sa.insert(revision_table).values(version_num=f"{VERSION:04d}"))
        return
    if store_table.name not in tables or "events" not in tables:
        holds = ", ".join(sorted(tables)[:5]) or "no tables"
        raise StoreError(
            f"feedback store {name}: this database is not a feedback store (it holds {holds}). "
            "Fix: give the store a database of its own."
        )
    version = connection.scalar(
        sa.select(store_table.c.version).where(store_table.c.format == FORMAT)
    )
    if version is not None and version < VERSION:
        from feedback.migrations import upgrade  # Alembic takes a while to import

        upgrade(connection, version)
    elif version != VERSION:
        raise StoreError(
            f"feedback store {name}: format version {version}, but this Align reads {VERSION}. "
            "Fix: use the Align that wrote it, or a newer one."
        )
