"""Results as judgements: every shape the page makes, and nothing else."""

from __future__ import annotations

import copy
import random

import pytest

from feedback.labelstudio.parse import MisfitError, parse_annotation
from feedback.labelstudio.tasks import TWIN, shown_order, task_data, task_keys
from feedback.records import new_item
from feedback.schema import Comparison, Correction, Ranking, Rating, Thumb

WHEN = {"updated_at": "2026-11-21T06:22:05.368545Z", "lead_time": 3.25}


def said(control, kind, **value):
    return {"from_name": control, "to_name": "chat", "type": kind, "value": value}


def pair(seed=0):
    return new_item("pair", "Is it open?", ("yes", "no"), ("sft", "dpo"), seed=seed)


def swapped_pair():
    return next(item for seed in range(50) if (item := pair(seed)).shown == (1, 0))


def straight_pair():
    return next(item for seed in range(50) if (item := pair(seed)).shown == (0, 1))


@pytest.mark.parametrize(
    ("level", "label", "strength"),
    [("a2", "a", 2), ("a1", "a", 1), ("tie", "tie", 0), ("b1", "b", 1), ("b2", "b", 2)],
)
def test_the_display_order_is_undone(level, label, strength):
    result = {"result": [said("pref", "choices", choices=[level])], **WHEN}
    flip = {"a": "b", "b": "a", "tie": "tie"}
    for item, turned in ((straight_pair(), False), (swapped_pair(), True)):
        (found,) = parse_annotation(result, item, item.id, "ann")
        assert isinstance(found, Comparison)
        assert found.label == (flip[label] if turned else label)
        assert (found.strength, found.swapped, found.lead_time) == (strength, turned, 3.25)
        (twin,) = parse_annotation(result, item, item.id + TWIN, "ann")
        assert twin.label == flip[found.label]
        assert twin.swapped is not turned


def test_a_task_shows_what_the_parser_undoes():
    for item in (straight_pair(), swapped_pair()):
        for key in task_keys(item, twins=True):
            data = task_data(item, key)
            left = item.responses.index(data["answer_1"])
            assert shown_order(item, key)[0] == left
            result = {"result": [said("pref", "choices", choices=["a1"])], **WHEN}
            (found,) = parse_annotation(result, item, key, "ann")
            assert found.label == "ab"[left]


def test_a_task_hides_who_wrote_the_answers():
    item = new_item("pair", "q", ("yes", "no"), ("secret-model", "other-model"))
    assert "model" not in str(task_data(item, item.id))


def test_a_ranking_in_any_display_order():
    item = new_item("ranking", "q", ("w", "x", "y", "z"), seed=3)
    assert item.shown != (0, 1, 2, 3)
    data = task_data(item, item.id)
    wanted = [entry["id"] for entry in sorted(data["items"], key=lambda e: e["body"])]  # w x y z
    for value in (wanted, {"rank": wanted}):
        result = {"result": [said("rank", "ranker", ranker=value)], **WHEN}
        (found,) = parse_annotation(result, item, item.id, "ann")
        assert isinstance(found, Ranking)
        assert [found.responses[i] for i in found.order] == ["w", "x", "y", "z"]


def test_ratings_thumbs_reasons_and_corrections():
    item = new_item("rating", "q", ("text",), ("sft",))
    stars = [said(a, "rating", rating=n) for a, n in (("helpful", 1), ("honest", 7))]
    stars += [said("harmless", "rating", rating=4), said("reason", "textarea", text=["why", "so"])]
    stars += [said("correction", "textarea", text=["better \U0001f4e6"])]
    found, correction = parse_annotation({"result": stars, **WHEN}, item, item.id, "ann")
    assert isinstance(found, Rating)
    assert found.scores == {"helpful": 1, "honest": 7, "harmless": 4}
    assert found.reason == "why\nso"
    assert isinstance(correction, Correction)
    assert (correction.response, correction.corrected) == ("text", "better \U0001f4e6")
    item = new_item("thumb", "q", ("text",))
    result = {"result": [said("thumb", "choices", choices=["down"])], **WHEN}
    (thumb,) = parse_annotation(result, item, item.id, "ann")
    assert isinstance(thumb, Thumb)
    assert not thumb.good


def test_a_correction_is_of_the_answer_preferred():
    for item in (straight_pair(), swapped_pair()):
        result = [said("pref", "choices", choices=["b1"])]
        result.append(said("correction", "textarea", text=["new"]))
        found, correction = parse_annotation({"result": result, **WHEN}, item, item.id, "ann")
        assert correction.response == item.responses["ab".index(found.label)]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([], "is empty"),
        (None, "no list"),
        ([{"hello": "x"}], "without control"),
        ([said("pref", "choices", choices=["c1"])], "expected one of a2"),
        ([said("pref", "choices", choices=["a1", "b1"])], "expected one of"),
        ([said("pref", "pairwise", selected="left")], "type 'pairwise'"),
        ([said("pw", "choices", choices=["a1"])], "'pref' was not answered"),
        ([said("pref", "choices", choices=["a1"])] * 2, "answered twice"),
        ([said("pref", "choices", choices=["a1"]), said("x", "choices", choices=[])], "unexpected"),
        ([said("pref", "choices", choices=["a1"]), said("reason", "textarea", text=3)], "text"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(result, reason):
    with pytest.raises(MisfitError, match=reason):
        parse_annotation({"result": result, **WHEN}, pair(), pair().id, "ann")


def test_a_fuzzed_result_never_crashes_and_a_valid_one_never_fails():
    draw = random.Random(0)
    good = [said("pref", "choices", choices=["a1"]), said("reason", "textarea", text=["r"])]
    junk = [None, 0, -1.5, "", "a1", [], {}, ["b1"], {"choices": ["a1"]}, float("nan"), True]
    refused = 0
    for _ in range(3000):
        annotation = {"result": copy.deepcopy(good), **WHEN}
        for _ in range(draw.choice((1, 1, 2, 3))):
            _mutate(annotation, draw, junk)
        try:
            (found, *_) = parse_annotation(annotation, pair(), pair().id, "ann")
        except MisfitError:
            refused += 1
        else:
            assert isinstance(found, Comparison)
            assert annotation["result"][0]["value"]["choices"][0] in ("a1", "b1")
    assert 500 < refused < 3000
    (found,) = parse_annotation({"result": good, **WHEN}, pair(), pair().id, "ann")
    assert found.reason == "r"


def _mutate(value, draw, junk):
    """Replace, drop or add something anywhere inside."""
    spots = []

    def walk(node):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            spots.append((node, key))
            if isinstance(node[key], dict | list) and node[key]:
                walk(node[key])

    walk(value)
    node, key = draw.choice(spots)
    action = draw.random()
    if action < 0.6:
        node[key] = copy.deepcopy(draw.choice(junk))
    elif action < 0.8:
        del node[key]
    elif isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    else:
        node[draw.choice(("from_name", "value", "extra"))] = copy.deepcopy(draw.choice(junk))
