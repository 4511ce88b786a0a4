"""What people do to their labels on the server, and what the store makes of it."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.quarantine import Quarantine
from feedback.labelstudio.session import AnnotatorSession, pair_result
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
    journal.saw(journal.seen().until + timedelta(days=1))  # a clock that jumped, say
    report = pull(client, store, project)
    assert (report.new, report.complete) == (1, True)


def test_a_person_who_answers_a_task_twice_has_one_vote_the_last(client, store, labelled, label):
    project, items, _ = labelled
    again = label(project, items[0], "b2")
    report = pull(client, store, project)
    assert (report.new, report.quarantined, report.complete) == (1, 1, True)
    votes = [c for c in store.comparisons() if c.pair == items[0].id]
    assert [c.strength for c in votes] == [2]
    assert [row["reason"] for row in aside(store, project).values()] == [
        f"{votes[0].annotator} answered the task again: annotation {again} counts"
    ]
    assert pull(client, store, project, full=True).quarantined == 0

    client.delete_annotation(again)
    assert pull(client, store, project, full=True).complete
    votes = [c for c in store.comparisons() if c.pair == items[0].id]
    assert [c.strength for c in votes] == [1]  # the first stands again
    assert not aside(store, project)


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


def test_a_deleted_task_takes_its_labels_along_and_is_not_sent_again(client, store, labelled):
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


def test_two_people_submitting_the_same_task_at_once_both_count(server, client, store, labelled):
    project, items, _ = labelled
    task, invitation = Journal(store, project).tasks()[items[4].id], client.invitation()
    ready = threading.Barrier(2)

    def person(level):
        email = f"{level}-{secrets.token_hex(3)}@example.org"
        with AnnotatorSession(server.login.url, email, "a-password-1") as desk:
            desk.join(invitation)
            ready.wait()
            desk.submit(task, pair_result(level))
        return email

    with ThreadPoolExecutor(2) as two:
        emails = list(two.map(person, ["a2", "b2"]))
    assert pull(client, store, project).complete
    said = {c.annotator: c.label for c in store.comparisons() if c.pair == items[4].id}
    left, right = "ab" if items[4].shown == (0, 1) else "ba"
    assert said == dict(zip(emails, (left, right), strict=True))


def test_many_labels_gone_at_once_are_a_question(client, store, make_project, pairs, label):
    project, items = make_project(), pairs(24)
    push(client, store, project, items)
    for item in items:
        label(project, item)
    pull(client, store, project)
    for task in Journal(store, project).tasks().values():
        client.delete_task(task)
    with pytest.raises(LabelStudioError, match=r"24 of 24 labels are gone.*--accept-deletions"):
        pull(client, store, project)
    assert len(store.comparisons()) == 24
    report = pull(client, store, project, accept_deletions=True)
    assert (report.deleted, report.complete, store.comparisons()) == (24, True, [])


def test_another_project_of_the_same_number_is_refused(client, store, labelled, make_project):
    project, _, _ = labelled
    other = make_project()
    # As if the server had been made anew: the number is another project's, the template the same.
    mistaken = replace(other, config=project.config, config_hash=project.config_hash)
    with pytest.raises(LabelStudioError, match="or another project has this number now"):
        pull(client, store, mistaken)
    assert len(store.comparisons()) == 3


def test_a_task_whose_text_was_edited_is_set_aside(client, store, labelled, label):
    project, items, _ = labelled
    task = Journal(store, project).tasks()[items[3].id]
    data = client.request("GET", f"api/tasks/{task}/")["data"]
    client.request("PATCH", f"api/tasks/{task}/", body={"data": data | {"answer_1": "other"}})
    label(project, items[3])
    report = pull(client, store, project)
    assert (report.quarantined, report.complete) == (1, True)
    assert "were edited" in next(iter(aside(store, project).values()))["reason"]
    client.request("PATCH", f"api/tasks/{task}/", body={"data": data})
    assert pull(client, store, project).new == 1
    assert not aside(store, project)


def test_a_person_who_left_keeps_their_labels(server, client, store, labelled):
    project, items, _ = labelled
    email = f"{secrets.token_hex(4)}@example.org"
    task = Journal(store, project).tasks()[items[4].id]
    with AnnotatorSession(server.login.url, email, "a-password-1") as desk:
        desk.join(client.invitation())
        desk.submit(task, pair_result("tie"))
    pull(client, store, project)
    number = next(n for n, known in client.users().items() if known == email)
    client.request("DELETE", f"api/users/{number}/")
    assert pull(client, store, project, full=True).complete
    assert [c.annotator for c in store.comparisons() if c.pair == items[4].id] == [email]


def test_a_misfit_that_no_file_can_hold_as_text_is_kept(client, store, labelled):
    project, items, _ = labelled
    task = Journal(store, project).tasks()[items[4].id]
    made = client.create_annotation(task, result=NONSENSE)["id"]
    quarantine = Quarantine(Journal(store, project))
    raw = {"id": made, "task": task, "result": [{"half": "\ud83d"}]}
    assert quarantine.add([("half a character: \ud83d", raw)]) == 1
    assert quarantine.add([("half a character: \ud83d", raw)]) == 0
    (row,) = quarantine.open().values()
    assert row["raw"]["result"] == [{"half": "\ud83d"}]


def test_what_was_received_is_kept_whole(client, store, labelled):
    project, items, _ = labelled
    (received,) = client.annotations(Journal(store, project).tasks()[items[0].id])
    (event, *_) = [e for e in store.history() if e["raw"].get("id") == received["id"]]
    del received["created_ago"]
    assert event["raw"] == received
