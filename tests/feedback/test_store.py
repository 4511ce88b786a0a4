from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from feedback.errors import DataError, StoreError
from feedback.schema import Comparison, Correction, pair_id
from feedback.store import FeedbackStore
from feedback.tables import APPEND_ONLY, metadata

NOW = datetime.now(UTC)
CHAT = [{"role": "user", "content": "Where is my parcel? \u202e<b>\U0001f4e6</b>"}]
ONE = Comparison(CHAT, "On its way.", "No idea.", "a", "ann", source_a="sft", reason="clearer")


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


def test_display_order_is_a_fair_coin_decided_by_the_seed(new_url: Callable[[], str]) -> None:
    with FeedbackStore(new_url()) as store:
        for i in range(400):
            store.add_pair(f"p{i}", "x", "y", seed=7)
        shown = [pair.swapped for pair in store.pairs()]
    assert 160 < sum(shown) < 240
    with FeedbackStore(new_url()) as other:
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


HERE = {"server": "http://server", "project": 1, "created_at": NOW, "recorded_at": NOW}
JOURNAL = {  # a row for each table that the store itself does not write
    "projects": {
        "name": "n",
        "kind": "pair",
        "annotator": "",
        "config": "c",
        "config_hash": "h",
        "role": "labels",
    },
    "pushes": {"batch": "b", "state": "planned", "after": 0, "keys": []},
    "tasks": {"key": "k", "item": pair_id(CHAT, ONE.response_a, ONE.response_b), "task": 1},
    "pulls": {"seen_until": NOW, "recent": {}},
    "quarantine": {"fingerprint": "f", "reason": "r", "raw": {}},
}


@pytest.mark.parametrize("table", [table.name for table in APPEND_ONLY])
def test_rows_cannot_be_changed_even_by_sql(url: str, table: str) -> None:
    with FeedbackStore(url) as store:
        store.add_comparison(ONE)
        if row := JOURNAL.get(table):
            into = metadata.tables[table]
            values = {key: value for key, value in (HERE | row).items() if key in into.c}
            store.write(lambda connection: connection.execute(sa.insert(into), values))
    engine = sa.create_engine(url)
    statements = [f"UPDATE {table} SET position=position + 9", f"DELETE FROM {table}"]
    if engine.dialect.name == "postgresql":
        statements.append(f"TRUNCATE {table} CASCADE")
    for statement in statements:
        with (
            pytest.raises(sa.exc.IntegrityError, match="append-only"),
            engine.begin() as connection,
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_every_character_of_a_text_comes_back(url: str) -> None:
    text = "".join(map(chr, [*range(256), 0x2028, 0xFFFF, 0x1F4E6]))
    said = replace(ONE, response_b=text, reason=text)
    with FeedbackStore(url) as store:
        store.add_comparison(said, raw={text: [text]})
        (kept,) = store.comparisons()
        (event,) = store.history()
    assert (kept.response_b, kept.reason, event["raw"]) == (text, text, {text: [text]})


@pytest.mark.parametrize(
    "name", ["a\x00nn", "\x00", "\x000", "a\u2400", "\u24000\x00\u2400\u2400\x000"]
)
def test_every_name_comes_back(url: str, name: str) -> None:
    with FeedbackStore(url) as store:
        for _ in range(2):
            store.add_comparison(replace(ONE, annotator=name), annotation=f"1{name}")
        store.add_pair("p", "x", "y", round=name)
        (event,) = store.history(f"1{name}")
        assert (event["annotator"], event["annotation"]) == (name, f"1{name}")
        assert store.comparisons()[0].annotator == name
        assert store.pairs()[1].round == name


def test_what_python_calls_json_is_kept_and_known_again(url: str) -> None:
    with FeedbackStore(url) as store:
        for _ in range(2):
            odd = {"time": float("nan"), "far": float("inf"), "both": (1, 2), "n": 10**30}
            store.add_comparison(ONE, annotation="7", raw=odd)
        (event,) = store.history()
    assert (event["raw"]["far"], event["raw"]["both"]) == (float("inf"), [1, 2])
    assert event["raw"]["n"] == 10**30
    assert event["raw"]["time"] != event["raw"]["time"]


def test_long_ids_are_kept_whole(url: str) -> None:
    name = f"https://{'sub.' * 60}example.org/7/1"
    with FeedbackStore(url) as store:
        store.add_comparison(ONE, annotation=name)
        assert store.history()[0]["annotation"] == name


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


def test_a_seed_past_the_column_is_refused(url: str) -> None:
    with FeedbackStore(url) as store:
        store.add_pair("p", "x", "y", seed=2**63 - 1)
        with pytest.raises(DataError, match="cannot be stored"):
            store.add_pair("q", "x", "y", seed=2**63)


def test_events_of_unknown_pairs_and_annotations_are_refused(url: str) -> None:
    with FeedbackStore(url) as store:
        with pytest.raises(StoreError, match="no pair 'nope'"):
            store.add_skip("nope", "ann")
        with pytest.raises(StoreError, match="no annotation '9'"):
            store.delete_annotation("9")


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


def test_a_late_reading_of_an_older_version_is_no_news(url):
    """Two pulls overlap: one read version 1, and writes after the other wrote version 2."""
    one, two = ({"updated_at": f"2026-01-02T03:04:0{n}Z"} for n in (1, 2))
    with FeedbackStore(url) as store:
        store.add_comparison(Comparison("p", "x", "y", "b", "ann"), annotation="1", raw=two)
        store.add_comparison(Comparison("p", "x", "y", "a", "ann"), annotation="1", raw=one)
        pair = store.pairs()[0].id
        store.add_skip(pair, "ann", annotation="1", raw=one)
        assert [c.label for c in store.comparisons()] == ["b"]
        assert store.counts().events == 1
        # Where either does not say when, the order of recording is all there is.
        store.add_comparison(Comparison("p", "x", "y", "a", "ann"), annotation="1")
        store.add_comparison(Comparison("p", "x", "y", "tie", "ann", 0), annotation="1", raw=one)
        assert [c.label for c in store.comparisons()] == ["tie"]
        store.add_skip(pair, "ann", annotation="1", raw=two)
        assert store.comparisons() == []


def test_many_skips_are_one_transaction(url):
    with FeedbackStore(url) as store:
        pair = store.add_pair("p", "x", "y")
        with pytest.raises(StoreError, match="no pair 'nope'"):
            store.add_skips([(pair, "ann", "1", None), ("nope", "ann", "2", None)])
        assert store.counts().skips == 0
        assert store.add_skips([(pair, "ann", "1", None), (pair, "bob", "2", {"k": 1})]) == [
            "1",
            "2",
        ]
        store.add_skips([(pair, "ann", "1", None)])
        assert (store.counts().skips, store.counts().events) == (2, 2)
