"""Rounds of the active loop through a real server: the queue's order, kills, and nothing twice."""

from __future__ import annotations

import importlib.util
import json
import secrets
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from align.active.choose import Chooser
from align.active.desk_label_studio import LabelStudioDesk
from align.active.loop import Loop
from align.active.stop import Rules
from feedback.acquisition import STRATEGIES, Holdout
from feedback.labelstudio.client import DoubtfulError
from feedback.labelstudio.journal import projects
from feedback.labelstudio.session import AnnotatorSession, entry, pair_result
from feedback.schema import Comparison, Ranking

# The first test may have to install the server.
pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]

FILE = Path(__file__).resolve().parents[2] / "active" / "conftest.py"
spec = importlib.util.spec_from_file_location("active_fixtures", FILE)
assert spec is not None
assert spec.loader is not None
made = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = made
spec.loader.exec_module(made)


@pytest.fixture
def person(server, client):
    """A new annotator, signed in."""
    email = f"{secrets.token_hex(4)}@example.org"
    with AnnotatorSession(server.login.url, email, "a-password-1") as session:
        session.join(client.invitation())
        yield session


@pytest.fixture
def make_loop(client, store, tmp_path):
    def make(pool, **settings):
        desk = LabelStudioDesk(store, client, f"active {secrets.token_hex(4)}")
        chooser = Chooser(
            STRATEGIES["bald"](),
            STRATEGIES["random"](),
            Holdout(0.3),
            batch=8,
            holdout_share=0.25,
            rankings=settings.pop("rankings", False),
        )
        learner = made.WordLearner()
        rules = Rules(rounds=settings.pop("rounds", 2))
        return Loop(tmp_path / "run", pool, store, learner, chooser, desk, rules, **settings)

    return make


def choice_of(run: Path, number: int):
    return json.loads((run / "rounds" / f"{number:03d}" / "choice.json").read_text())["rows"]


def answer(person, project: int, most: int | None = None) -> list[str]:
    """Take tasks as they are handed out, say what the words are worth; the keys in order."""
    keys: list[str] = []
    while most is None or len(keys) < most:
        task = person.next_task(project)
        if task is None:
            break
        shown = task["data"]
        keys.append(shown["key"])
        if shown["kind"] == "ranking":
            order = sorted(shown["items"], key=lambda one: -made.worth(one["body"]))
            result = [entry("rank", "ranker", ranker={"rank": [one["id"] for one in order]})]
            result[0]["to_name"] = "items"
        else:
            gain = made.worth(shown["answer_1"]) - made.worth(shown["answer_2"])
            result = pair_result("tie" if gain == 0 else "a1" if gain > 0 else "b1")
        person.submit(task["id"], result, lead_time=12.0)
    return keys


def test_rounds_in_the_order_of_the_queue(client, store, person, make_loop, tmp_path):
    pool = made.make_pool(60)
    states: list[dict] = []
    loop = make_loop(pool, told=lambda state: states.append(dict(state)))
    run = tmp_path / "run"
    assert loop.run() == "waiting"
    (project,) = projects(store, loop.desk.name)
    assert f"{client.url}/projects/{project.project}/data" in states[-1]["next"]
    # A process that died between the push and its note pushes again: the server has each task once.
    (run / "rounds" / "001" / "asked.json").unlink()
    assert loop.run() == "waiting"
    assert len(list(client.tasks(project.project, (), fields=("id", "data")))) == 8

    wanted = [row["id"] for row in choice_of(run, 1)]
    first = answer(person, project.project, 3)
    assert loop.run() == "waiting"
    assert "3 of 8 questions have an answer" in states[-1]["next"]
    assert first + answer(person, project.project) == wanted
    assert loop.run() == "waiting"  # trained, measured, and asked the second round

    second = choice_of(run, 2)
    scores = [row["score"] for row in second if not row["held"]]
    assert scores == sorted(scores, reverse=True)
    assert answer(person, project.project) == [row["id"] for row in second]
    assert loop.run() == "stopped"
    assert states[-1]["why"] == ["rounds: all 2 rounds are done"]
    said = store.comparisons()
    assert len(said) == len({one.pair for one in said}) == 16
    for one in said:  # whatever side it was shown on
        gain = made.worth(one.response_a) - made.worth(one.response_b)
        assert np.sign(gain) == {"a": 1, "tie": 0, "b": -1}[one.label]
    measured = json.loads((run / "rounds" / "003" / "measure.json").read_text())
    assert measured["accuracy"]["n"] == 4
    assert measured["minutes"] == pytest.approx(16 * 12 / 60)
    assert measured["curve"] is None


def test_rankings_have_a_project_of_their_own(client, store, person, make_loop, tmp_path):
    texts = ("w", "x", "y", "z")
    store.add_judgements(
        [Ranking(f"{i}?", texts, (0, 1, 2, 3), "ann", lead_time=12.0) for i in range(5)]
    )
    loop = make_loop(made.make_pool(60, answers=4), rankings=True)
    assert loop.run() == "waiting"
    (pairs,) = projects(store, loop.desk.name)
    answer(person, pairs.project)
    assert loop.run() == "waiting"
    rows = choice_of(tmp_path / "run", 2)
    assert {row["kind"] for row in rows} == {"pair", "ranking"}  # the holdout's, and the chosen
    (ranks,) = projects(store, f"{loop.desk.name} rankings")
    keys = answer(person, ranks.project)
    assert keys == [row["id"] for row in rows if row["kind"] == "ranking"]
    answer(person, pairs.project)
    assert loop.run() == "stopped"
    orders = [one for one in store.judgements() if not isinstance(one, Comparison)]
    orders = [one for one in orders if one.annotator != "ann"]
    assert len(orders) == len(keys)
    for one in orders:
        worths = [made.worth(one.responses[place]) for place in one.order]
        assert worths == sorted(worths, reverse=True)


def test_a_server_that_is_away(client, make_loop, tmp_path):
    loop = make_loop(made.make_pool(60))
    assert loop.run() == "waiting"
    gone = replace(loop.desk, client=type(client)("http://127.0.0.1:9", "token"))
    real = loop.desk.client.url
    gone.client.url = real  # the projects are known by their server
    away = replace(loop, desk=gone)
    with pytest.raises(DoubtfulError):
        away.run()
    lines: list[str] = []

    class EnoughError(Exception):
        pass

    def sleep(seconds: float) -> None:
        if len(lines) > 2:
            raise EnoughError
        lines.append("nap")

    with pytest.raises(EnoughError):  # who waits goes on looking
        replace(away, say=lines.append).run(
            wait=1.0, sleep=lambda s: (lines.append("nap"), sleep(s))
        )
    assert any("no connection" in line for line in lines)
