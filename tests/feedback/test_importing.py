"""Exports of projects that the store pulls from too: one id for one annotation, on any database."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from feedback.errors import DataError
from feedback.formats import read_feedback
from feedback.importing import Imported, import_feedback
from feedback.labelstudio.journal import Batch, Journal, Project, add_project
from feedback.labelstudio.parse import parse_annotation
from feedback.labelstudio.tasks import task_data
from feedback.records import new_item
from feedback.schema import Item
from feedback.store import FeedbackStore

ITEMS = [new_item("pair", f"question {n}", ("x", "y"), seed=n) for n in range(4)]
SERVER = "http://label_studio.example.org:8080"
TASK = 11  # of the first item; the next ones follow


def known(store: FeedbackStore, *, server: str = SERVER, number: int = 7, **settings) -> Project:
    """A project with a task for each item, as a push leaves it in the store."""
    store.add_items(ITEMS)
    project = Project(server, number, "people", "pair", "", "<View/>", "hash", **settings)
    add_project(store, project)
    tasks = {item.id: TASK + n for n, item in enumerate(ITEMS)}
    Journal(store, project).confirm(Batch("batch", tuple(tasks), 0), tasks)
    return project


def annotation(number: int, level: str = "a1", minute: int = 0, **changes) -> dict:
    said = [("pref", "choices", {"choices": [level]})]
    if corrected := changes.pop("corrected", None):
        said.append(("correction", "textarea", {"text": [corrected]}))
    moment = f"2026-01-02T03:{minute:02}:05.123456Z"
    return {
        "id": number,
        "completed_by": 3,
        "result": [{"from_name": n, "to_name": "chat", "type": t, "value": v} for n, t, v in said],
        "was_cancelled": False,
        "created_at": "2026-01-02T03:00:05.123456Z",
        "updated_at": moment,
        "lead_time": 2.5,
        "task": TASK,
        "project": 7,
        "unique_id": f"0000-{number}",
    } | changes


def pull_in(store: FeedbackStore, project: Project, raw: dict, item: Item = ITEMS[0]) -> None:
    """Record an annotation the way a pull does: named, and raw as the other call gives it."""
    raw = {key: value for key, value in raw.items() if key != "unique_id"} | {
        "created_username": "a"
    }
    name = f"{Journal(store, project).prefix}{raw['id']}"
    if raw["was_cancelled"]:
        store.add_skip(item.id, "ann@example.org", annotation=name, raw=raw)
        return
    judgements = parse_annotation(raw, item, item.id, "ann@example.org")
    names = [name, name + "#correction"][: len(judgements)]
    store.add_judgements(judgements, annotations=names, raws=[raw] * len(names))


def export_of(path: Path, *annotations: dict, items: list[Item] = ITEMS) -> Path:
    """Label Studio's export of some annotations, each with its task."""
    tasks = []
    for number, item in enumerate(items, TASK):
        mine = [one for one in annotations if one["task"] == number]
        tasks.append({"id": number, "project": 7, "data": task_data(item, item.id)})
        tasks[-1]["annotations"] = mine
    path.write_text(json.dumps(tasks))
    return path


@pytest.fixture
def bring(url: str, tmp_path: Path):
    """`bring(store, *annotations)`: import an export of these."""

    def run(store: FeedbackStore, *annotations: dict, **where) -> Imported:
        return import_feedback(
            store, read_feedback(export_of(tmp_path / "e.json", *annotations, **where))
        )

    return run


def test_what_was_pulled_is_not_imported_again(url: str, bring) -> None:
    one = annotation(1, corrected="better")
    skip = annotation(2, was_cancelled=True, result=[], task=TASK + 1)
    with FeedbackStore(url) as store:
        project = known(store)
        pull_in(store, project, one)
        pull_in(store, project, skip, ITEMS[1])
        before = store.history()
        assert bring(store, one, skip) == Imported(0, 0)
        assert store.history() == before


def test_a_later_version_is_news_and_an_earlier_one_is_not(url: str, bring) -> None:
    with FeedbackStore(url) as store:
        project = known(store)
        pull_in(store, project, annotation(1, "a1", minute=5, corrected="better"))
        assert bring(store, annotation(1, "b1", minute=4)) == Imported(0, 0)
        assert bring(store, annotation(1, "b1", minute=6)) == Imported(1, 0)
        (kept,) = store.judgements()  # the correction went with the version that had it
        assert kept.annotator == "ann@example.org"  # known from the pull; the export says 3
        assert bring(store, annotation(1, "b1", minute=6)) == Imported(0, 0)


def test_what_was_deleted_on_the_server_stays_deleted(url: str, bring) -> None:
    with FeedbackStore(url) as store:
        project = known(store)
        pull_in(store, project, annotation(1))
        store.delete_annotation(f"{SERVER}/7/1", store.history()[0]["raw"])
        assert bring(store, annotation(1)) == Imported(0, 0)
        assert store.judgements() == []


def test_what_was_imported_first_has_the_id_of_a_pull(url: str, bring) -> None:
    one = annotation(1, corrected="better")
    skip = annotation(2, was_cancelled=True, result=[], task=TASK + 1)
    with FeedbackStore(url) as store:
        project = known(store)
        assert bring(store, one, skip) == Imported(2, 1)
        pull_in(store, project, one)
        pull_in(store, project, skip, ITEMS[1])
        journal = Journal(store, project)
        assert journal.counts() == Counter(annotation=1, skip=1)
        assert {e["annotation"] for e in journal.annotations()} == {
            f"{SERVER}/7/1",
            f"{SERVER}/7/1#correction",
            f"{SERVER}/7/2",
        }
        assert len(journal.standing([ITEMS[0].id])) == 2
        assert len(store.judgements()) == 2
        assert {e.annotator for e in store.judgements()} == {"ann@example.org"}


def test_another_project_of_that_number_keeps_its_own_ids(url: str, bring) -> None:
    other = [new_item("pair", "another question", ("x", "y"))]
    with FeedbackStore(url) as store:
        project = known(store)
        assert bring(store, annotation(1), items=other) == Imported(1, 0)
        pull_in(store, project, annotation(1))
        assert len(store.judgements()) == 2


def test_an_export_of_either_of_two_servers_is_refused(url: str, bring) -> None:
    with FeedbackStore(url) as store:
        known(store)
        known(store, server="http://other")
        with pytest.raises(
            DataError, match=r"may be those of http://label.* and http://other\. Fix"
        ):
            bring(store, annotation(1))
        assert store.counts().events == 0


def test_a_projects_adjudications_stay_adjudications(url: str, bring) -> None:
    with FeedbackStore(url) as store:
        known(store, role="adjudication")
        assert bring(store, annotation(1)) == Imported(1, 0)
        assert store.judgements() == []
        assert len(store.judgements(adjudicated=True)) == 1


def test_a_store_without_projects_takes_judgements_and_skips_once(url: str, bring) -> None:
    skip = annotation(2, was_cancelled=True, result=[], task=TASK + 1)
    with FeedbackStore(url) as store:
        for expected in (Imported(1, 1), Imported(0, 0)):
            assert bring(store, annotation(1), skip) == expected
        counts = store.counts()
        assert (counts.pairs, counts.comparisons, counts.skips) == (2, 1, 1)
        again = annotation(1, minute=9, was_cancelled=True, result=[])
        assert bring(store, again) == Imported(0, 1)  # judged first, then skipped
        assert store.judgements() == []
