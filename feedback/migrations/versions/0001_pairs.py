"""The first format: pairs and events."""

import sqlalchemy as sa
from alembic import op

from feedback.tables import UTCDateTime, refusals

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "store",
        sa.Column("format", sa.String(32), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "pairs",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("response_a", sa.Text, nullable=False),
        sa.Column("response_b", sa.Text, nullable=False),
        sa.Column("source_a", sa.Text, nullable=False),
        sa.Column("source_b", sa.Text, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("swapped", sa.Boolean, nullable=False),
        sa.Column("round", sa.Text, nullable=False),
        sa.Column("created_at", UTCDateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "events",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("annotation", sa.String(128), nullable=False, index=True),
        sa.Column("pair", sa.String(32), sa.ForeignKey("pairs.id"), nullable=False, index=True),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("judgement", sa.JSON, nullable=False),
        sa.Column("raw", sa.JSON, nullable=False),
        sa.Column("created_at", UTCDateTime, nullable=False),
        sa.Column("recorded_at", UTCDateTime, nullable=False),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "sqlite":
        for table in ("pairs", "events"):
            for statement in refusals(table, "sqlite"):
                op.execute(statement)
    op.execute("INSERT INTO store (format, version) VALUES ('align-feedback', 1)")
