"""One at a time: a lock with a name, beside a feedback store, that its holder's end releases.

On PostgreSQL it is an advisory lock of the session, so it holds across machines. On SQLite it is a
file lock in the temporary folder, since all writers of a file are on one machine. Either is gone
with the process that held it, kill -9 included: nothing stays locked.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from feedback.errors import StoreError
from feedback.store import FeedbackStore


@contextmanager
def exclusive(store: FeedbackStore, name: str) -> Iterator[None]:
    """Hold the lock `name` of a store.

    Raises:
        StoreError: somebody else holds it.
    """
    digest = hashlib.sha256(f"{_place(store)}\n{name}".encode()).digest()
    held = _advisory if store.url.startswith("postgres") else _file
    with held(store, digest, name):
        yield


@contextmanager
def _advisory(store: FeedbackStore, digest: bytes, name: str) -> Iterator[None]:
    number = int.from_bytes(digest[:8], signed=True)
    with store.reading() as connection:
        if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(number))):
            raise _busy(store, name)
        try:
            yield
        finally:
            connection.scalar(sa.select(sa.func.pg_advisory_unlock(number)))


@contextmanager
def _file(store: FeedbackStore, digest: bytes, name: str) -> Iterator[None]:
    import fcntl  # not on Windows, where Label Studio's commands are not offered

    path = Path(tempfile.gettempdir()) / f"align-{digest.hex()[:32]}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _busy(store, name) from None
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def _place(store: FeedbackStore) -> str:
    """The store, however its address is written."""
    url = sa.engine.make_url(store.url)
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        return str(Path(str(url.database)).resolve())
    return f"{url.host}:{url.port}/{url.database}"


def _busy(store: FeedbackStore, name: str) -> StoreError:
    return StoreError(
        f"feedback store {store.url}: another process is at it now ({name}). Fix: wait until it "
        "is done, then run this again."
    )
