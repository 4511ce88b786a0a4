"""The rows of HH, PandaLM, TRL and our own files: what each means, and what is set aside."""

from __future__ import annotations

import pytest

from feedback.formats import read_feedback
from feedback.schema import Correction, Rating, Thumb, pair_id

ROW = {"prompt": "p", "response_a": "x", "response_b": "y", "label": "a", "annotator": "ann"}
HH = {
    "chosen": "\n\nHuman: hi\n\nHuman: you\n\nAssistant: good",
    "rejected": "\n\nHuman: hi\n\nHuman: you\n\nAssistant: bad",
}


def said(path, **options):
    return [read.judgement for read in read_feedback(path, **options).reads]


def test_hh_joins_turns_and_ends_at_the_last_answer(save):
    (read,) = read_feedback(save("x.jsonl", [HH])).reads
    prompt = [{"role": "user", "content": "hi\n\nyou"}]
    assert read.judgement.prompt == prompt
    assert (read.judgement.response_a, read.judgement.response_b) == ("good", "bad")
    assert (read.judgement.label, read.judgement.annotator) == ("a", "imported")
    assert read.judgement.pair == pair_id(prompt, "bad", "good")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected": HH["chosen"]}, "chosen and rejected are equal"),
        ({"rejected": "\n\nHuman: other\n\nAssistant: bad"}, "answer different prompts"),
        ({"chosen": "\n\nHuman: hi\n\nAssistant: "}, "chosen is empty"),
        ({"chosen": "\n\nHuman: hi"}, "chosen does not end with the assistant"),
        ({"chosen": "no dialogue"}, "chosen is no raw dialogue"),
        ({"chosen": 3}, "chosen has the wrong type"),
        ({"chosen": None}, "chosen is missing"),
    ],
)
def test_hh_rows_that_do_not_fit(save, change, reason):
    read = read_feedback(save("x.jsonl", [HH | change]), format="hh", bad_rows="quarantine")
    assert reason in read.bad[0].reason
    assert read.reads == []


def test_pandalm_votes(save):
    row = {
        "instruction": "Do it.", "input": "this", "cmp_key": "m-1_m-2", "response1": "x",
        "response2": "", "annotator1": 0, "annotator2": 1, "annotator3": 2, "annotator4": 3,
    }  # fmt: skip
    read = read_feedback(save("x.jsonl", [row]), bad_rows="quarantine")
    found = [r.judgement for r in read.reads]
    assert [(j.annotator, j.label, j.strength) for j in found] == [
        ("annotator1", "tie", 0),
        ("annotator2", "a", 1),
        ("annotator3", "b", 1),
    ]
    assert {(j.prompt, j.source_a, j.source_b) for j in found} == {("Do it.\n\nthis", "m-1", "m-2")}
    assert [(b.reason, b.detail) for b in read.bad] == [
        ("annotator4 is not in its range", "3; expected a whole number from 0 to 2")
    ]


TALK = [{"role": "user", "content": "hi"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "x", "rejected": "y"}, ("p", "x", "y")),
        ({"prompt": TALK, "chosen": YES, "rejected": NO}, (TALK, "yes", "no")),
        ({"chosen": TALK + YES, "rejected": TALK + NO}, (TALK, "yes", "no")),
        ({"prompt": "hi", "chosen": TALK + YES, "rejected": TALK + NO}, (TALK, "yes", "no")),
        (
            {"chosen": "the sky is blue", "rejected": "the sky is black"},
            ("the sky is", " blue", " black"),
        ),
    ],
)
def test_trl_preferences(save, row, expected):
    (judgement,) = said(save("x.jsonl", [row]))
    assert (judgement.prompt, judgement.response_a, judgement.response_b) == expected
    assert judgement.label == "a"


def test_trl_unpaired_and_demonstrations(save):
    rows = [
        {"prompt": "p", "completion": "x", "label": True},
        {"prompt": TALK, "completion": NO, "label": False, "annotator": "ann"},
        {"prompt": TALK, "completion": YES},
    ]
    up, down, shown = said(save("x.jsonl", rows))
    assert isinstance(up, Thumb)
    assert (up.response, up.good) == ("x", True)
    assert (down.prompt, down.response, down.good, down.annotator) == (TALK, "no", False, "ann")
    assert shown == Correction(TALK, "", "yes", "imported", created_at=shown.created_at)
    text = "prompt,completion,label\np,x,TRUE\np,y,0\n"
    assert [j.good for j in said(save("x.csv", text))] == [True, False]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "x", "rejected": TALK}, "chosen and rejected differ in type"),
        ({"chosen": "one", "rejected": "two"}, "chosen and rejected share no beginning"),
        ({"chosen": "same", "rejected": "same "}, "chosen and rejected are equal"),
        ({"prompt": YES, "chosen": "x", "rejected": "y"}, "prompt has no user turn"),
        ({"prompt": "p", "completion": "x", "label": "maybe"}, "label is neither true nor false"),
        ({"prompt": "p", "completion": ""}, "completion is empty"),
        ({"prompt": [], "completion": "x"}, "prompt is empty"),
        ({"prompt": [{"role": "x"}], "completion": "x"}, "prompt has an unknown role"),
    ],
)
def test_trl_rows_that_do_not_fit(save, row, reason):
    read = read_feedback(save("x.jsonl", [row]), format="trl", bad_rows="quarantine")
    assert read.bad[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strength": 3}, "strength is not in its range"),
        ({"strength": 0}, "strength is not in its range"),
        ({"response_b": "x"}, "response_a and response_b are equal"),
        ({"response_a": True}, "response_a has the wrong type"),
        ({"prompt": " "}, "prompt is empty"),
        ({"lead_time": -1}, "lead_time is no duration"),
        ({"created_at": "yesterday"}, "created_at is no time"),
        ({"annotation": "x" * 129}, "annotation is no id"),
        ({"kind": "vote"}, "kind is unknown"),
        ({"kind": ["rating"]}, "kind is unknown"),
        ({"kind": "rating", "response": "x", "scores": {"helpful": 8}}, "helpful is not in its"),
        ({"kind": "rating", "response": "x", "scores": {}}, "scores is empty"),
        ({"kind": "ranking", "responses": ["x", "y"], "order": [0, 0]}, "order is no full order"),
        ({"kind": "ranking", "responses": ["x", "x"], "order": [0, 1]}, "responses do not fit"),
        ({"kind": "ranking", "responses": "[x", "order": [0, 1]}, "responses is no JSON"),
        ({"kind": "thumb", "response": "x", "good": 2}, "good is neither true nor false"),
        ({"kind": "correction", "response": "x", "corrected": " "}, "corrected is empty"),
    ],
)
def test_own_rows_that_do_not_fit(save, change, reason):
    read = read_feedback(save("x.jsonl", [ROW | change]), bad_rows="quarantine")
    assert read.bad[0].reason.startswith(reason)
    assert read.bad[0].detail


def test_a_rating_in_a_csv(save):
    text = 'kind,prompt,response,scores\nrating,p,x,"{""helpful"": 6, ""kind"": 2}"\n'
    (rating,) = said(save("x.csv", text))
    assert isinstance(rating, Rating)
    assert rating.scores == {"helpful": 6, "kind": 2}
