"""Transactions of a feedback store, and what their failures are called.

Writers run one after another, so what a transaction has looked up stays true until it commits:
check-then-insert cannot race. A reader sees the state of one moment and waits for nobody.
`follow_transactions` makes every transaction of an engine begin that way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from feedback.errors import DataError, StoreError

Result = TypeVar("Result")

BUSY_SECONDS = 30.0  # how long a writer waits for another one's transaction
WRITERS = 0x616C69676E  # "align": the number of PostgreSQL's advisory lock that writers hold


class Transactions:
    """Reads and writes on one engine; `name` is what messages call the store."""

    def __init__(self, engine: Engine, name: str):
        """Use an engine that `follow_transactions` has seen."""
        self._engine, self._name = engine, name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that reads one moment's state; failures become `StoreError`."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"feedback store {self._name}: reading failed ({cause(error)}). Fix: check that "
                "the database is still there and whole."
            ) from error

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in one transaction, alone among writers."""
        try:
            with writing(self._engine) as connection:
                return work(connection)
        except sa.exc.IntegrityError as error:
            raise StoreError(
                f"feedback store {self._name}: the rows do not fit ({cause(error)})."
            ) from error
        except sa.exc.DataError as error:
            raise self._unstorable(error) from error
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"feedback store {self._name}: writing failed ({cause(error)}). Nothing of this "
                "call was kept. Fix: check the disk and permissions, then call again."
            ) from error
        except (sa.exc.StatementError, UnicodeEncodeError, OverflowError) as error:
            raise self._unstorable(error) from error

    def _unstorable(self, error: Exception) -> DataError:
        return DataError(
            f"feedback store {self._name}: a value cannot be stored ({cause(error)}). Fix: use "
            "plain JSON values (text, numbers, lists, mappings)."
        )


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the writers' lock until it commits."""
    with (
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        yield connection


def follow_transactions(engine: Engine) -> None:
    """Make the engine's transactions begin as this page says."""
    begin = _begin_sqlite if engine.dialect.name == "sqlite" else _begin_postgresql
    event.listen(engine, "begin", begin)


def cause(error: Exception) -> str:
    """What the driver said, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the lock at once: upgrading a reader's lock later fails instead of waiting."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    """A writer waits for its turn first, so that its statements see all that is committed."""
    if not _writes(connection):
        level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        connection.exec_driver_sql(level)
        return
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("writes", False))
