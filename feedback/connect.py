"""Opening a feedback store's database: the URL, the file, the pragmas, the format's version."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine

from feedback.errors import MissingDependencyError, StoreError
from feedback.tables import FORMAT, VERSION, metadata, revision_table, store_table
from feedback.transactions import BUSY_SECONDS, cause, follow_transactions, writing

POSTGRES = ("postgresql", "postgres")  # names without a driver; ours is psycopg
INSTALL = {"psycopg": "'align-rlhf[postgres]'"}


def open_engine(url: str, create: bool) -> Engine:
    """An engine whose database holds our tables.

    Raises:
        StoreError: the URL is malformed or of another make than SQLite and PostgreSQL, its folder
            is missing or read-only, the database cannot be reached, is no feedback store, is of a
            newer version, or is absent with `create` off.
        MissingDependencyError: the database's driver is not installed.
    """
    parsed = _parse(url)
    name = shown(parsed)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite:
        _check_file(name, parsed.database, create)
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
    else:
        options = {"pool_pre_ping": True}  # a watch outlives a restart of the server
    try:
        engine = sa.create_engine(parsed, **options)
    except ImportError as error:
        raise _missing(name, error) from error
    if sqlite:
        event.listen(engine, "connect", _on_connect)
    follow_transactions(engine)
    try:
        with engine.connect() as connection:
            ready = _is_ready(connection, name, create)
        if sqlite and create:
            with engine.connect() as connection:
                _use_wal(connection)
        if not ready:
            with writing(engine) as connection:
                _create_or_migrate(connection)
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        engine.dispose()
        raise StoreError(
            f"feedback store {name}: cannot be opened ({cause(error)}). "
            "Fix: check that it is a feedback store's database and that you may write to it."
        ) from error
    except StoreError:
        engine.dispose()
        raise
    return engine


def shown(url: URL) -> str:
    """A URL as messages may show it: passwords are hidden, in the query too."""
    if "password" in url.query:
        url = url.update_query_dict({"password": "hidden"})
    return url.render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    # A URL that cannot be read may hold a password all the same.
    safe = re.sub(r":[^:@/]*@", ":***@", re.sub(r"password=[^&]*", "password=***", url))
    problem = (
        f"feedback store {safe!r} is not a database URL. Fix: write sqlite:///feedback.db, or "
        "postgresql://user@host/name."
    )
    try:
        parsed = sa.engine.make_url(url)
        if parsed.drivername in POSTGRES:
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
    except (sa.exc.ArgumentError, ValueError):
        raise StoreError(problem) from None
    except ImportError as error:
        raise _missing("", error) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"feedback store {shown(parsed)}: {parsed.get_backend_name()} is not supported. "
            "Fix: use SQLite or PostgreSQL."
        )
    if "@" in (parsed.host or ""):
        raise StoreError("feedback store: the URL has two @. Fix: in a password, write it %40.")
    return parsed


def _missing(name: str, error: ImportError) -> MissingDependencyError:
    driver = error.name or "psycopg"  # psycopg without its library names nothing
    return MissingDependencyError(
        f"feedback store{f' {name}' if name else ''}: the driver {driver!r} is not installed. "
        f"Fix: pip install {INSTALL.get(driver, driver)}"
    )


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


def _is_ready(connection: Connection, name: str, create: bool) -> bool:
    """Whether the tables are there in this format; otherwise they can be made or migrated.

    Raises:
        StoreError: something else is there, or a newer format, or nothing with `create` off.
    """
    tables = set(sa.inspect(connection).get_table_names())
    if not tables and create:
        return False
    if store_table.name not in tables or "events" not in tables:
        holds = ", ".join(sorted(tables)[:5]) or "no tables"
        raise StoreError(
            f"feedback store {name}: this database is not a feedback store (it holds {holds}). "
            "Fix: give the store a database of its own."
        )
    version = _version(connection)
    if version is None or version > VERSION:
        raise StoreError(
            f"feedback store {name}: format version {version}, but this Align reads {VERSION}. "
            "Fix: use the Align that wrote it, or a newer one."
        )
    return version == VERSION


def _create_or_migrate(connection: Connection) -> None:
    """Make what is missing; nothing, where another process was faster."""
    if sa.inspect(connection).get_table_names():
        from feedback.migrations import upgrade  # Alembic takes a while to import

        upgrade(connection, _version(connection) or VERSION)
        return
    metadata.create_all(connection)
    connection.execute(sa.insert(store_table).values(format=FORMAT, version=VERSION))
    connection.execute(sa.insert(revision_table).values(version_num=f"{VERSION:04d}"))


def _version(connection: Connection) -> int | None:
    query = sa.select(store_table.c.version).where(store_table.c.format == FORMAT)
    version: int | None = connection.scalar(query)
    return version
