"""Several writers and readers at once: nothing is lost, doubled or half seen."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import connect, transactions
from feedback.errors import StoreError
from feedback.schema import Comparison, pair_id
from feedback.store import FeedbackStore
from feedback.tables import events_table

ROUNDS = 60
WRITER = """
import sys
from feedback.schema import Comparison, pair_id
from feedback.store import FeedbackStore
url, name, rounds = sys.argv[1:]
with FeedbackStore(url) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for i in range(int(rounds)):
        store.add_pair(f"p{i}", "x", "y", seed=1)
        store.add_comparison(Comparison(f"p{i}", "x", "y", "a", name))
        # What every writer hears of, as when several processes pull one project.
        store.add_comparison(Comparison(f"p{i}", "x", "y", "b", "all"), annotation=f"all {i}")
        store.add_skip(pair_id(f"p{i}", "x", "y"), "all", annotation=f"skip {i}")
        store.delete_annotation(f"all {i}" if i % 2 else f"skip {i}", {"by": name})
"""
HALF = """
import sys
from dataclasses import asdict
from feedback.records import item_of_pair, new_pair
from feedback.queries import insert_new_items
from feedback.store import FeedbackStore

def work(connection):
    item = item_of_pair(new_pair("half", "x", "y", "", "", {}))
    insert_new_items(connection, {item.id: asdict(item)})
    print("ready", flush=True)
    sys.stdin.readline()

with FeedbackStore(sys.argv[1]) as store:
    store.write(work)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_processes_writing_at_once_lose_and_double_nothing(url: str) -> None:
    writers = [start(WRITER, url, f"ann{i}", str(ROUNDS)) for i in range(4)]
    for writer in writers:  # all create the store at once, then start together
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outcomes = [writer.communicate(timeout=480)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0], outcomes
    with FeedbackStore(url, create=False) as store:
        history = store.history()
        judged = {(c.prompt, c.annotator) for c in store.comparisons() if c.annotator != "all"}
        assert store.counts().pairs == ROUNDS
    assert len(judged) == 4 * ROUNDS
    # Every event of a shared annotation says something else than the one before.
    shared: dict[str, list[str]] = {}
    for event in history:
        if event["annotator"] == "all":
            shared.setdefault(event["annotation"], []).append(event["kind"])
    assert len(shared) == 2 * ROUNDS
    assert all(
        before != after for kinds in shared.values() for before, after in itertools.pairwise(kinds)
    )


def test_a_writer_killed_half_way_leaves_nothing_and_holds_up_nobody(url: str) -> None:
    with FeedbackStore(url) as store:
        writer = start(HALF, url)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        assert store.counts().pairs == 0  # readers do not wait
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        store.add_pair("p", "x", "y")
        assert [pair.prompt for pair in store.pairs()] == ["p"]


def test_a_writer_waits_and_says_so_when_its_turn_does_not_come(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (connect, transactions):
        monkeypatch.setattr(module, "BUSY_SECONDS", 0.3)
    with FeedbackStore(url) as one, FeedbackStore(url) as other:

        def work(connection: sa.Connection) -> None:
            with pytest.raises(StoreError, match=r"writing failed.*(locked|lock timeout)"):
                other.add_pair("q", "x", "y")

        one.write(work)
        other.add_pair("q", "x", "y")
        assert one.counts().pairs == 1


def test_a_reader_sees_one_moment(url: str) -> None:
    count = sa.select(sa.func.count()).select_from(events_table)
    with FeedbackStore(url) as one, FeedbackStore(url) as other:
        one.add_comparison(Comparison("p", "x", "y", "a", "ann"))
        with one.reading() as connection:
            assert connection.scalar(count) == 1
            other.add_comparison(Comparison("p", "x", "y", "a", "bob"))
            assert connection.scalar(count) == 1
        assert one.counts().events == 2


def test_work_that_fails_leaves_nothing(url: str) -> None:
    with FeedbackStore(url) as store:

        def work(connection: sa.Connection) -> None:
            row = {"kind": "skip", "annotation": "1", "item": "nope", "annotator": "ann"}
            moment = {"created_at": sa.func.now(), "recorded_at": sa.func.now()}
            connection.execute(
                sa.insert(events_table).values(**row, **moment, judgement={}, raw={})
            )

        with pytest.raises(StoreError, match=r"the rows do not fit \(.*(?i:foreign key)"):
            store.write(work)
        with pytest.raises(ZeroDivisionError):
            store.write(lambda connection: 1 / 0)
        assert store.counts().events == 0
        assert store.add_pair("p", "x", "y") == pair_id("p", "x", "y")
