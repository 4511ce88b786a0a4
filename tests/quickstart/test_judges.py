"""The quickstart's judges at a real Label Studio server, without the training around them."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest

from align.errors import ConfigError
from align.quickstart import judges
from align.quickstart.gold import gold_score
from align.quickstart.recipe import run_quickstart
from align.quickstart.world import Fact, World
from feedback.labelstudio.journal import projects
from feedback.labelstudio.server import healthy
from feedback.labelstudio.session import AnnotatorSession, pair_result
from feedback.simulate import SimulatedAnnotator
from feedback.store import FeedbackStore

pytestmark = [pytest.mark.labelstudio, pytest.mark.timeout(1800)]


@pytest.fixture
def issued(tmp_path):
    """A seed's folder with a store of twelve pairs: the facts asked for against nothing of them."""
    world = World(0)
    folder = tmp_path / "seed-0"
    (folder / "data").mkdir(parents=True)
    with FeedbackStore(f"sqlite:///{folder / 'data' / 'feedback.db'}") as store:
        for place, row in enumerate(world.prompts(12)):
            good = world.answer([Fact(**fact) for fact in row["facts"]], random.Random(place))
            answers = [good, "No."] if place % 2 else ["No.", good]
            store.add_pair(row["prompt"], *answers, "sft", "sft", {"facts": row["facts"]}, seed=3)
        yield folder, store, world


def test_annotators_at_label_studio_say_what_they_saw(issued, monkeypatch):
    folder, store, world = issued
    # Without noise, each label must be the gold scorer's: any turned pair would show.
    sure = [SimulatedAnnotator(name, temperature=1e-6) for name in ("ada", "ben")]
    monkeypatch.setattr(judges, "annotators", lambda seed=0: sure)
    judges.label_studio_judge(store, world, folder, shared=4, own=3)
    said = store.comparisons()
    assert len(said) == 2 * (4 + 3)
    assert {one.annotator for one in said} == {"ada@example.org", "ben@example.org"}
    assert len({one.pair for one in said}) == 4 + 3 + 3
    assert {one.swapped for one in said} == {True, False}
    assert all(one.lead_time and one.lead_time > 2 for one in said)
    facts = {pair.id: pair.columns["facts"] for pair in store.pairs()}
    for one in said:
        a, b = gold_score(
            [one.prompt] * 2, [one.response_a, one.response_b], facts=[facts[one.pair]] * 2
        )
        assert a != b
        assert one.label == ("a" if a > b else "b")


def test_a_person_is_waited_for_and_never_overwritten(issued):
    folder, store, world = issued

    def person():
        login = folder / "label-studio" / "login.json"
        while not (login.is_file() and projects(store, "quickstart")):
            time.sleep(0.2)
        kept = json.loads(login.read_text())
        assert healthy(kept["url"])
        with AnnotatorSession(kept["url"], kept["email"], kept["password"]) as desk:
            desk.log_in()
            (project,) = projects(store, "quickstart")
            while (task := desk.next_task(project.project)) is None:
                time.sleep(0.2)
            for _ in range(3):
                desk.submit(task["id"], pair_result("a1", reason="clearer"))
                task = desk.next_task(project.project)

    someone = threading.Thread(target=person, daemon=True)
    someone.start()
    judges.human_judge(store, world, folder, enough=3)
    someone.join()
    assert [one.reason for one in store.comparisons()] == ["clearer"] * 3
    judges.human_judge(store, world, folder, enough=3)  # interrupted, and begun again
    assert len(store.comparisons()) == 3
    with pytest.raises(ConfigError, match="holds labels that a person made"):
        run_quickstart(folder.parent, seeds=[0])


def test_judges_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="--judge: 'oracle' is not available") as caught:
        run_quickstart(tmp_path, judge="oracle", seeds=[], labels=5)
    assert "--seeds: is empty" in str(caught.value)
    assert "--labels: is 5" in str(caught.value)
