"""The quickstart's world is repeatable, splits cleanly, and its gold scorer cannot be tricked."""

from __future__ import annotations

import random

import pytest

from align.quickstart.annotators import annotators
from align.quickstart.gold import PERFECT, gold_score
from align.quickstart.world import FLAWLESS, Fact, Habits, World
from feedback.agreement import pairwise_agreement
from feedback.records import new_pair


@pytest.fixture(scope="module")
def world():
    return World(3)


def flawless(world, row):
    facts = [Fact(**fact) for fact in row["facts"]]
    return world.answer(facts, random.Random(0), FLAWLESS)


def score(row, text):
    return gold_score([row["prompt"]], [text], facts=[row["facts"]])[0]


def test_the_same_seed_is_the_same_world_and_another_is_not(world):
    again = World(3)
    assert again.prompts(50) == world.prompts(50)
    assert again.corpus(20) == world.corpus(20)
    assert World(4).facts != world.facts


def test_no_test_question_is_a_training_question(world):
    train = {row["prompt"][0]["content"] for row in world.prompts(800)}
    test = {row["prompt"][0]["content"] for row in world.prompts(200, "test")}
    assert len(train) == 800
    assert not train & test


def test_flawless_answers_are_perfect(world):
    for row in world.prompts(100, "test"):
        assert score(row, flawless(world, row)) == PERFECT


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good, row: "",
        lambda good, row: good + " " + good,
        lambda good, row: row["prompt"][0]["content"],
        lambda good, row: good[:-6],
        lambda good, row: "Thank you for your question! " * 40,
        lambda good, row: good.replace(".", " or not."),
        lambda good, row: "1 2 3 ! ? . " * 30,
    ],
    ids=["empty", "twice", "prompt", "cut", "praise", "hedged", "noise"],
)
def test_tricks_score_below_an_honest_answer(world, spoil):
    for row in world.prompts(30, "test"):
        good = flawless(world, row)
        assert score(row, spoil(good, row)) < score(row, good)


def test_a_wrong_value_costs_more_than_silence(world):
    row = next(r for r in world.prompts(50, "test") if len(r["facts"]) == 1)
    fact = row["facts"][0]
    other = next(
        f.value
        for f in World(9).facts.values()
        if f.topic == fact["topic"] and f.value != fact["value"]
    )
    good = flawless(world, row)
    assert score(row, good.replace(fact["value"], other)) < score(row, good)


def test_worse_habits_score_worse_on_average(world):
    draw = random.Random(1)
    rows = world.prompts(200)

    def mean(habits):
        answers = [
            world.answer([Fact(**fact) for fact in row["facts"]], draw, habits) for row in rows
        ]
        scores = gold_score(
            [row["prompt"] for row in rows], answers, facts=[row["facts"] for row in rows]
        )
        return sum(scores) / len(scores)

    assert mean(FLAWLESS) > mean(Habits()) > mean(Habits(state=0.2, right=0.2, rude=0.9))


def test_annotators_differ_in_reliability_and_repeat_themselves(world):
    rows = world.prompts(300)
    draw = random.Random(2)
    pairs = []
    for row in rows:
        facts = [Fact(**fact) for fact in row["facts"]]
        first, second = (world.answer(facts, draw, Habits()) for _ in range(2))
        if first != second:
            pair = new_pair(row["prompt"], first, second, "", "", {"facts": row["facts"]}, 0)
            pairs.append((pair, score(row, pair.response_a), score(row, pair.response_b)))
    right = {}
    said = []
    for annotator in annotators(0):
        verdicts = [annotator.judge(*pair) for pair in pairs]
        again = [annotator.judge(*pair) for pair in pairs]
        assert [v.label for v in verdicts] == [v.label for v in again]
        said += verdicts
        decided = [
            (v.label == "a") == (a > b)
            for v, (_, a, b) in zip(verdicts, pairs, strict=True)
            if a != b
        ]
        right[annotator.name] = sum(decided) / len(decided)
    assert right["ada"] > right["dov"] + 0.1
    assert 0.6 < pairwise_agreement(said).rate < 0.95
