import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.errors import DataError, MissingDependencyError, StoreError
from feedback.schema import Comparison, Correction, pair_id
from feedback.store import FeedbackStore
from feedback.tables import metadata, store_table

CHAT = [{"role": "user", "content": "Where is my parcel? \u202e<b>\U0001f4e6</b>"}]
ONE = Comparison(CHAT, "On its way.", "No idea.", "a", "ann", source_a="sft", reason="clearer")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'feedback.db'}"


def test_a_pair_comes_back_as_it_was_issued(url: str) -> None:
    with FeedbackStore(url) as store:
        name = store.add_pair(
            CHAT, "a\x00\n", "b" * 50_000, "sft", "base", {"facts": [1, {"x": None}]}, seed=3
        )
    with FeedbackStore(url, create=False) as store:
        (pair,) = store.pairs()
    assert pair.id == name == pair_id(CHAT, "a\x00\n", "b" * 50_000)
    assert (pair.prompt, pair.response_a, pair.response_b) == (CHAT, "a\x00\n", "b" * 50_000)
    assert (pair.source_a, pair.source_b, pair.seed) == ("sft", "base", 3)
    assert pair.columns == {"facts": [1, {"x": None}]}
    assert pair.created_at.utcoffset() is not None


def test_issuing_a_pair_again_even_turned_round_changes_nothing(url: str) -> None:
    with FeedbackStore(url) as store:
        first = store.add_pair("p", "x", "y", seed=1)
        before = store.pairs()
        assert store.add_pair("p", "y", "x", seed=2) == first
        assert store.pairs() == before


def test_display_order_is_a_fair_coin_decided_by_the_seed(url: str) -> None:
    with FeedbackStore(url) as store:
        for i in range(400):
            store.add_pair(f"p{i}", "x", "y", seed=7)
        shown = [pair.swapped for pair in store.pairs()]
    assert 160 < sum(shown) < 240
    with FeedbackStore(f"{url}2") as other:
        for i in range(20):
            other.add_pair(f"p{i}", "x", "y", seed=7)
        assert [pair.swapped for pair in other.pairs()] == shown[:20]


def test_a_comparison_brings_its_pair_and_keeps_every_field(url: str) -> None:
    item = replace(ONE, lead_time=3.5, strength=2, swapped=True)
    with FeedbackStore(url) as store:
        store.add_comparison(item, raw={"id": 7})
        (kept,) = store.comparisons()
        assert kept == replace(item, pair=store.pairs()[0].id)
        assert store.history()[0]["raw"] == {"id": 7}


def test_a_comparison_turned_round_is_stored_in_the_pairs_own_order(url: str) -> None:
    with FeedbackStore(url) as store:
        store.add_pair(CHAT, "No idea.", "On its way.")
        store.add_comparison(replace(ONE, swapped=True))
        (kept,) = store.comparisons()
    assert (kept.response_a, kept.label, kept.swapped) == ("No idea.", "b", False)


def test_later_versions_win_and_earlier_ones_stay(url: str) -> None:
    with FeedbackStore(url) as store:
        store.add_comparison(ONE, annotation="7")
        store.add_comparison(replace(ONE, annotator="bob"))
        store.add_comparison(replace(ONE, label="b"), annotation="7")
        assert [(c.annotator, c.label) for c in store.comparisons()] == [("ann", "b"), ("bob", "a")]
        assert [e["judgement"]["label"] for e in store.history("7")] == ["a", "b"]


def test_the_same_version_twice_is_one_event(url: str) -> None:
    with FeedbackStore(url) as store:
        for _ in range(3):
            store.add_comparison(ONE, annotation="7", raw={"v": 1})
        assert store.counts().events == 1
        store.add_comparison(ONE, annotation="7", raw={"v": 2})
        assert store.counts().events == 2
        assert store.counts().comparisons == 1


def test_deletions_and_skips_are_events_that_hide_a_judgement(url: str) -> None:
    with FeedbackStore(url) as store:
        store.add_comparison(ONE, annotation="7")
        pair = store.pairs()[0].id
        store.delete_annotation("7")
        store.delete_annotation("7")  # deleting twice is one event
        store.add_skip(pair, "bob", annotation="8", raw={"was_cancelled": True})
        assert store.comparisons() == []
        assert [event["kind"] for event in store.history()] == ["annotation", "deletion", "skip"]
        counts = store.counts()
        assert (counts.pairs, counts.comparisons, counts.skips, counts.events) == (1, 0, 1, 3)
        store.add_comparison(ONE, annotation="7")  # deleted and created again
        store.add_comparison(replace(ONE, annotator="bob"), annotation="8")  # skipped, then judged
        assert [c.annotator for c in store.comparisons()] == ["ann", "bob"]
        assert store.counts().annotators == 2


def test_rows_cannot_be_changed_even_by_sql(url: str) -> None:
    with FeedbackStore(url) as store:
        store.add_comparison(ONE)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        for statement in ("UPDATE events SET annotator='x'", "DELETE FROM items"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_a_batch_is_kept_whole_or_not_at_all(url: str) -> None:
    with FeedbackStore(url) as store:
        with pytest.raises(DataError, match="label 'A'"):
            store.add_comparisons([ONE, replace(ONE, annotator="bob", label="A")])  # type: ignore[arg-type]
        assert store.counts().events == store.counts().pairs == 0
        with pytest.raises(ValueError, match="2 comparisons, 1 annotations"):
            store.add_comparisons([ONE, ONE], annotations=["7"])


@pytest.mark.parametrize(
    ("response", "columns", "message"),
    [
        ("x", {}, "two different answers, but both are 'x'"),
        ("\ud800", {}, "surrogates"),
        ("y", {"bad": {1, 2}}, "set is not JSON serializable"),
    ],
)
def test_a_pair_that_cannot_be_stored_is_refused(
    url: str, response: str, columns: dict, message: str
) -> None:
    with FeedbackStore(url) as store, pytest.raises(DataError, match=message):
        store.add_pair("p", "x", response, columns=columns)


def test_events_of_unknown_pairs_and_annotations_are_refused(url: str) -> None:
    with FeedbackStore(url) as store:
        with pytest.raises(StoreError, match="no pair 'nope'"):
            store.add_skip("nope", "ann")
        with pytest.raises(StoreError, match="no annotation '9'"):
            store.delete_annotation("9")


@pytest.mark.parametrize("bad", ["", "feedback.db", "sqlite//x"])
def test_a_bad_url_is_named_with_a_good_one(bad: str) -> None:
    with pytest.raises(StoreError, match=r"not a database URL.*sqlite:///feedback\.db"):
        FeedbackStore(bad)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(StoreError, match="not a database URL"):
        FeedbackStore("nodatabase://host/name")
    with pytest.raises(MissingDependencyError, match="pip install pg8000"):
        FeedbackStore("postgresql+pg8000://host/name")


def test_a_missing_store_is_not_created_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        FeedbackStore(f"sqlite:///{tmp_path}/none.db", create=False)
    assert not (tmp_path / "none.db").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        FeedbackStore(f"sqlite:///{tmp_path}/file/feedback.db")
    with pytest.raises(StoreError, match="is a folder"):
        FeedbackStore(f"sqlite:///{tmp_path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        FeedbackStore(f"sqlite:///{tmp_path}/feedback.db")


def test_other_databases_and_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.db", tmp_path / "other.db"
    text.write_text("these are my notes, not a database\n" * 40)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    for path, message in ((text, "file is not a database"), (other, "not a feedback.*songs")):
        before = path.read_bytes()[100:]
        with pytest.raises(StoreError, match=message):
            FeedbackStore(f"sqlite:///{path}")
        assert path.read_bytes()[100:] == before


def test_a_newer_format_is_refused(url: str) -> None:
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(store_table).values(format="align-feedback", version=99))
    with pytest.raises(StoreError, match="version 99"):
        FeedbackStore(url)


def test_sqlite_runs_with_a_write_ahead_log(url: str) -> None:
    FeedbackStore(url).close()
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


WRITER = """
import sys
from feedback.schema import Comparison
from feedback.store import FeedbackStore
url, name = sys.argv[1:]
with FeedbackStore(url) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(100):
        store.add_pair(f"p{i}", "x", "y", seed=1)
        store.add_comparison(Comparison(f"p{i}", "x", "y", "a", name))
"""


def test_processes_writing_at_once_lose_and_double_nothing(url: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, f"ann{i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for i in range(3)
    ]
    for writer in writers:  # all create the store at once, then start together
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    outcomes = [writer.communicate("go\n", timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], outcomes
    with FeedbackStore(url, create=False) as store:
        counts = store.counts()
        judged = {(c.prompt, c.annotator) for c in store.comparisons()}
    assert (counts.pairs, counts.comparisons, counts.annotators) == (100, 300, 3)
    assert len(judged) == 300


def test_a_correction_belongs_to_the_pair_that_comes_with_it(url: str) -> None:
    pair = pair_id(CHAT, ONE.response_a, ONE.response_b)
    better = Correction(CHAT, ONE.response_a, "On its way, until Monday.", "ann", item=pair)
    with FeedbackStore(url) as store:
        for _ in range(2):
            store.add_judgements([better, ONE], annotations=["7c", "7"])
        assert [item.kind for item in store.items()] == ["pair"]
        assert store.counts().events == 2
        (kept,) = [j for j in store.judgements() if isinstance(j, Correction)]
        assert (kept.response, kept.item) == (ONE.response_a, pair)


def test_an_adjudication_settles_a_pair_and_the_votes_stay(url: str) -> None:
    with FeedbackStore(url) as store:
        store.add_comparisons([ONE, replace(ONE, annotator="bob", label="b")])
        other = replace(ONE, response_b="Somewhere.")
        store.add_comparison(other)
        store.add_judgements([replace(ONE, annotator="lead", label="tie")], adjudicated=True)
        assert [c.annotator for c in store.comparisons()] == ["ann", "bob", "ann"]
        settled = {(c.response_b, c.annotator, c.label) for c in store.settled()}
        assert settled == {("Somewhere.", "ann", "a"), ("No idea.", "lead", "tie")}
