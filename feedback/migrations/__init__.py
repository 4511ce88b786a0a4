"""Migrations of a feedback store, run by Alembic when an older store is opened.

`versions/` holds one step per format version; the newest gives exactly `feedback.tables` (a test
compares them).
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection


def upgrade(connection: Connection, version: int) -> None:
    """Bring a store of an older format version to this one, inside the connection's transaction.

    Args:
        connection: in a transaction that the caller commits.
        version: what the store says it is.
    """
    config = Config()
    config.set_main_option("script_location", "feedback:migrations")
    config.attributes["connection"] = connection
    if version == 1:  # written before Alembic kept count
        command.stamp(config, "0001")
    command.upgrade(config, "head")
