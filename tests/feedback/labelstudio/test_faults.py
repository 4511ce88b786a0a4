"""Whatever breaks on the way: nothing is lost, nothing is there twice."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from feedback.errors import LabelStudioError
from feedback.labelstudio.journal import Journal, Project
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push

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
    report = push(patchy, store, project, items, batch_size=10, wait=lambda s: time.sleep(s / 10))
    assert report.sent == 30
    assert proxy.happened.count(kind) == 2
    assert keys_on(client, project) == {item.id: 1 for item in items}
    tasks = {
        t["data"]["key"]: t["id"] for t in client.tasks(project.project, fields=("id", "data"))
    }
    assert Journal(store, project).tasks() == tasks


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


def test_twenty_annotators_at_once(client, store, pairs, make_project):
    project, items = make_project(overlap=20), pairs(10)
    push(client, store, project, items)
    tasks = list(Journal(store, project).tasks().values())
    value = {"choices": ["b2"]}
    result = [{"from_name": "pref", "to_name": "chat", "type": "choices", "value": value}]

    def annotate(number):
        for task in tasks[number % 2 :: 2]:
            for _ in range(20):  # SQLite under many writers: try as a person would, again
                try:
                    client.create_annotation(task, result=result)
                    break
                except LabelStudioError:
                    time.sleep(0.2)
            else:
                raise AssertionError(f"task {task} never took the label")

    with ThreadPoolExecutor(20) as people:
        futures = [people.submit(annotate, number) for number in range(20)]
        for _ in range(3):
            pull(client, store, project)
        for future in futures:
            future.result()
    report = pull(client, store, project)
    listed = [a["id"] for task in tasks for a in client.annotations(task)]
    assert len(listed) == len(set(listed)) >= 100
    assert report.complete
    assert len(store.comparisons()) == len(listed)
