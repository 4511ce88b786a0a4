"""A real Label Studio server for the session, and projects of one's own on it."""

from __future__ import annotations

import itertools
import socket

import pytest

from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal
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
