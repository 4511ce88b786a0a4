"""`align feedback`, end to end: from the store to the server, back, and out to a file."""

from __future__ import annotations

import secrets

import pytest
from typer.testing import CliRunner

from align.cli import app
from align.errors import ConfigError
from align.feedback_cli import common
from feedback.errors import LabelStudioError
from feedback.labelstudio.journal import Journal, Project, add_project, projects
from feedback.labelstudio.push import push
from feedback.labelstudio.session import AnnotatorSession, pair_result
from feedback.store import FeedbackStore

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


@pytest.fixture
def align(server, store, monkeypatch):
    """`align("push", "name")`: the command's output, on the test's server and store."""
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    for side, size in (("_width", 200), ("_height", 50)):  # whatever was told of the terminal
        monkeypatch.setattr(common.out, side, size)

    def call(*arguments, url=True):
        where = ["--data", str(server.folder), "--url", server.login.url] if url else []
        given = ["feedback", *arguments, "--store", store.url, *where]
        result = CliRunner().invoke(app, given)
        if result.exception is not None:
            raise result.exception
        return result.output

    return call


def test_the_whole_way(align, client, store, pairs, label, tmp_path):
    items = pairs(12)
    store.add_items(items)
    assert f"{client.url}/projects/" in align("init", "cli project", "--overlap", "2")
    assert "12 tasks sent, 0 known" in align("push", "cli project")
    assert "0 tasks sent, 12 known" in align("push", "cli project")
    (project,) = projects(store, "cli project")
    tasks = Journal(store, project).tasks()
    with AnnotatorSession(
        client.url, f"{secrets.token_hex(4)}@example.org", "a-password-1"
    ) as desk:
        desk.join(client.invitation())
        for item in items[:10]:
            label(project, item, "a1", reason="r")
            desk.submit(tasks[item.id], pair_result("a1"))
    assert "20 new" in align("pull", "cli project")
    assert "20 of 20 on the server" in align("pull", "cli project", "--full")
    assert "cli project" in align("status", url=False)
    assert "Krippendorff" in align("agreement", url=False)
    assert "admin@align.local" in align("annotators", url=False)
    out = tmp_path / "labels.jsonl"
    assert "20 judgements" in align("export", str(out), url=False)
    copy = f"sqlite:///{tmp_path / 'copy.db'}"
    result = CliRunner().invoke(app, ["feedback", "import", str(out), "--store", copy])
    assert "20 judgements" in result.output
    with FeedbackStore(copy, create=False) as opened:
        assert len(opened.comparisons()) == len(store.comparisons()) == 20
        assert {c.label for c in opened.comparisons()} == {c.label for c in store.comparisons()}


def test_labels_that_the_server_counts_and_does_not_list_are_an_error(
    align, server, store, pairs, label, proxied, monkeypatch
):
    proxy, patchy, project = proxied
    push(patchy, store, project, pairs(2))
    label(project, pairs(2)[0])
    proxy.faults = [("GET", "/tasks", "hide")] * 2
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.login.token)  # the proxy is another address
    pull = ("pull", project.name, "--url", proxy.url, "--data", str(server.folder))
    with pytest.raises(LabelStudioError, match=r"the server counts 1 labels, the store 0.*--full"):
        align(*pull, url=False)
    assert "1 of 1 on the server" in align(*pull, url=False)


def test_a_watch_says_what_is_missing_and_goes_on(
    server, store, pairs, label, proxied, monkeypatch
):
    proxy, patchy, project = proxied
    push(patchy, store, project, pairs(2))
    label(project, pairs(2)[0])
    proxy.faults = [("GET", "/tasks", "hide")] * 2
    looks = []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise InterruptedError

    monkeypatch.setattr("align.feedback_cli.pull.time.sleep", wait)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.login.token)
    watch = ["feedback", "pull", project.name, "--watch", "60", "--url", proxy.url]
    result = CliRunner().invoke(app, [*watch, "--store", store.url])
    assert isinstance(result.exception, InterruptedError)
    said = " ".join(result.output.split())
    assert "the server counts 1 labels, the store 0. Fix: pull again" in said
    assert said.endswith("1 of 1 on the server")


def test_a_deleted_project_keeps_no_other_from_being_sent(align, client, store, pairs):
    store.add_items(pairs(3))
    for name in ("first", "second"):
        align("init", name)
    gone, stays = projects(store, "first") + projects(store, "second")
    client.request("DELETE", f"api/projects/{gone.project}/")
    with pytest.raises(LabelStudioError, match=r"^first: ") as caught:
        align("push")
    assert "second" not in str(caught.value)
    assert len(list(client.tasks(stays.project))) == 3
    assert "second: 0 tasks sent, 3 known" in align("push", "second")


def test_a_deleted_project_keeps_no_other_from_being_pulled(align, client, store, pairs, label):
    """Names that look like markup are printed as they are, in lines and in tables."""
    made = []
    for name in ("first [/b]", "second [/b]"):
        align("init", name)
        made += projects(store, name)
        push(client, store, made[-1], pairs(1))
    label(made[1], pairs(1)[0])
    client.request("DELETE", f"api/projects/{made[0].project}/")
    with pytest.raises(LabelStudioError, match=r"^first \[/b\]: .*404") as caught:
        align("pull")
    assert "second" not in str(caught.value)
    assert len(store.comparisons()) == 1
    assert "second [/b]: 0 new" in align("pull", "second [/b]")
    assert "first [/b]" in align("status", url=False)


def test_a_server_is_known_by_either_spelling(align, server, store, pairs, label):
    align("init", "spelling")
    (project,) = projects(store, "spelling")
    there = ("--data", str(server.folder))
    other = server.login.url.replace("127.0.0.1", "localhost")
    store.add_items(pairs(1))
    assert "1 tasks sent" in align("push", "--url", other, *there, url=False)
    label(project, pairs(1)[0])
    assert "spelling: 1 new" in align("pull", "--url", other, *there, url=False)


def test_a_server_without_projects_of_the_store_is_named(align, store):
    add_project(store, Project("http://elsewhere:1", 1, "far", "pair", "", "<View/>", "hash"))
    with pytest.raises(LabelStudioError, match=r"no project on http://127.*only on http://elsew"):
        align("pull")


def test_mistakes_are_named(align, tmp_path):
    with pytest.raises(LabelStudioError, match=r"no project 'nope' \(known: none\)"):
        align("push", "nope")
    with pytest.raises(ConfigError, match="use pair, ranking, rating, thumb"):
        align("init", "kinds", "--kind", "stars")
    with pytest.raises(ConfigError, match="LABEL_STUDIO_API_KEY: is not set"):
        align("push", "--data", str(tmp_path), url=False)


def test_labels_deleted_on_purpose(align, client, store, pairs, label):
    store.add_items(pairs(22))
    align("init", "spring clean")
    align("push", "spring clean")
    (project,) = projects(store, "spring clean")
    for item in pairs(22):
        label(project, item)
    align("pull", "spring clean")
    for task in client.tasks(project.project, fields=("id",)):
        client.delete_task(task["id"])
    with pytest.raises(LabelStudioError, match=r"spring clean.*22 of 22 labels are gone"):
        align("pull", "spring clean")
    assert "22 deleted" in align("pull", "spring clean", "--accept-deletions")
    assert store.comparisons() == []
