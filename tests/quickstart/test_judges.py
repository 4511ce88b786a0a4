"""The quickstart's judges at a real Label Studio server, without the training around them."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest

from align.errors import ConfigError
from align.quickstart import judges, person
from align.quickstart.gold import gold_score
from align.quickstart.recipe import run_quickstart
from align.quickstart.world import Fact, World
from feedback.errors import LabelStudioError
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


def test_a_person_is_waited_for_and_never_overwritten(issued, monkeypatch):
    """Skips bring more tasks; an interruption loses nothing; an end without labels says so."""
    folder, store, world = issued
    monkeypatch.setattr(judges, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(person, "LEAST_DECIDED", 1)

    def work(skips: int, labels: int) -> threading.Thread:
        """Somebody who skips so many tasks and then labels so many, once the server is up."""

        def label() -> None:
            login = folder / "label-studio" / "login.json"
            while not (login.is_file() and projects(store, "quickstart")):
                time.sleep(0.2)
            kept = json.loads(login.read_text())
            while not healthy(kept["url"]):
                time.sleep(0.2)
            with AnnotatorSession(kept["url"], kept["email"], kept["password"]) as desk:
                desk.log_in()
                (project,) = projects(store, "quickstart")
                for number in range(skips + labels):
                    while (task := desk.next_task(project.project)) is None:
                        time.sleep(0.2)
                    if number < skips:
                        desk.submit(task["id"], [], skip=True)
                    else:
                        desk.submit(task["id"], pair_result("a1", reason="clearer"))

        someone = threading.Thread(target=label, daemon=True)
        someone.start()
        return someone

    someone = work(skips=4, labels=3)  # of six tasks at first
    judges.human_judge(store, world, folder, enough=3)
    someone.join()
    assert [one.reason for one in store.comparisons()] == ["clearer"] * 3
    assert {person.held_out(one.prompt) for one in store.comparisons()} == {True, False}
    someone = work(skips=5, labels=0)
    with pytest.raises(LabelStudioError, match="all 12 pairs are labelled or skipped, and 1 more"):
        judges.human_judge(store, world, folder, enough=4)
    someone.join()
    assert (len(store.comparisons()), store.counts().skips) == (3, 9)
    with pytest.raises(ConfigError, match="--labels: is 13, and there are 12 pairs to judge"):
        judges.human_judge(store, world, folder, enough=13)
    with pytest.raises(ConfigError, match="holds labels that a person made"):
        run_quickstart(folder.parent, seeds=[0])


def test_labels_that_were_not_pulled_yet_are_not_replaced(tmp_path):
    """They are at the server only, so a store without any proves nothing."""
    mark = tmp_path / "seed-0" / "label-studio" / person.MARK
    mark.parent.mkdir(parents=True)
    mark.touch()
    for judge in ("simulated", "label-studio"):
        with pytest.raises(ConfigError, match=r"--output: .*seed-0 holds a server that a person"):
            run_quickstart(tmp_path, judge=judge, seeds=[0])


@pytest.mark.parametrize("labels", [0, person.LEAST_LABELS - 1, 1_000_000])
def test_a_number_of_labels_that_cannot_do_is_refused(tmp_path, labels: int):
    with pytest.raises(ConfigError, match=rf"--labels: is {labels}, .* give 10 to 4200"):
        run_quickstart(tmp_path, judge="human", seeds=[0], labels=labels)


def test_judges_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="--judge: 'oracle' is not available") as caught:
        run_quickstart(tmp_path, judge="oracle", seeds=[], labels=5)
    assert "--seeds: is empty" in str(caught.value)
    assert "--labels: is 5" in str(caught.value)
