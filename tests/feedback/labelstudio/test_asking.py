"""What is asked, in which order, and whose word settles it; who may ask."""

from __future__ import annotations

import secrets
import threading

import pytest

from feedback.errors import DataError, LabelStudioError
from feedback.labelstudio.adjudicate import SUFFIX, adjudicate
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, projects
from feedback.labelstudio.order import order_tasks
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.session import AnnotatorSession, pair_result
from feedback.labelstudio.webhook import WebhookListener
from feedback.ports import free_port
from feedback.schema import Comparison

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


@pytest.fixture
def desk(server, client):
    """A new annotator, signed in."""
    email = f"{secrets.token_hex(4)}@example.org"
    with AnnotatorSession(server.login.url, email, "a-password-1") as session:
        session.join(client.invitation())
        yield session


def handed_out(desk, project, level="a1"):
    keys = []
    for task in desk.tasks(project.project):
        keys.append(task["data"]["key"])
        desk.submit(task["id"], pair_result(level), lead_time=4.5)
    return keys


def test_the_greatest_score_is_asked_first(client, store, make_project, pairs, desk):
    project, items = make_project(), pairs(6)
    push(client, store, project, items)
    wanted = [items[i].id for i in (3, 0, 5, 1)]  # items 2 and 4 have no score: they come last
    assert order_tasks(client, store, project, {n: -i for i, n in enumerate(wanted)}) == 4
    first = desk.next_task(project.project)
    assert first["data"]["key"] == wanted[0]
    assert not first.get("predictions")  # no suggestion is shown
    desk.submit(first["id"], pair_result("b1"))
    # New scores while people work: they hold for whatever nobody has open.
    wanted = [items[i].id for i in (1, 5, 0)]
    order_tasks(client, store, project, {n: -i for i, n in enumerate(wanted)})
    keys = handed_out(desk, project)
    assert keys[:3] == wanted
    assert sorted(keys[3:]) == sorted([items[2].id, items[4].id])
    assert pull(client, store, project).new == 6


def test_scores_that_cannot_order_are_refused(client, store, make_project, pairs):
    project, items = make_project(), pairs(2)
    push(client, store, project, items)
    with pytest.raises(DataError, match="is nan"):
        order_tasks(client, store, project, {items[0].id: float("nan")})
    with pytest.raises(DataError, match="none of the 1 scores belongs to a task"):
        order_tasks(client, store, project, {"f" * 32: 1.0})


def test_disputed_pairs_are_settled_in_a_project_of_their_own(
    client, store, make_project, pairs, label, desk
):
    project, items = make_project(overlap=2), pairs(6)
    push(client, store, project, items)
    for place, item in enumerate(items):
        label(project, item, "a1")
        task = Journal(store, project).tasks()[item.id]
        desk.submit(task, pair_result("a1" if place < 4 else "b2"))
    pull(client, store, project)
    court, report = adjudicate(client, store, project.name)
    assert (court.name, court.role, report.sent) == (project.name + SUFFIX, "adjudication", 2)
    disputed = {items[4].id, items[5].id}
    assert set(Journal(store, court).tasks()) == disputed
    data = [task["data"] for task in client.tasks(court.project)]
    assert all(set(d) == {"key", "kind", "prompt", "answer_1", "answer_2"} for d in data)
    assert adjudicate(client, store, project.name)[1].known == 2  # again: nothing twice

    assert set(handed_out(desk, court, "b2")) == disputed
    assert pull(client, store, court).complete
    assert pull(client, store, court).new == 0
    assert len(store.comparisons()) == 12  # what people said is untouched
    settled = {one.pair: one for one in store.settled() if one.pair in disputed}
    for item in items[4:]:
        assert settled[item.id].label == ("a" if item.shown == (1, 0) else "b")
    ruled = [j for j in store.judgements(adjudicated=True) if isinstance(j, Comparison)]
    assert len(ruled) == 2
    with pytest.raises(LabelStudioError, match="no disputed pair is left"):
        adjudicate(client, store, project.name)
    with pytest.raises(LabelStudioError, match="holds adjudications itself"):
        adjudicate(client, store, court.name)
    assert len(projects(store)) == 2


def test_a_hook_wakes_the_watch_and_a_lost_one_loses_nothing(
    client, store, make_project, pairs, label
):
    project, items = make_project(), pairs(3)
    push(client, store, project, items)
    with WebhookListener(client, [project.project], f"http://127.0.0.1:{free_port()}") as hook:
        assert not hook.wait(0.2)
        later = threading.Timer(0.5, lambda: label(project, items[0]))
        later.start()
        assert hook.wait(30)
        later.join()
        assert pull(client, store, project).new == 1
        assert not hook.wait(0.2)  # one label, one look
    assert client.request("GET", "api/webhooks/", params={"project": project.project}) == []
    label(project, items[1])  # nobody listens any more
    assert pull(client, store, project).new == 1


def test_an_address_that_cannot_be_listened_at(client):
    with pytest.raises(LabelStudioError, match="expected a URL with a port"):
        WebhookListener(client, [1], "localhost")
    address = f"http://127.0.0.1:{free_port()}"
    listener = WebhookListener(client, [999_999], address)
    with pytest.raises(LabelStudioError), listener:  # no such project: nothing is left behind
        pass
    with WebhookListener(client, [], address), pytest.raises(LabelStudioError, match="cannot be"):
        WebhookListener(client, [], address).__enter__()


def test_a_revoked_token_is_answered_clearly(server, client):
    token = client.request("POST", "api/token/", body={})["token"]
    personal = LabelStudioClient(server.login.url, token)
    assert personal.check()["email"] == server.login.email
    client.request("POST", "api/token/blacklist/", body={"refresh": token})
    with pytest.raises(LabelStudioError, match=r"token was refused .*may have expired"):
        LabelStudioClient(server.login.url, token).check()


def test_a_wrong_password_is_answered_clearly(server):
    with AnnotatorSession(server.login.url, "nobody@example.org", "x") as session:  # noqa: SIM117
        with pytest.raises(LabelStudioError, match=r"nobody@example.org could not sign in"):
            session.log_in()
