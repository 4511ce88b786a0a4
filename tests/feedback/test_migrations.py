"""A store of the first format opens as one of this format, with everything it held."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from feedback.connect import open_engine
from feedback.schema import pair_id
from feedback.store import FeedbackStore
from feedback.tables import VERSION, metadata

CHAT = [{"role": "user", "content": "Is it open? \U0001f4e6"}]


def first_format(path):
    """A database as the first format's code left it: no record of Alembic."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "feedback:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        for number, swapped in ((1, True), (2, False)):
            connection.exec_driver_sql(
                "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    pair_id(CHAT, f"yes {number}", "no"),
                    json.dumps(CHAT),
                    f"yes {number}",
                    "no",
                    "sft",
                    "base",
                    '{"k": [1]}',
                    7,
                    swapped,
                    "r1",
                    "2026-01-02 03:04:05.000000",
                ),
            )
        said = {"strength": 1, "swapped": False, "lead_time": 2.5, "reason": "why"}
        for number, (annotation, kind, label) in enumerate(
            [("x", "annotation", "a"), ("x", "annotation", "b"), ("y", "skip", None)], 1
        ):
            connection.exec_driver_sql(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    kind,
                    annotation,
                    pair_id(CHAT, "yes 1", "no"),
                    "ann",
                    json.dumps(said | {"label": label} if label else {}),
                    '{"raw": 1}',
                    "2026-01-02 03:04:05.000000",
                    "2026-01-02 03:04:06.000000",
                ),
            )
    engine.dispose()


def test_nothing_is_lost_on_the_way_to_this_format(tmp_path):
    first_format(tmp_path / "old.db")
    with FeedbackStore(f"sqlite:///{tmp_path / 'old.db'}", create=False) as store:
        one, two = store.pairs()
        (kept,) = store.comparisons()
        history = store.history()
    assert (one.swapped, two.swapped, one.response_a) == (True, False, "yes 1")
    assert (one.source_b, one.columns, one.round, one.seed) == ("base", {"k": [1]}, "r1", 7)
    assert (kept.label, kept.reason, kept.lead_time, kept.pair) == ("b", "why", 2.5, one.id)
    assert [(e["kind"], e["position"]) for e in history] == [
        ("annotation", 1),
        ("annotation", 2),
        ("skip", 3),
    ]
    with FeedbackStore(f"sqlite:///{tmp_path / 'old.db'}") as store:  # a second opening, as usual
        store.add_skip(one.id, "bob")
        assert store.counts().events == 4


def test_the_migrations_make_the_tables_of_a_new_store(tmp_path):
    first_format(tmp_path / "old.db")
    for name in ("old.db", "new.db"):
        engine = open_engine(f"sqlite:///{tmp_path / name}", create=True)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []
            assert context.get_current_revision() == f"{VERSION:04d}"
            triggers = connection.exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
            )
            assert "items_no_delete" in set(triggers.scalars())
        engine.dispose()
