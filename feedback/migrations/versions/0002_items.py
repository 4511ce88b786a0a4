"""Pairs become items of several kinds, and labelling servers get a journal.

The old tables are copied into new ones and dropped: SQLite cannot move a foreign key.
"""

import sqlalchemy as sa
from alembic import op

from feedback.tables import APPEND_ONLY, metadata

revision = "0002"
down_revision = "0001"

old = sa.MetaData()
pairs = sa.Table(
    "pairs",
    old,
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(32)),
    sa.Column("prompt", sa.JSON),
    sa.Column("response_a", sa.Text),
    sa.Column("response_b", sa.Text),
    sa.Column("source_a", sa.Text),
    sa.Column("source_b", sa.Text),
    sa.Column("columns", sa.JSON),
    sa.Column("seed", sa.BigInteger),
    sa.Column("swapped", sa.Boolean),
    sa.Column("round", sa.Text),
    sa.Column("created_at", sa.DateTime),
)
CHUNK = 1000


def upgrade() -> None:
    """Make the new tables, copy every row, drop the old ones."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":  # a renamed table keeps its triggers, and their names
        for verb in ("update", "delete"):
            op.execute(f"DROP TRIGGER events_no_{verb}")
    for name in ("annotation", "pair"):
        op.drop_index(f"ix_events_{name}", "events")
    op.rename_table("events", "old_events")
    tables = {table.name: table for table in APPEND_ONLY}
    metadata.create_all(bind, tables=list(APPEND_ONLY))
    rows = bind.execute(sa.select(pairs).order_by(pairs.c.position)).mappings().all()
    for start in range(0, len(rows), CHUNK):
        op.bulk_insert(tables["items"], [_item(row) for row in rows[start : start + CHUNK]])
    op.execute(
        "INSERT INTO events (position, kind, annotation, item, annotator, judgement, raw, "
        "created_at, recorded_at) SELECT position, kind, annotation, pair, annotator, judgement, "
        "raw, created_at, recorded_at FROM old_events ORDER BY position"
    )
    if bind.dialect.name == "postgresql":  # rows with a position of their own do not move it on
        for name in ("items", "events"):
            op.execute(
                f"SELECT setval(pg_get_serial_sequence('{name}', 'position'), max(position)) "
                f"FROM {name} HAVING max(position) IS NOT NULL"
            )
    op.drop_table("old_events")
    op.drop_table("pairs")
    op.execute("UPDATE store SET version = 2 WHERE format = 'align-feedback'")


def _item(row: sa.RowMapping) -> dict[str, object]:
    kept = ("position", "id", "prompt", "columns", "seed", "round", "created_at")
    return {key: row[key] for key in kept} | {
        "kind": "pair",
        "responses": [row["response_a"], row["response_b"]],
        "sources": [row["source_a"], row["source_b"]],
        "shown": [1, 0] if row["swapped"] else [0, 1],
    }
