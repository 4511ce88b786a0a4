"""Whatever breaks on the way: nothing is lost, nothing is there twice."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from feedback.errors import LabelStudioError, StoreError
from feedback.labelstudio.journal import Journal, Project
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.session import AnnotatorSession, pair_result
from feedback.labelstudio.templates import LEVELS

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


def keys_on(client, project):
    tasks = client.tasks(project.project, fields=("id", "data"))
    return Counter(task["data"]["key"] for task in tasks)


@pytest.mark.parametrize("kind", ["drop before", "drop after", "slow", 500, 429, 503])
def test_a_push_through_a_fault_is_exact(client, store, pairs, proxied, kind):
    proxy, patchy, project = proxied
    items = pairs(30)
    proxy.faults = [("POST", "/import", kind), ("POST", "/import", kind), ("GET", "/tasks", 502)]
    report = push(patchy, store, project, items, batch_size=10, wait=lambda s: proxy.rest())
    assert report.sent == 30
    assert proxy.happened.count(kind) == 2
    assert keys_on(client, project) == {item.id: 1 for item in items}
    tasks = {
        t["data"]["key"]: t["id"] for t in client.tasks(project.project, fields=("id", "data"))
    }
    assert Journal(store, project).tasks() == tasks


def test_an_import_that_arrives_after_everything_leaves_no_copy(client, store, pairs, proxied):
    proxy, patchy, project = proxied
    items = pairs(6)
    proxy.faults = [("POST", "/import", "late")]
    # Without waiting, the push has sent the tasks again and is done before the first one arrives.
    assert push(patchy, store, project, items, wait=lambda s: None).sent == 6
    proxy.rest()
    assert sorted(keys_on(client, project).values()) == [2] * 6
    report = push(client, store, project, items)
    assert (report.sent, report.removed, report.missing) == (0, 6, 0)
    assert keys_on(client, project) == {item.id: 1 for item in items}
    on_server = {task["id"] for task in client.tasks(project.project, fields=("id",))}
    assert set(Journal(store, project).tasks().values()) == on_server


def test_two_pushes_at_once(client, store, pairs, make_project):
    project, items = make_project(), pairs(300)
    begun = threading.Event()

    def first():
        push(client, store, project, items, batch_size=20, progress=lambda sent: begun.set())

    with ThreadPoolExecutor(1) as other:
        done = other.submit(first)
        assert begun.wait(30)
        with pytest.raises(StoreError, match="another process is at it now"):
            push(client, store, project, items)
        done.result()
    assert push(client, store, project, items).known == 300
    assert keys_on(client, project) == {item.id: 1 for item in items}


def test_two_pulls_at_once(client, store, pairs, make_project, label):
    project, items = make_project(), pairs(30)
    push(client, store, project, items)
    for item in items:
        label(project, item, correction="so")
    with ThreadPoolExecutor(3) as several:
        reports = list(several.map(lambda _: pull(client, store, project, batch_size=3), range(3)))
    assert all(report.complete for report in reports)
    assert store.counts().events == 60


def test_a_server_out_of_reach_is_said_and_the_next_push_goes_on(client, store, pairs, proxied):
    proxy, patchy, project = proxied
    items = pairs(12)
    proxy.faults = [("POST", "/import", "drop after"), *[("GET", "/tasks", 503)] * 20]
    with pytest.raises(LabelStudioError, match="503"):
        push(patchy, store, project, items, batch_size=12, wait=lambda s: None)
    proxy.faults = []
    report = push(patchy, store, project, items, batch_size=12)
    assert (report.recovered, report.sent, report.known) == (12, 0, 12)
    assert keys_on(client, project) == {item.id: 1 for item in items}


def test_a_pull_through_faults_is_complete(client, store, pairs, proxied, label):
    proxy, patchy, project = proxied
    items = pairs(8)
    push(client, store, Project(**(vars(project) | {"server": client.url})), items)
    push_tasks = Journal(store, Project(**(vars(project) | {"server": client.url}))).tasks()
    for item in items:
        task = push_tasks[item.id]
        value = {"choices": ["a1"]}
        result = [{"from_name": "pref", "to_name": "chat", "type": "choices", "value": value}]
        client.create_annotation(task, result=result)
    for kind in ("drop before", "drop after", "slow", 500):
        proxy.faults = [("GET", "/tasks", kind)]
        with pytest.raises(LabelStudioError):
            pull(patchy, store, project)
    report = pull(patchy, store, project)
    assert (report.new, report.complete) == (8, True)
    assert len(store.comparisons()) == 8


@pytest.mark.parametrize("fault", [500, 503, "fail after"])
def test_who_joins_a_server_that_fails_is_let_in(client, proxied, fault):
    proxy, _, _ = proxied
    proxy.faults = [("POST", "/user/signup", fault)]
    invitation = client.invitation().replace(client.url, proxy.url)
    email = f"{secrets.token_hex(4)}@example.org"
    with AnnotatorSession(proxy.url, email, "a-password-1") as desk:
        desk.join(invitation)
        assert proxy.happened == [fault]
    with AnnotatorSession(client.url, email, "a-password-1") as desk:
        desk.log_in()
    with (
        AnnotatorSession(client.url, email, "another-password") as desk,
        pytest.raises(LabelStudioError, match=f"{email} could not sign in"),
    ):
        desk.join(client.invitation())  # the account exists, and this is not its password


def test_twenty_people_make_a_thousand_annotations_at_once(
    server, client, store, pairs, make_project
):
    project, items = make_project(overlap=20), pairs(50)
    push(client, store, project, items)
    tasks = Journal(store, project).tasks()
    invitation = client.invitation()
    said = {}

    def work(number):
        email = f"{number}-{secrets.token_hex(3)}@example.org"
        draw = random.Random(number)
        with AnnotatorSession(server.login.url, email, "a-password-1") as desk:
            desk.join(invitation)
            for item in items:
                level = draw.choice(sorted(LEVELS))
                desk.submit(tasks[item.id], pair_result(level), lead_time=2.0)
                said[email, item.id] = level

    with ThreadPoolExecutor(20) as people:
        futures = [people.submit(work, number) for number in range(20)]
        while not all(future.done() for future in futures):
            pull(client, store, project)  # while they work
            time.sleep(3)
        for future in futures:
            future.result()
    report = pull(client, store, project)
    assert report.complete
    assert report.server == 1000  # our server's settings: its own would repeat requests
    shown = {item.id: item.shown for item in items}
    found = {}
    for one in store.comparisons():
        left = {"a": "a", "b": "b"} if shown[one.pair] == (0, 1) else {"a": "b", "b": "a"}
        level = "tie" if one.label == "tie" else f"{left[one.label]}{one.strength}"
        found[one.annotator, one.pair] = level
    assert len(store.comparisons()) == 1000
    assert found == said
