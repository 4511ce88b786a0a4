"""What people do to their labels on the server, and what the store makes of it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.quarantine import Quarantine
from feedback.schema import Correction

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]
NONSENSE = [{"hello": "x"}]


@pytest.fixture
def labelled(client, store, make_project, pairs, label):
    """A project with three labels pulled: (project, items, annotation numbers)."""
    project, items = make_project(), pairs(5)
    push(client, store, project, items)
    numbers = [label(project, item, "a1", correction="better") for item in items[:3]]
    assert pull(client, store, project).new == 3
    return project, items, numbers


def aside(store, project):
    return Quarantine(Journal(store, project)).open()


def test_a_pull_that_read_too_far_heals_itself(client, store, labelled, label):
    project, items, _ = labelled
    label(project, items[3])
    journal = Journal(store, project)
    journal.saw(journal.seen_until() + timedelta(days=1))  # a clock that jumped, say
    report = pull(client, store, project)
    assert (report.new, report.complete) == (1, True)


def test_a_label_changed_into_nonsense_no_longer_stands(client, store, labelled):
    project, items, (one, *_) = labelled
    client.update_annotation(one, result=NONSENSE)
    report = pull(client, store, project)
    assert (report.quarantined, report.complete) == (1, True)
    assert items[0].id not in {c.pair for c in store.comparisons()}
    assert sum(isinstance(j, Correction) for j in store.judgements()) == 2
    again = pull(client, store, project, full=True)
    assert (again.quarantined, again.deleted, again.complete) == (0, 0, True)

    value = {"choices": ["b2"]}
    result = [{"from_name": "pref", "to_name": "chat", "type": "choices", "value": value}]
    client.update_annotation(one, result=result)
    report = pull(client, store, project)
    assert (report.updated, report.complete) == (1, True)
    assert not aside(store, project)
    assert {c.pair: c.strength for c in store.comparisons()}[items[0].id] == 2


def test_a_misfit_that_is_deleted_is_no_gap(client, store, labelled):
    project, items, _ = labelled
    task = Journal(store, project).tasks()[items[3].id]
    made = client.create_annotation(task, result=NONSENSE)["id"]
    assert pull(client, store, project).quarantined == 1
    assert len(aside(store, project)) == 1
    client.delete_annotation(made)
    report = pull(client, store, project)
    assert (report.kept, report.server, report.complete) == (3, 3, True)
    assert not aside(store, project)


def test_a_skip_taken_back_and_a_label_turned_into_a_skip(client, store, labelled):
    project, items, (one, *_) = labelled
    task = Journal(store, project).tasks()[items[3].id]
    skip = client.create_annotation(task, result=[], was_cancelled=True)["id"]
    assert pull(client, store, project).skipped == 1
    client.delete_annotation(skip)
    client.update_annotation(one, was_cancelled=True)
    report = pull(client, store, project)
    assert (report.complete, report.server, store.counts().skips) == (True, 3, 1)
    assert items[0].id not in {c.pair for c in store.comparisons()}
    assert sum(isinstance(j, Correction) for j in store.judgements()) == 2


def test_a_deleted_task_takes_its_labels_along_and_is_made_again_with_new_ones(
    client, store, labelled, label
):
    project, items, _ = labelled
    journal = Journal(store, project)
    client.delete_task(journal.tasks()[items[0].id])
    report = pull(client, store, project)
    assert (report.deleted, report.complete) == (1, True)
    assert {c.pair for c in store.comparisons()} == {items[1].id, items[2].id}
    report = push(client, store, project, items)
    assert (report.sent, report.missing) == (0, 1)  # whoever deleted it may have meant it


def test_labelling_during_a_pull_is_not_called_incomplete(server, store, labelled, label):
    project, items, _ = labelled

    class Busy(LabelStudioClient):
        """Somebody labels right before the first page is read, and right after the last."""

        def tasks(self, *args, **kwargs):
            self.somebody_labels()
            yield from super().tasks(*args, **kwargs)
            self.somebody_labels()

        def somebody_labels(self):
            if items:
                label(project, items.pop())

    busy = Busy(server.login.url, server.login.token)
    while items:
        assert pull(busy, store, project).complete
    report = pull(busy, store, project)
    assert (report.server, report.kept) == (8, 8)


def test_two_people_submitting_the_same_task_at_once_both_count(client, store, labelled, label):
    from concurrent.futures import ThreadPoolExecutor

    project, items, _ = labelled
    with ThreadPoolExecutor(2) as two:
        list(two.map(lambda level: label(project, items[4], level), ["a2", "b2"]))
    assert pull(client, store, project).complete
    said = [c.label for c in store.comparisons() if c.pair == items[4].id]
    assert sorted(said) == ["a", "b"]
