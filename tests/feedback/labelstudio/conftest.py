"""A real Label Studio server for the session, and projects of one's own on it."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, Project, add_project
from feedback.labelstudio.projects import create_projects
from feedback.labelstudio.server import LabelStudioServer
from feedback.labelstudio.templates import Template
from feedback.records import new_item
from feedback.store import FeedbackStore

NUMBERS = itertools.count()
NASTY = [
    "<script>document.title='hacked'</script><b>bold</b>",
    "\u202eright to left\u202c שלום مرحبا",
    "\U0001f4e6\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "# Markdown\n\n* a\n* b\n\n```python\nprint('&amp;')\n```\n\t tab  two spaces ",
    "line\r\nbreaks\r and \u2028 separators",
    "x" * 50_000,
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = LabelStudioServer(tmp_path_factory.mktemp("label-studio"), free_port())
    server.start(print)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(server):
    return LabelStudioClient(server.login.url, server.login.token)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


@pytest.fixture
def make_project(client, store):
    """`make_project(kind="pair", **settings)`: a project that the store knows."""

    def make(kind="pair", **settings):
        name = f"test {next(NUMBERS)}"
        template = Template(kind, correction=True)
        (project,) = create_projects(client, store, name, template, **settings)
        return project

    return make


@pytest.fixture
def pairs():
    """`pairs(n)`: items, the first few with text that breaks pages and parsers."""

    def make(n):
        texts = [*NASTY, *(f"answer {i}" for i in range(max(n - len(NASTY), 0)))][:n]
        chat = [{"role": "user", "content": "Is it open? <i>Sundays</i>"}]
        return [
            new_item("pair", chat, (text, f"other {i}"), ("sft", "dpo"), seed=5)
            for i, text in enumerate(texts)
        ]

    return make


@pytest.fixture
def label(client, store):
    """`label(project, item, level, ...)`: submit what the page would, for one item."""

    def submit(project, item, level="a1", reason=None, correction=None, key=None):
        task = Journal(store, project).tasks()[key or item.id]
        result = [said("pref", "choices", choices=[level])]
        if reason is not None:
            result.append(said("reason", "textarea", text=[reason]))
        if correction is not None:
            result.append(said("correction", "textarea", text=[correction]))
        return client.create_annotation(task, result=result, lead_time=3.5)["id"]

    return submit


def said(control, kind, **value):
    """One entry of a result."""
    return {"from_name": control, "to_name": "chat", "type": kind, "value": value}


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
        if kind == "hide":  # an answer that is well-formed and wrong
            self.send(handler, 200, "application/json", b'{"tasks": [], "total": 0}')
            return
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
        self.send(
            handler, answer.status_code, answer.headers.get("Content-Type", ""), answer.content
        )

    @staticmethod
    def send(handler, status, kind, content):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


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
