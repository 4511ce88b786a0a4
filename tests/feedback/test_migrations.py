"""A store of the first format opens as one of this format, with everything it held."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from feedback.connect import open_engine
from feedback.schema import pair_id
from feedback.store import FeedbackStore
from feedback.tables import APPEND_ONLY, VERSION, metadata

TRIGGERS = {
    "sqlite": "SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal",
}
CHAT = [{"role": "user", "content": "Is it open? \U0001f4e6"}]


def first_format(url, rows=True):
    """A database as the first format's code left it: no record of Alembic."""
    engine = sa.create_engine(url)
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", "feedback:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("DROP TABLE alembic_version")
        for number, swapped in ((1, True), (2, False)) if rows else ():
            connection.exec_driver_sql(
                f"INSERT INTO pairs VALUES ({', '.join([mark] * 12)})",
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
            [("x", "annotation", "a"), ("x", "annotation", "b"), ("y", "skip", None)]
            if rows
            else [],
            1,
        ):
            connection.exec_driver_sql(
                f"INSERT INTO events VALUES ({', '.join([mark] * 9)})",
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


def test_nothing_is_lost_on_the_way_to_this_format(url):
    first_format(url)
    with FeedbackStore(url, create=False) as store:
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
    with FeedbackStore(url) as store:  # a second opening, as usual
        store.add_skip(one.id, "bob")
        store.add_pair(CHAT, "new", "pair")
        assert [event["position"] for event in store.history()] == [1, 2, 3, 4]
        assert [pair.response_a for pair in store.pairs()] == ["yes 1", "yes 2", "new"]


def test_two_that_open_an_old_store_at_once_migrate_it_once(url):
    first_format(url)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: FeedbackStore(url, create=False), range(4)))
    for store in stores:
        assert store.counts().events == 3
        store.close()


def test_an_empty_store_of_the_first_format_takes_new_pairs(url):
    first_format(url, rows=False)
    with FeedbackStore(url) as store:
        store.add_pair(CHAT, "yes", "no")
        assert len(store.pairs()) == 1


def test_the_migrations_make_the_tables_of_a_new_store(new_url):
    old, new = new_url(), new_url()
    first_format(old)
    triggers = []
    for url in (old, new):
        engine = open_engine(url, create=True)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []
            assert context.get_current_revision() == f"{VERSION:04d}"
            triggers.append(set(connection.exec_driver_sql(TRIGGERS[engine.dialect.name])))
        engine.dispose()
    assert triggers[0] == triggers[1]
    assert {table for (table,) in triggers[0]} == {table.name for table in APPEND_ONLY}
