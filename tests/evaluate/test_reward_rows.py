"""Labelled answers in every shape that people keep them in, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from align.data.formats import convert
from align.errors import DataError
from align.evaluate.reward_rows import read_labelled

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def test_pairs_with_category_weight_and_columns(write):
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "kind": "x", "weight": 2, "answer": "7"},
        {"prompt": "q", "chosen": "c", "rejected": "d", "kind": "y", "soft_label": 0.25},
        {"prompt": "r", "chosen": "c", "rejected": "d", "soft_label": 0.5},
    ]
    found = read_labelled(write(rows), category="kind")
    one, two, three = found.sets
    assert (one.answers, one.grades, one.category, one.weight) == (("a", "b"), (1, 0), "x", 2)
    assert one.columns == {"kind": "x", "answer": "7"}
    assert (two.answers, two.grades, two.soft) == (("d", "c"), (0.75, 0.25), 0.75)
    assert (three.category, three.decided, found.undecided) == ("", False, 1)
    assert found.rows == 3


def test_columns_of_other_names_and_inside_objects(write):
    rows = [{"q": "p", "good": "a", "poor": "b", "meta": {"kind": "x"}}]
    names = {"prompt": "q", "chosen": "good", "rejected": "poor"}
    one = read_labelled(write(rows), category="meta.kind", columns=names).sets[0]
    assert (one.prompt, one.answers, one.category) == ("p", ("a", "b"), "x")


def test_lists_of_answers(write):
    """The layout of RewardBench 2: one right answer, three wrong ones."""
    rows = [{"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "maths"}]
    one = read_labelled(write(rows), category="subset").sets[0]
    assert (one.answers, one.grades, one.category) == (tuple("abcd"), (1, 0, 0, 0), "maths")


def test_rankings_and_ratings_in_one_row(write):
    prompt = [{"role": "user", "content": "p"}]
    rows = [
        {"prompt": prompt, "responses": ["a", "b", "c"], "order": [2, 0, 1]},
        {
            "prompt": prompt,
            "responses": [said("a"), said("b")],
            "scores": [{"x": 1}, {"x": 2, "y": 4}],
        },
    ]
    ranked, rated = read_labelled(write(rows)).sets
    assert ranked.answers == (said("a"), said("b"), said("c"))
    assert ranked.grades == (1, 0, 2)
    assert rated.grades == (1, 2)  # on the aspect that both have


@pytest.mark.parametrize("name", ["score", "rating", "label"])
def test_rated_answers_come_together_by_prompt(write, name):
    rows = [
        {"prompt": "p", "completion": "a", name: 1, "kind": "x"},
        {"prompt": "alone", "completion": "a", name: 1},
        {"prompt": "p", "completion": "b", name: 0, "kind": "x"},
        {"prompt": "p", "completion": "b", name: 1, "kind": "x"},
        {"prompt": "P ", "completion": "c", name: 1, "kind": "x"},
    ]
    found = read_labelled(write(rows), category="kind")
    assert len(found.sets) == 1
    assert found.sets[0].answers == ("a", "b")
    assert found.sets[0].grades == (1, 0.5)


def test_bad_rows_are_refused_or_counted(write):
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "order": [0, 1]},
        {"prompt": "p", "responses": ["a", "b"], "order": [0, 0]},
        {"prompt": "p", "responses": ["a"], "order": [0]},
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, float("nan")]},
        {"prompt": "p", "responses": ["a", 3], "order": [0, 1]},
        {"prompt": "p", "responses": ["a", "b"], "order": [0, 1], "weight": -1},
    ]
    path = write(rows)
    with pytest.raises(
        DataError, match=r"5 rows cannot be used:\n.*rows.jsonl:2: order is no order"
    ):
        read_labelled(path)
    found = read_labelled(path, skip_bad=True)
    assert len(found.sets) == 1
    assert found.bad == {
        "order is no order of the responses": 1,
        "responses is no list of two or more answers": 1,
        "scores is no number": 1,
        "responses[1] has the wrong type": 1,
        "weight is negative": 1,
    }


def test_what_says_nothing_is_refused(write, tmp_path):
    with pytest.raises(DataError, match="do not say which answer is better"):
        read_labelled(write([{"prompt": "p", "completion": "a"}]))
    with pytest.raises(DataError, match="no row says which of two answers is better"):
        read_labelled(write([{"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]}]))
    with pytest.raises(DataError, match="no row has a category in the column 'kind'"):
        read_labelled(write([{"prompt": "p", "chosen": "a", "rejected": "b"}]), category="kind")
    with pytest.raises(DataError, match="no such file"):
        read_labelled(str(tmp_path / "gone.jsonl"))
    with pytest.raises(DataError, match="has no column 'q'"):
        read_labelled(write([{"prompt": "p", "chosen": "a", "rejected": "b"}]),
                      columns={"prompt": "q"})  # fmt: skip


def asked(text: str, system: str = "") -> list[dict]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]


def test_rows_are_laid_out_as_training_lays_them_out(write):
    """Answers may repeat the conversation, or come as messages to a prompt of plain text."""
    turns = [*asked("old"), *said("yes"), *asked("new")]
    prompts = ["p", asked("p", "Be brief."), turns]
    for prompt in prompts:
        whole = prompt if isinstance(prompt, list) else asked(prompt)
        for texts in (
            ["a", "b", "c"],
            [[*whole, *said(t)] for t in "abc"],
            [said(t) for t in "abc"],
        ):
            ranking = {"prompt": prompt, "responses": texts, "order": [2, 0, 1]}
            trained = convert(ranking, "ranking", "ranking", {})
            rated = {"prompt": prompt, "completion": texts[0], "scores": 4}
            other = {"prompt": prompt, "completion": texts[1], "scores": {"score": 5}}
            rating = [convert(row, "rating", "rating", {}) for row in (rated, other)]
            shapes = [
                ([ranking], "abc"),
                ([ranking | {"order": None, "scores": [2, 1, 3]}], "abc"),
                ([{"prompt": prompt, "chosen": texts[:1], "rejected": texts[1:]}], "abc"),
                ([rated, other], "ab"),
                ([{"prompt": prompt, "response": r["completion"], "score": r["scores"]}
                  for r in (rated, other)], "ab"),
            ]  # fmt: skip
            lists = all(isinstance(text, str) for text in texts)
            for place, (rows, kept) in enumerate(shapes):
                if place == 2 and not lists:
                    continue  # lists of conversations are a pair, not lists of answers
                one = read_labelled(write(rows)).sets[0]
                assert one.prompt == trained["prompt"] == rating[0]["prompt"], (place, texts)
                assert list(one.answers) == trained["responses"][: len(kept)]
            assert [row["completion"] for row in rating] == trained["responses"][:2]


@pytest.mark.parametrize("texts", [["a", said("b")], [said("a"), "b"]])
def test_answers_of_both_layouts_follow_the_first_as_in_training(write, texts):
    row = {"prompt": "p", "responses": texts, "order": [1, 0]}
    trained = convert(row, "ranking", "ranking", {})
    one = read_labelled(write([row | {"order": None, "scores": [1, 2]}])).sets[0]
    assert (one.prompt, list(one.answers)) == (trained["prompt"], trained["responses"])


def test_answers_to_different_prompts_are_no_set(write):
    row = {"prompt": "p", "responses": [[*asked("p"), *said("a")], [*asked("p", "s"), *said("b")]],
           "scores": [1, 2]}  # fmt: skip
    with pytest.raises(DataError, match="responses answer different prompts"):
        read_labelled(write([row]))


def test_empty_answers_are_bad_rows_as_in_training(write):
    good = {"prompt": "p", "responses": ["a", "b"], "order": [0, 1]}
    found = read_labelled(write([good, good | {"responses": ["a", " "]}]), skip_bad=True)
    assert (len(found.sets), found.bad) == (1, {"responses[1] is empty": 1})
    row = {"prompt": "p", "chosen": ["a"], "rejected": [""]}
    found = read_labelled(write([row | {"rejected": ["b"]}, row]), skip_bad=True)
    assert found.bad == {"chosen and rejected is empty": 1}


def test_equal_ranks_say_nothing_but_are_not_bad(write):
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "r", "responses": ["a", "b"], "ranks": [1]},
    ]
    found = read_labelled(write(rows), skip_bad=True)
    assert (len(found.sets), found.undecided, found.bad) == (2, 1, {"ranks is no list": 1})


def test_rated_answers_belong_to_the_exact_prompt(write):
    prompts = ["Say it.", "say it.", "Say  it.", asked("Say it."), asked("Say it.", "Be brief.")]
    rows = [{"prompt": prompt, "completion": f"{i} {text}", "score": score}
            for i, prompt in enumerate(prompts)
            for text, score in (("a", 1), ("b", 2))]  # fmt: skip
    found = read_labelled(write(rows))
    assert [one.prompt for one in found.sets] == prompts
    assert {len(one.answers) for one in found.sets} == {2}


def test_answers_are_graded_on_the_aspects_they_share(write):
    rows = [
        {"prompt": "p", "completion": "a", "scores": {"helpful": 6, "honest": 1}},
        {"prompt": "p", "completion": "b", "scores": {"helpful": 5, "honest": None}},
        {"prompt": "p", "completion": "b", "scores": {"helpful": 6}},
        {"prompt": "q", "completion": "a", "scores": {"helpful": 6}},
        {"prompt": "q", "completion": "b", "scores": {"honest": 1}},
    ]
    found = read_labelled(write(rows))
    assert found.sets[0].grades == (6, 5.5)  # with honest in the mean it would be (3.5, 5.5)
    assert (found.sets[1].decided, found.undecided) == (False, 1)


def test_what_is_graded_is_no_further_column(write):
    rows = [{"prompt": "p", "response": t, "rating": i, "gold": "7"} for i, t in enumerate("ab")]
    assert read_labelled(write(rows)).sets[0].columns == {"gold": "7"}


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("shared/data is not beside the project")
    return SHARED


@pytest.mark.data
def test_real_dialogues(shared):
    found = read_labelled(str(shared / "hh_harmless.jsonl.gz"), skip_bad=True)
    assert found.bad == {"chosen is empty": 4}
    assert (found.rows, len(found.sets), found.undecided) == (1500, 1496, 0)
    assert {len(one.answers) for one in found.sets} == {2}


@pytest.mark.data
def test_real_votes(shared):
    path = shared / "pandalm_votes.jsonl.gz"
    found = read_labelled(str(path), category="motivation_app", skip_bad=True)
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        raw = [json.loads(line) for line in stream]
    kinds = {row["motivation_app"] for row in raw}
    assert {one.category for one in found.sets} == kinds
    votes = {(row["response1"], row["response2"]): [row[f"annotator{i}"] for i in (1, 2, 3)]
             for row in raw if isinstance(row["response1"], str)}  # fmt: skip
    checked = 0
    for one in found.sets:
        for turned in (False, True):
            cast = votes.get(one.answers[::-1] if turned else one.answers)
            if cast is not None:
                share = sum({0: 0.5, 1: 1.0, 2: 0.0}[v] for v in cast) / 3
                checked += one.soft == pytest.approx(1 - share if turned else share)
    assert checked > 600
    assert 0 < found.undecided < 150


@pytest.mark.data
def test_real_marks(shared):
    names = {"prompt": "question", "completion": "175b_verification.solution",
             "label": "175b_verification.is_correct"}  # fmt: skip
    with pytest.raises(DataError, match="no row says which of two answers"):  # one answer each
        read_labelled(str(shared / "gsm8k_solutions.jsonl.gz"), columns=names)
