"""What is sent, and in which order; that it is the store's own."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from feedback.errors import LabelStudioError
from feedback.labelstudio.journal import Journal, projects
from feedback.labelstudio.projects import create_projects
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.tasks import TWIN
from feedback.labelstudio.templates import Template

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


def test_people_see_the_items_as_the_store_has_them(client, store, make_project, pairs, label):
    project, items = make_project(), pairs(4)
    store.add_items(items)
    # The same pairs as somebody else might hold them: answers and pages the other way round.
    others = [
        replace(
            item,
            responses=item.responses[::-1],
            sources=item.sources[::-1],
            shown=random.Random(place).choice([(0, 1), (1, 0)]),
        )
        for place, item in enumerate(items)
    ]
    push(client, store, project, others)
    for task in client.tasks(project.project):
        label(project, next(i for i in items if i.id == task["data"]["key"]), "a2")
    pull(client, store, project)
    said = {one.pair: one for one in store.comparisons()}
    for task in client.tasks(project.project):
        one = said[task["data"]["key"]]
        preferred = one.response_a if one.label == "a" else one.response_b
        assert preferred == task["data"]["answer_1"]  # the left pane, which was chosen


def test_a_twin_does_not_follow_its_pair(client, store, make_project, pairs):
    project, items = make_project(), pairs(6)
    push(client, store, project, items, twins=True, batch_size=4)
    keys = [task["data"]["key"] for task in client.tasks(project.project, fields=("id", "data"))]
    assert keys == [item.id for item in items] + [item.id + TWIN for item in items]


def test_requests_are_bounded_by_tasks_and_by_text(client, store, make_project, pairs, monkeypatch):
    project, items, sizes = make_project(), pairs(20), []
    send = client.import_tasks

    def counted(number, data):
        sizes.append(len(data))
        return send(number, data)

    monkeypatch.setattr(client, "import_tasks", counted)
    monkeypatch.setattr("feedback.labelstudio.push.FIRST", 3)
    push(client, store, project, items[:12], batch_size=5)
    assert sizes == [3, 5, 4]
    sizes.clear()
    text = sum(len(answer) for answer in items[12].responses) + len(str(items[12].prompt))
    monkeypatch.setattr("feedback.labelstudio.push.BATCH_CHARACTERS", 2 * text - 4)
    report = push(client, store, project, items, batch_size=5)
    assert (sizes, report.known) == ([2, 2, 2, 2], 12)
    assert Counter(task["data"]["key"] for task in client.tasks(project.project)) == Counter(
        item.id for item in items
    )


def test_annotators_are_added_later_and_nobody_gets_a_second_project(client, store):
    def create(*people, kind="pair"):
        return create_projects(client, store, "growing", Template(kind), annotators=people)

    assert [made.annotator for made in create("ann@x.org")] == ["ann@x.org"]
    added = create("ann@x.org", "bob@x.org", "bob@x.org")
    assert [made.annotator for made in added] == ["bob@x.org"]
    with pytest.raises(LabelStudioError, match=r"has one already, for ann@x.org, bob@x.org"):
        create("bob@x.org")
    with pytest.raises(LabelStudioError, match="has one already"):
        create("cleo@x.org", kind="thumb")
    with pytest.raises(LabelStudioError, match="has one already"):
        create()
    assert len(projects(store, "growing")) == 2
    assert Journal(store, added[0]).tasks() == {}
