"""A project's JSON export and its pull, mixed in either order, through a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feedback.formats import read_feedback
from feedback.importing import Imported, import_feedback
from feedback.labelstudio.journal import Journal
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


@pytest.fixture
def items(pairs):
    return pairs(8)


@pytest.fixture
def labelled(client, store, make_project, items, label):
    """A project with hard texts, twins, corrections, and a skip."""
    store.add_items(items)
    project = make_project()
    push(client, store, project, items, twins=True)
    for number, item in enumerate(items[:7]):
        label(project, item, "ab"[number % 2] + "1", reason="r", correction=f"better {number}")
        label(project, item, "a1", key=item.id + "~")
    task = Journal(store, project).tasks()[items[7].id]
    client.create_annotation(task, result=[], was_cancelled=True)
    return project


@pytest.fixture
def bring(client, store, labelled, tmp_path: Path):
    """`bring()`: import the export that the page's button gives."""

    def run() -> Imported:
        path = f"api/projects/{labelled.project}/export"
        tasks = client.request("GET", path, params={"exportType": "JSON"})
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        return import_feedback(store, read_feedback(tmp_path / "export.json"))

    return run


def test_an_import_after_a_pull_adds_nothing(client, store, labelled, bring):
    assert pull(client, store, labelled).new == 15
    before = store.history()
    assert bring() == Imported(0, 0)
    assert pull(client, store, labelled, full=True).updated == 0
    assert store.history() == before


def test_a_pull_after_an_import_adds_nothing_but_who_it_was(client, store, labelled, bring):
    assert bring() == Imported(21, 1)  # 14 judgements and 7 corrections
    imported = {c.pair: c.label for c in store.comparisons() if c.reason}
    report = pull(client, store, labelled)
    assert (report.new, report.deleted, report.kept, report.server) == (0, 0, 15, 15)
    assert {c.pair: c.label for c in store.comparisons() if c.reason} == imported
    assert len(store.judgements()) == 21
    assert {j.annotator for j in store.judgements()} == {"admin@align.local"}
    settled = store.history()
    assert bring() == Imported(0, 0)
    again = pull(client, store, labelled, full=True)
    assert (again.new, again.updated) == (0, 0)
    assert store.history() == settled


def test_what_was_labelled_since_is_news_to_both(client, store, labelled, bring, label, items):
    pull(client, store, labelled)
    label(labelled, items[7], "b2")
    assert bring() == Imported(1, 0)
    assert {c.annotator for c in store.comparisons()} == {"admin@align.local"}
    report = pull(client, store, labelled)
    assert (report.new, report.kept, report.server) == (0, 16, 16)
    assert len(store.judgements()) == 22
