"""The loop as a whole: what it asks, trains on and measures, and what a kill costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from align.active.choose import check_pool
from align.active.desks import FileDesk, SimulatedDesk, of_ranks
from align.active.pool import Group, PairPool, shuffled
from align.active.said import read_said
from align.active.stop import Rules
from align.errors import ConfigError, DataError
from feedback.acquisition import Annotator, Holdout
from feedback.schema import Ranking
from feedback.simulate import SimulatedAnnotator
from feedback.store import FeedbackStore


def measures(run: Path):
    return [json.loads(f.read_text()) for f in sorted(run.glob("rounds/*/measure.json"))]


def trained_on(run: Path):
    rows = []
    for file in run.glob("rounds/*/fit/train.jsonl"):
        rows += [json.loads(line) for line in file.read_text().splitlines()]
    return rows


def test_three_rounds_beside_random(make_loop, make_pool, questions, store, tmp_path):
    pool = make_pool(120)
    told = []
    loop = make_loop(pool, arms=2, told=told.append)
    assert loop.run() == "stopped"
    assert told[-1]["why"] == ["rounds: all 3 rounds are done"]
    found = measures(tmp_path / "run")
    assert [one["answered"] for one in found] == [0, 8, 16, 24]
    assert found[0]["accuracy"] is None
    asked = questions(tmp_path / "run")
    assert len({row["id"] for row in asked}) == 24 == store.counts().comparisons
    assert all(row["reason"] for row in asked)
    # Two of eight are the holdout's: drawn at random, never trained on, and alone measured on.
    held = loop.chooser.held(pool)
    assert sum(row["held"] for row in asked) == 6
    assert all((row["id"] in held) == row["held"] for row in asked)
    prompts = {pool.groups[pool.pairs[pool.place[name]].group].prompt for name in held}
    assert not prompts & {row["prompt"] for row in trained_on(tmp_path / "run")}
    assert found[-1]["accuracy"]["n"] == 6
    assert found[-1]["rows"] == 18
    curve = found[-1]["curve"]
    assert curve["n"] == len(held)
    assert len(curve["random"]) == 2
    low, high = curve["difference"]["low"], curve["difference"]["high"]
    assert low <= curve["chosen"] - np.mean(curve["random"]) <= high
    assert curve["chosen"] > 0.7  # ten words, 18 noiseless labels


def test_the_queue_hides_the_holdout_and_keeps_the_order(make_loop, make_pool, questions, tmp_path):
    make_loop(make_pool(200), batch=40, rules=Rules(rounds=2)).run()
    second = questions(tmp_path / "run")[40:]
    assert [row["queue"] for row in second] == list(range(40, 0, -1))
    scores = [row["score"] for row in second if not row["held"]]
    assert scores == sorted(scores, reverse=True)
    drawn = [place for place, row in enumerate(second) if row["held"]]
    assert drawn != list(range(10))
    assert drawn != list(range(30, 40))


class Killed(BaseException):
    """What kill -9 is to a process: nothing handles it."""


def killing(monkeypatch, at: int, after: bool):
    """The `at`-th file that comes into place, or write to the store, is the last thing done."""
    count = iter(range(1, 10_000))
    for owner, name in ((Path, "replace"), (FeedbackStore, "write")):
        real = getattr(owner, name)

        def dying(*args, real=real):
            now = next(count)
            if now == at and not after:
                raise Killed
            result = real(*args)
            if now == at:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, dying)
    return count


def test_a_kill_at_any_moment_loses_and_doubles_nothing(
    make_loop, make_pool, questions, store, tmp_path
):
    pool = make_pool(60, answers=3)
    fresh = _more_answers(pool)
    settings = {"arms": 1, "fresh": fresh, "fresh_prompts": 2, "rules": Rules(rounds=2)}
    desk = SimulatedDesk(store, [SimulatedAnnotator("ann", 0)], of_ranks_or_words)
    calm = make_loop(pool, desk=desk, folder=tmp_path / "calm", **settings)
    with pytest.MonkeyPatch.context() as patch:
        count = killing(patch, at=0, after=False)
        assert calm.run() == "stopped"
        moments = next(count) - 1
    wanted = questions(tmp_path / "calm")
    assert moments > 15
    for at in range(1, moments + 1):
        run, url = tmp_path / f"{at}", f"sqlite:///{tmp_path / f'{at}.db'}"
        for attempt in range(2):
            with FeedbackStore(url) as own, pytest.MonkeyPatch.context() as patch:
                desk = SimulatedDesk(own, [SimulatedAnnotator("ann", 0)], of_ranks_or_words)
                loop = make_loop(pool, desk=desk, store=own, folder=run, **settings)
                if attempt == 0:
                    killing(patch, at, after=at % 2 == 0)  # just before it, or just after
                    with pytest.raises(Killed):
                        loop.run()
                else:
                    assert loop.run() == "stopped"
                    assert own.counts().events == len(wanted) == own.counts().comparisons
        assert questions(run) == wanted, f"killed at {at} of {moments}"
        shutil.rmtree(run)


def of_ranks_or_words(group: Group):
    return [
        float(text.count("please") + text.count("sure") - text.count("no")) + len(text) / 1e3
        for text in group.answers
    ]


def _more_answers(pool: PairPool):
    def fresh(groups, number):
        made = []
        for place, group in enumerate(groups):
            texts = [*group.answers, f"please sure {number} {place}"]
            made.append(Group(group.prompt, **(shuffled(group.prompt, texts) | {"ranks": ()})))
        return made

    return fresh


def test_new_answers_go_to_prompts_that_are_not_held_out(make_loop, make_pool, tmp_path, store):
    pool = make_pool(60)
    desk = SimulatedDesk(store, [SimulatedAnnotator("ann", 0)], of_ranks_or_words)
    loop = make_loop(pool, desk=desk, truth=None, fresh=_more_answers(pool), fresh_prompts=3)
    assert loop.run() == "stopped"
    whole = loop.pool_at(99)
    assert len(whole.groups) == 60 + 3 * 2  # no model chose them in the first round
    held = {pool.keys[pool.place[name]] for name in loop.chooser.held(pool)}
    new = whole.groups[60:]
    assert not {group.prompt.casefold() for group in new} & held
    assert all(one["curve"] is None for one in measures(tmp_path / "run"))
    asked = {
        name
        for f in (tmp_path / "run").glob("rounds/*/choice.json")
        for row in json.loads(f.read_text())["rows"]
        for name in row["pairs"]
    }
    assert asked & {pair.id for pair in whole.pairs if pair.group >= 60}


def test_each_rule_ends_the_loop_and_is_named(make_loop, make_pool, store, tmp_path):
    each = {
        "labels": Rules(rounds=None, labels=12),
        "minutes": Rules(rounds=None, minutes=0.5),
        "tau": Rules(rounds=9, tau=10.0),
        "kappa": Rules(rounds=9, kappa=0.01, window=1),
        "resolution": Rules(rounds=9, resolution=1.9, window=1),
    }
    for name, rules in each.items():
        told = []
        folder = tmp_path / name
        with FeedbackStore(f"sqlite:///{tmp_path / name}.db") as own:
            given = {"folder": folder, "rules": rules, "told": told.append}
            make_loop(make_pool(60), store=own, **given).run()
            if name == "labels":
                assert own.counts().comparisons == 12  # the last round asks no more than are left
        assert told[-1]["status"] == "stopped"
        assert [why.split(":")[0] for why in told[-1]["why"]] == [name]


def test_a_pool_that_is_asked_out_ends_the_loop(make_loop, make_pool, questions, tmp_path):
    told = []
    pool = make_pool(12)
    make_loop(pool, rules=Rules(rounds=9), similarity=None, told=told.append).run()
    assert told[-1]["why"] == ["pool: every pair that may be asked is asked."]
    assert len(questions(tmp_path / "run")) == 12


def timed_rankings(store):
    """Five rankings of something else, six seconds each."""
    texts = ("w", "x", "y", "z")
    said = [Ranking(f"{i}?", texts, (0, 1, 2, 3), "ann", lead_time=6.0) for i in range(5)]
    store.add_judgements(said)


def test_rankings_are_asked_where_they_tell_more_a_minute(
    make_loop, make_pool, questions, store, tmp_path
):
    pool = make_pool(80, answers=4)
    timed_rankings(store)
    loop = make_loop(pool, rankings=True, truth=None, batch=12, rules=Rules(rounds=3))
    assert loop.run() == "stopped"
    asked = questions(tmp_path / "run")
    kinds = {row["kind"] for row in asked if not row["held"]}
    assert kinds == {"pair", "ranking"}  # nobody knows anything in the first round
    held = loop.chooser.held(pool)
    for row in asked:
        assert row["held"] is (row["kind"] == "pair" and row["id"] in held)
        if row["kind"] == "ranking":
            assert len(row["pairs"]) == 6
            assert not held & set(row["pairs"])
    everything = [name for row in asked for name in row["pairs"]]
    assert len(everything) == len(set(everything))  # no pair of a ranking is asked again
    weights = {row.get("weight") for row in trained_on(tmp_path / "run") if "weight" in row}
    assert sorted(weights) == pytest.approx([1 / 3, 1.0])
    why = [
        json.loads(f.read_text())["why"] for f in sorted(tmp_path.glob("run/rounds/*/choice.json"))
    ]
    assert why[0] == ""
    assert "rankings of 4 tell" in why[1]
    assert "(median time of 5)" in why[1]
    said = read_said(store, pool)
    assert len(said.shares) == len(everything)
    assert said.timed == len(asked)  # the five that were timed before are not of this pool


def test_whoever_a_budget_names_answers_alone(make_loop, make_pool, questions, store, tmp_path):
    from dataclasses import replace

    people = [SimulatedAnnotator("ann", 0), SimulatedAnnotator("bob", 0)]
    desk = SimulatedDesk(store, people, of_ranks)
    loop = make_loop(make_pool(60), desk=desk, rules=Rules(rounds=2))
    buyers = (Annotator("ann", 1.0, 3.0), Annotator("bob", 2.0))
    loop = replace(loop, chooser=replace(loop.chooser, budget=9.0, people=buyers))
    assert loop.run() == "stopped"
    asked = questions(tmp_path / "run")
    assert len(asked) == 2 * 6  # three of ann's at 1 and three of bob's at 2
    by = {c.pair: c.annotator for c in store.comparisons()}
    assert by == {row["id"]: row["annotator"] for row in asked}
    assert set(by.values()) == {"ann", "bob"}


def fill(path: Path, answer, count: int | None = None):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:count]:
        row["answer"] = answer(row) if callable(answer) else answer
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_person_with_a_file_is_waited_for(make_loop, make_pool, store, tmp_path, worth):
    pool = make_pool(60)
    desk = FileDesk(store, tmp_path / "questions")
    told = []
    loop = make_loop(pool, desk=desk, truth=None, rules=Rules(rounds=2), told=told.append)
    assert loop.run() == "waiting"
    path = tmp_path / "questions" / "round-001.jsonl"
    assert "0 of 8 questions have an answer" in told[-1]["next"]
    assert str(path) in told[-1]["next"]
    better = lambda row: "first" if worth(row["first"]) > worth(row["second"]) else "second"  # noqa: E731
    rows = fill(path, better, 5)
    rows[5]["answer"] = "skip"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert loop.run() == "waiting"  # 6 of 8; the file stays as it is
    assert "6 of 8" in told[-1]["next"]
    fill(path, better)
    assert loop.run() == "waiting"
    assert "round 2: 0 of 8" in told[-1]["next"]
    for one in store.comparisons():  # what was shown first is turned back
        assert (one.label == "a") == (worth(one.response_a) > worth(one.response_b))
    assert {one.swapped for one in store.comparisons()} == {True, False}
    assert store.counts().comparisons == 8  # the skip was answered after all
    fill(tmp_path / "questions" / "round-002.jsonl", better)
    waits = []
    assert loop.run(wait=1.0, sleep=waits.append) == "stopped"
    assert waits == []


def test_a_patient_loop_sleeps_until_there_are_enough(make_loop, make_pool, store, tmp_path):
    desk = FileDesk(store, tmp_path / "questions")
    loop = make_loop(make_pool(60), desk=desk, truth=None, rules=Rules(rounds=1), enough=0.5)
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        fill(tmp_path / "questions" / "round-001.jsonl", "tie", len(naps))

    assert loop.run(wait=7.0, sleep=sleep) == "stopped"
    assert naps == [7.0] * 4  # four of eight
    found = measures(tmp_path / "run")[-1]
    assert (found["answered"], found["rows"]) == (4, 0)  # ties teach nothing


@pytest.mark.parametrize(
    ("answer", "message"),
    [("left", "the answer is 'left'. Fix: first, second, tie, skip"), (3, "the answer is 3")],
)
def test_an_answer_that_is_none_names_its_line(
    answer, message, make_loop, make_pool, store, tmp_path
):
    loop = make_loop(make_pool(60), desk=FileDesk(store, tmp_path / "questions"), truth=None)
    loop.run()
    fill(tmp_path / "questions" / "round-001.jsonl", answer, 2)
    with pytest.raises(DataError, match=message) as caught:
        loop.run()
    assert "round-001.jsonl:1:" in str(caught.value)
    (tmp_path / "questions" / "round-001.jsonl").write_text('{"id": "x", "answer": "tie"}\n')
    with pytest.raises(DataError, match="is no question of this round"):
        loop.run()
    (tmp_path / "questions" / "round-001.jsonl").unlink()
    with pytest.raises(DataError, match="questions are gone"):
        loop.run()


def test_a_pool_without_room_for_a_holdout_is_refused(make_pool):
    with pytest.raises(ConfigError, match=r"acquisition.holdout: 0\.001 of 20 prompts holds 0 out"):
        check_pool(make_pool(20), Holdout(0.001))
    with pytest.raises(ConfigError, match="holds every pair out"):
        check_pool(make_pool(5), Holdout(0.999))
