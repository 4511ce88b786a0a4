"""Whatever breaks on the way: nothing is lost, nothing is there twice."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, Project, add_project
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


class Proxy:
    """Passes requests on; `faults` maps "METHOD path-part" to what goes wrong, once each."""

    def __init__(self, target):
        self.target, self.faults, self.happened = target, [], []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def handle_any(self):
                proxy.answer(self)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        fault = next(
            (f for f in self.faults if f[0] == handler.command and f[1] in handler.path), None
        )
        if fault:
            self.faults.remove(fault)
            self.happened.append(fault[2])
        kind = fault[2] if fault else ""
        if kind == "drop before":
            handler.connection.close()
            return
        if isinstance(kind, int):
            handler.send_response(kind)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "host"}
        answer = httpx.request(
            handler.command, self.target + handler.path, headers=headers, content=body, timeout=60
        )
        if kind == "drop after":  # the server has done it, and nobody hears of it
            handler.connection.close()
            return
        if kind == "slow":
            time.sleep(3)
        handler.send_response(answer.status_code)
        handler.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        handler.send_header("Content-Length", str(len(answer.content)))
        handler.end_headers()
        handler.wfile.write(answer.content)


@pytest.fixture
def proxied(server, store, make_project):
    """A proxy, a client with little patience through it, and a project seen through it."""
    proxy = Proxy(server.login.url)
    made = make_project()
    project = Project(**(vars(made) | {"server": proxy.url}))
    add_project(store, project)
    client = LabelStudioClient(proxy.url, server.login.token, timeout=2)
    yield proxy, client, project
    proxy.server.shutdown()


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


PUSH = """
import sys
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.projects import known_projects
from feedback.labelstudio.push import push
from feedback.store import FeedbackStore
with FeedbackStore(sys.argv[1], create=False) as store:
    client = LabelStudioClient(sys.argv[2], sys.argv[3])
    (project,) = known_projects(store)
    print("go", flush=True)
    push(client, store, project, store.items(), batch_size=7)
    print("done", flush=True)
"""


def test_kill_9_of_the_pushing_process_at_random_points(client, server, store, pairs, make_project):
    project, items = make_project(), pairs(60)
    store.add_items(items)
    draw = random.Random(1)
    arguments = [sys.executable, "-c", textwrap.dedent(PUSH), store.url]
    arguments += [server.login.url, server.login.token]
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "go\n"
        try:
            process.wait(draw.uniform(0.02, 0.5))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
        counts = keys_on(client, project)
        if len(counts) == 60 and process.returncode == 0:
            break
    push(client, store, project, items, batch_size=7)
    assert kills >= 2
    assert keys_on(client, project) == {item.id: 1 for item in items}
    assert len(Journal(store, project).tasks()) == 60


def test_kill_9_of_the_server_in_the_middle_of_a_push(server, client, store, pairs, make_project):
    project, items = make_project(), pairs(300)
    killer = threading.Timer(0.3, lambda: server.stop(hard=True))
    killer.start()
    with contextlib.suppress(LabelStudioError):
        push(client, store, project, items, batch_size=20, wait=lambda s: time.sleep(0.05))
    killer.join()
    server.start()
    push(client, store, project, items, batch_size=20)
    assert keys_on(client, project) == {item.id: 1 for item in items}


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
