"""Soft labels and the queue for adjudication."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback.errors import DataError
from feedback.quality.disagreement import disagreement_queue
from feedback.quality.soft import soft_labels
from feedback.schema import Comparison, pair_id

NAMES = {"a": "a", "b": "b", "t": "tie"}


def votes(prompt: str, labels: str) -> list[Comparison]:
    return [Comparison(prompt, "x", "y", NAMES[c], f"ann{i}") for i, c in enumerate(labels)]


def named(prompt: str) -> str:
    return pair_id(prompt, "x", "y")


def world(people: str = "aab") -> list[Comparison]:
    """`ann0` and `ann1` agree always, `ann2` only half of the time."""
    said = []
    for i in range(40):
        good = "ab"[i % 2]
        bad = "ba"[i % 2]
        said += votes(f"w{i}", good + good + (good if i % 4 < 2 else bad))
    return said


def test_methods_by_hand() -> None:
    said = votes("p", "aab") + votes("q", "at") + votes("r", "ab") + votes("s", "bbb")
    assert list(soft_labels(said, "majority").values()) == [1.0, 1.0, 0.5, 0.0]
    assert list(soft_labels(said, "votes").values()) == pytest.approx([2 / 3, 0.75, 0.5, 0.0])


def test_dawid_skene_believes_the_reliable() -> None:
    said = world() + votes("new", "ab") + [Comparison("other", "x", "y", "a", "ann2")]
    soft = soft_labels(said, "dawid-skene")
    assert soft_labels(said, "votes")[named("new")] == 0.5
    against = soft_labels([*world(), *votes("new", "a"), votes("new", "aab")[2]], "dawid-skene")
    assert against[named("new")] > 0.9  # ann0 says a, ann2 says b: ann0 is believed
    assert 0.4 < soft[named("other")] < 0.9  # ann2 alone leaves doubt
    assert all(0 <= p <= 1 for p in soft.values())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from("abt"), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(["majority", "votes", "dawid-skene"]),
)
def test_turning_pairs_round_turns_their_labels_round(rows, method) -> None:
    """Whatever was said: one probability per pair, and 1 - p for answers stored turned round."""
    flipped = {"a": "b", "b": "a", "tie": "tie"}
    said = [Comparison(f"p{i}", "x", "y", NAMES[c], f"ann{k}", swapped=s) for i, k, c, s in rows]
    turned = [
        Comparison(c.prompt, "y", "x", flipped[c.label], c.annotator, swapped=not c.swapped)
        for c in said
    ]
    people = {i: {k for j, k, _, _ in rows if j == i} for i, _, _, _ in rows}
    if method == "dawid-skene" and max(map(len, people.values())) < 2:
        with pytest.raises(DataError, match="no item was judged by two"):
            soft_labels(said, method)
        return
    soft = soft_labels(said, method)
    assert set(soft) == {pair_id(c.prompt, "x", "y") for c in said}
    assert all(0 <= p <= 1 for p in soft.values())
    other = soft_labels(turned, method)
    assert other == pytest.approx({pair: 1 - p for pair, p in soft.items()}, abs=1e-5)


@pytest.mark.parametrize("method", ["majority", "votes", "dawid-skene"])
def test_nothing_said_is_no_labels(method) -> None:
    assert soft_labels([], method) == {}


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        soft_labels(votes("p", "a"), "mean")
    with pytest.raises(DataError, match="use method 'votes'"):
        soft_labels(votes("p", "a"), "dawid-skene")
    with pytest.raises(ValueError, match="by must be one of"):
        disagreement_queue([], "chance")
    with pytest.raises(ValueError, match="limit"):
        disagreement_queue([], limit=-1)


def test_the_queue_is_ordered_by_disagreement_and_leaves_the_clear_out() -> None:
    said = votes("clear", "aaa") + votes("two", "aab") + votes("even", "aabb")
    said += votes("three", "abt") + votes("small", "ab") + votes("one", "a")
    queue = disagreement_queue(said)
    assert [entry.prompt for entry in queue] == ["three", "even", "small", "two"]
    assert queue[0].vote_entropy == pytest.approx(1.0)
    assert queue[0].votes == {"a": 1, "tie": 1, "b": 1}
    assert queue[0].posterior_entropy is None
    done = {named("three"), named("small")}
    assert [e.prompt for e in disagreement_queue(said, done=done, limit=1)] == ["even"]
    assert disagreement_queue([]) == disagreement_queue([], "posterior") == []


def test_by_posterior_what_the_careless_agree_on_is_open_and_what_the_reliable_say_is_not() -> None:
    draw = random.Random(0)
    careless = [
        Comparison(f"w{i}", "x", "y", draw.choice("ab"), f"ann{k}")
        for i in range(40)
        for k in (3, 4)
    ]
    both = [Comparison("both", "x", "y", "a", f"ann{k}") for k in (3, 4)]
    said = world() + careless + both
    said += [Comparison("alone", "x", "y", "a", "ann3")]  # nobody disagreed
    said += votes("firm", "aab")  # both reliable ones against the careless one
    said += votes("split", "ab")  # the reliable ones against each other
    queue = disagreement_queue(said, "posterior")
    assert {entry.prompt for entry in queue} == {"both", "split"}
    assert [entry.vote_entropy > 0 for entry in queue if entry.prompt == "both"] == [False]
    # Half of the world's votes are disputed, and all of its labels are known.
    assert len(disagreement_queue(said)) > 20
