"""Against a real server: what people do there is in the store, exactly."""

from __future__ import annotations

import stat
from datetime import timedelta

import pytest

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal
from feedback.labelstudio.projects import check_config, create_projects
from feedback.labelstudio.pull import pull
from feedback.labelstudio.push import push
from feedback.labelstudio.quarantine import Quarantine
from feedback.labelstudio.tasks import TWIN
from feedback.labelstudio.templates import Template
from feedback.records import new_item
from feedback.schema import Comparison, Correction, Ranking, Rating, Thumb

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


def test_the_login_is_secret(server):
    login = server.login
    path = server.folder / "login.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log = (server.folder / "server.log").read_text()
    assert login.token not in log
    assert login.password not in log


def test_items_go_out_once_and_come_back_byte_for_byte(client, store, make_project, pairs):
    project, items = make_project(), pairs(25)
    assert push(client, store, project, items, batch_size=10).sent == 25
    again = push(client, store, project, items, batch_size=10)
    assert (again.sent, again.known) == (0, 25)
    on_server = {task["data"]["key"]: task["data"] for task in client.tasks(project.project)}
    assert set(on_server) == {item.id for item in items}
    for item in items:
        shown = [on_server[item.id]["answer_1"], on_server[item.id]["answer_2"]]
        assert shown == [item.responses[i] for i in item.shown]
        assert on_server[item.id]["prompt"] == item.prompt


def test_labels_come_back_turned_right(client, store, make_project, pairs, label):
    project, items = make_project(), pairs(10)
    push(client, store, project, items)
    levels = ["a2", "a1", "tie", "b1", "b2"] * 2
    for item, level in zip(items, levels, strict=True):
        label(project, item, level, reason="because \U0001f4e6", correction="<b>new</b>\n ok")
    report = pull(client, store, project)
    assert (report.new, report.complete, report.quarantined) == (10, True, 0)
    found = {c.pair: c for c in store.comparisons()}
    for item, level in zip(items, levels, strict=True):
        left = item.shown[0]
        wanted = "tie" if level == "tie" else "ab"[left if level[0] == "a" else 1 - left]
        comparison = found[item.id]
        assert comparison.label == wanted
        assert (comparison.response_a, comparison.response_b) == item.responses
        assert (comparison.source_a, comparison.source_b) == ("sft", "dpo")
        assert comparison.swapped == (left == 1)
        assert (comparison.reason, comparison.annotator) == (
            "because \U0001f4e6",
            "admin@align.local",
        )
    corrections = [j for j in store.judgements() if isinstance(j, Correction)]
    assert [c.corrected for c in corrections] == ["<b>new</b>\n ok"] * 10


def test_updated_deleted_recreated_skipped_and_nonsense(client, store, make_project, pairs, label):
    project, items = make_project(), pairs(8)
    push(client, store, project, items)
    one, two, three = (label(project, item, "a1", correction="x") for item in items[:3])
    tasks = Journal(store, project).tasks()
    client.create_annotation(tasks[items[3].id], result=[], was_cancelled=True)
    client.create_annotation(tasks[items[4].id], result=[{"hello": "x"}])
    report = pull(client, store, project)
    assert (report.new, report.skipped, report.quarantined) == (4, 1, 1)
    assert report.complete
    (aside,) = Quarantine(Journal(store, project)).open().values()
    assert "without control" in aside["reason"]
    assert aside["raw"]["result"] == [{"hello": "x"}]

    events = store.counts().events
    assert pull(client, store, project).new == 0
    assert store.counts().events == events  # nothing twice

    client.update_annotation(one, result=[_choice("tie")])  # and without its correction
    client.delete_annotation(two)
    client.delete_annotation(three)
    label(project, items[2], "b2")
    report = pull(client, store, project)
    assert (report.updated, report.deleted, report.new) == (1, 2, 1)
    assert report.complete
    labels = {c.pair: (c.label, c.strength) for c in store.comparisons()}
    assert labels[items[0].id] == ("tie", 0)
    assert items[1].id not in labels
    assert labels[items[2].id][1] == 2
    assert not any(isinstance(j, Correction) for j in store.judgements())
    assert {e["kind"] for e in store.history()} == {"annotation", "skip", "deletion"}
    full = pull(client, store, project, full=True)
    assert (full.new, full.updated, full.deleted, full.complete) == (0, 0, 0, True)


def test_twins_are_asked_both_ways_round(client, store, make_project, pairs, label):
    project, items = make_project(), pairs(3)
    assert push(client, store, project, items, twins=True).sent == 6
    label(project, items[0], "a1")
    label(project, items[0], "a1", key=items[0].id + TWIN)  # chose what was shown first, twice
    pull(client, store, project)
    first, second = store.comparisons()
    assert {first.label, second.label} == {"a", "b"}
    assert first.swapped != second.swapped


def test_rankings_ratings_and_thumbs(client, store, make_project):
    chat = [{"role": "user", "content": "q"}]
    ranking = new_item("ranking", chat, ("w", "x", "y"), seed=2)
    rating, thumb = new_item("rating", chat, ("only",)), new_item("thumb", chat, ("only",))
    for item in (ranking, rating, thumb):
        project = make_project(item.kind)
        push(client, store, project, [item])
        (task,) = Journal(store, project).tasks().values()
        if item is ranking:
            order = [f"r{item.shown.index(i)}" for i in (2, 0, 1)]  # y, w, x
            value = {"ranker": {"rank": order}}
            result = [{"from_name": "rank", "to_name": "items", "type": "ranker", "value": value}]
        elif item is rating:
            result = [
                {"from_name": a, "to_name": "chat", "type": "rating", "value": {"rating": n}}
                for a, n in (("helpful", 2), ("honest", 7), ("harmless", 5))
            ]
        else:
            result = [_choice("up", "thumb")]
        client.create_annotation(task, result=result)
        assert pull(client, store, project).complete
    found = {type(j): j for j in store.judgements()}
    assert [found[Ranking].responses[i] for i in found[Ranking].order] == ["y", "w", "x"]
    assert found[Rating].scores == {"helpful": 2, "honest": 7, "harmless": 5}
    assert found[Thumb].good
    assert Comparison not in found


def test_an_edited_configuration_is_refused(client, store, make_project, pairs):
    project = make_project()
    check_config(client, project)
    edited = project.config.replace("A is better", "A wins")
    client.update_project(project.project, label_config=edited)
    for action in (
        lambda: push(client, store, project, pairs(1)),
        lambda: pull(client, store, project),
    ):
        with pytest.raises(LabelStudioError, match="was edited after it was created"):
            action()
    client.update_project(project.project, label_config=project.config)
    assert push(client, store, project, pairs(1)).sent == 1


def test_each_annotator_has_a_project_of_their_own(client, store, pairs):
    people = ["ann@example.org", "bob@example.org"]
    made = create_projects(client, store, "blind", Template("pair"), annotators=people)
    assert [project.annotator for project in made] == people
    for project in made:
        assert push(client, store, project, pairs(2)).sent == 2
    with pytest.raises(LabelStudioError, match="has one already"):
        create_projects(client, store, "blind", Template("pair"))


def test_a_late_commit_inside_the_overlap_is_not_missed(client, store, make_project, pairs, label):
    project, items = make_project(), pairs(4)
    push(client, store, project, items)
    number = label(project, items[0], "a1")
    pull(client, store, project)
    client.update_annotation(number, result=[_choice("tie")])  # no count betrays this one
    journal = Journal(store, project)
    journal.saw(journal.seen().until + timedelta(seconds=60))  # as if others were newer
    assert pull(client, store, project).updated == 1
    assert [c.label for c in store.comparisons()] == ["tie"]


def test_bad_servers_and_tokens_are_answered_clearly(server, client):
    bad = LabelStudioClient(server.login.url, "0" * 40)
    with pytest.raises(LabelStudioError, match=r"401.*Account & Settings"):
        bad.check()
    with pytest.raises(LabelStudioError, match="no connection"):
        LabelStudioClient("http://127.0.0.1:9", "x").check()
    with pytest.raises(LabelStudioError, match="is not a URL"):
        LabelStudioClient("localhost:8080", "x")
    with pytest.raises(LabelStudioError, match="404"):
        client.project(999_999)


def _choice(value, control="pref"):
    return {
        "from_name": control,
        "to_name": "chat",
        "type": "choices",
        "value": {"choices": [value]},
    }
