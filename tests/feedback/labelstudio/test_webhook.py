"""The webhook receiver over HTTP: who is heard, and what it does. No Label Studio is needed."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from feedback.labelstudio.webhook import HEADER, receiver

SECRET = "0123456789"
BODY = {"action": "ANNOTATION_CREATED", "project": {"id": 7}, "annotation": {"id": 3}}


@pytest.fixture
def nudged():
    return []


@pytest.fixture
def http(nudged):
    with TestClient(receiver(SECRET, nudged.append, limit=2000)) as client:
        yield client


def send(http, body=BODY, secret=SECRET):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post("/", content=content, headers={HEADER: secret}).status_code


def test_a_hook_nudges_once_however_often_it_comes(http, nudged):
    assert [send(http) for _ in range(3)] == [204, 204, 204]
    assert nudged == [7]
    assert send(http, BODY | {"annotation": {"id": 4}}) == 204
    assert nudged == [7, 7]


@pytest.mark.parametrize("secret", ["", "0123456788", "é"])
def test_without_the_secret_nothing_happens(http, nudged, secret):
    assert send(http, secret=secret.encode()) == 401
    assert http.post("/", json=BODY).status_code == 401
    assert nudged == []


def test_a_long_body_is_refused_whatever_it_says_of_its_length(http, nudged):
    long = json.dumps(BODY | {"text": "x" * 2000}).encode()
    assert send(http, long) == 413

    def pieces():
        for start in range(0, len(long), 100):
            yield long[start : start + 100]

    assert http.post("/", content=pieces(), headers={HEADER: SECRET}).status_code == 413
    assert nudged == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", {}, *({"project": p} for p in (7, None, {"id": "7"}))]
)
def test_what_names_no_project_is_refused(http, nudged, body):
    assert send(http, body) == 400
    assert nudged == []


def test_nothing_else_is_served(http):
    assert http.get("/").status_code == 405
    assert http.get("/docs").status_code == 404
