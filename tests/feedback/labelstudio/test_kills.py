"""kill -9 of our process and of the server at random points: nothing lost, nothing twice.

SERVER_KILLS says how often the server is killed (each restart takes ten seconds or more).
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import pytest

from feedback.errors import LabelStudioError
from feedback.labelstudio.journal import Journal
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.store import FeedbackStore

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(3600)]
KILLS = 20
SERVER_KILLS = int(os.environ.get("SERVER_KILLS", "2"))
LEVELS = ("a2", "a1", "tie", "b1", "b2")

WORK = textwrap.dedent(
    """
    import sys
    from feedback.labelstudio.client import LabelStudioClient
    from feedback.labelstudio.projects import known_projects
    from feedback.labelstudio.pull import pull
    from feedback.labelstudio.push import push
    from feedback.store import FeedbackStore

    action, url, server, token, name, stepped = sys.argv[1:]
    with FeedbackStore(url, create=False) as store:
        write = store.write

        def step(work):
            found = write(work)
            print("wrote", flush=True)
            sys.stdin.readline()
            return found

        if stepped == "stepped":
            store.write = step
        client = LabelStudioClient(server, token)
        (project,) = known_projects(store, name)
        client.check()
        print("go", flush=True)
        if action == "push":
            push(client, store, project, store.items(), batch_size=5)
        else:
            pull(client, store, project, batch_size=5)
    """
)


@pytest.fixture
def killed_after(server):
    """`killed_after(when, action, store url, project)`: whether the kill came in the middle.

    `when` is in seconds, or, as an int, the number of transactions that are written before.
    """

    def run(when, action, url, project):
        stepped = "stepped" if isinstance(when, int) else ""
        arguments = [action, url, server.login.url, server.login.token, project.name, stepped]
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "go\n"
        if stepped:
            for written in range(when):
                assert process.stdout.readline() == "wrote\n"
                if written < when - 1:
                    process.stdin.write("\n")
                    process.stdin.flush()
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert process.wait(when) == 0
                return False
        process.kill()
        process.wait()
        return True

    return run


def better_time(seconds, killed, begun):
    """In which to kill the next: other work on the machine makes a first measurement useless."""
    if not killed:
        return seconds * 0.7
    return seconds if begun else seconds * 1.3


def keys_on(client, project):
    tasks = client.tasks(project.project, fields=("id", "data"))
    return Counter(task["data"]["key"] for task in tasks)


def test_of_the_pushing_process(client, store, pairs, make_project, killed_after):
    items, draw, kills, recovered = pairs(40), random.Random(1), 0, 0
    store.add_items(items)
    started = time.monotonic()
    push(client, store, make_project(), items, batch_size=5)
    whole = time.monotonic() - started
    for _ in range(KILLS):
        project = make_project()
        killed = killed_after(draw.uniform(0, whole), "push", store.url, project)
        kills += killed
        whole = better_time(whole, killed, bool(Journal(store, project).tasks()))
        report = push(client, store, project, items, batch_size=5)
        assert keys_on(client, project) == {item.id: 1 for item in items}
        assert len(Journal(store, project).tasks()) == 40
        recovered += report.recovered
    assert kills >= KILLS / 2
    assert recovered  # some kill came between a batch's plan and its confirmation


def test_of_the_pulling_process(client, store, pairs, make_project, label, killed_after, tmp_path):
    project, items, draw, kills = make_project(), pairs(40), random.Random(2), 0
    push(client, store, project, items)
    for place, item in enumerate(items):
        label(project, item, LEVELS[place % 5], correction="so" if place % 3 else None)

    def copy_of_store(name):
        with sqlite3.connect(tmp_path / "feedback.db") as source:
            source.backup(sqlite3.connect(tmp_path / name))
        return f"sqlite:///{tmp_path / name}"

    with FeedbackStore(copy_of_store("whole.db"), create=False) as whole:
        started = time.monotonic()
        pull(client, whole, project, batch_size=5)
        seconds = time.monotonic() - started
        expected = [vars(j) for j in whole.judgements()]
        events = whole.counts().events
    assert len(expected) == 40 + 26
    for trial in range(KILLS):
        copy = copy_of_store(f"{trial}.db")
        # The labels are written in an eyeblink, which a time drawn at random misses.
        when = draw.uniform(0, seconds) if trial % 2 else draw.randint(1, 7)
        killed = killed_after(when, "pull", copy, project)
        kills += killed
        with FeedbackStore(copy, create=False) as after:
            begun = after.counts().events
            if trial % 2:
                seconds = better_time(seconds, killed, begun > 0)
            else:
                assert 0 < begun < events
            assert pull(client, after, project, batch_size=5).complete
            assert [vars(j) for j in after.judgements()] == expected
            assert after.counts().events == events
    assert kills >= KILLS / 2


def test_of_the_server_in_a_push(server, client, store, pairs, make_project):
    items, draw, broken = pairs(300), random.Random(3), 0
    for _ in range(SERVER_KILLS):
        project = make_project()
        killer = threading.Timer(draw.uniform(0.05, 1.0), lambda: server.stop(hard=True))
        killer.start()
        try:
            push(client, store, project, items, batch_size=20, wait=lambda s: time.sleep(0.05))
        except LabelStudioError:
            broken += 1
        killer.join()
        server.start()
        push(client, store, project, items, batch_size=20)
        assert keys_on(client, project) == {item.id: 1 for item in items}
    assert broken


def test_of_the_server_in_a_pull(server, client, store, pairs, make_project, label):
    items, draw = pairs(30), random.Random(4)
    for _ in range(SERVER_KILLS):
        project = make_project()
        push(client, store, project, items)
        for item in items:
            label(project, item)
        killer = threading.Timer(draw.uniform(0.02, 0.4), lambda: server.stop(hard=True))
        killer.start()
        with contextlib.suppress(LabelStudioError):
            for _ in range(100):
                pull(client, store, project, full=True, batch_size=5)
        killer.join()
        before = Journal(store, project).counts()["annotation"]
        server.start()
        report = pull(client, store, project)
        assert (report.complete, report.kept, report.new) == (True, 30, 30 - before)
