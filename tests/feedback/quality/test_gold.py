"""Which adjudications are gold questions, and what annotators' records make of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from feedback.quality.annotators import annotator_quality
from feedback.quality.gold import gold_answers
from feedback.schema import Comparison

MORNING = datetime(2026, 1, 5, 9, tzinfo=UTC)
ONE = Comparison("q", "x", "y", "a", "lead", created_at=MORNING)


def later(comparison, hours, **changes):
    return replace(comparison, created_at=MORNING + timedelta(hours=hours), **changes)


def test_an_answer_known_before_anybody_was_asked_is_gold():
    said = [later(ONE, 1, annotator="ann"), later(ONE, 2, annotator="bob", label="b")]
    gold = gold_answers([ONE], said)
    assert list(gold.values()) == ["a"]
    shares = {one.annotator: one.gold.rate for one in annotator_quality(said, gold)}
    assert shares == {"ann": 1.0, "bob": 0.0}


def test_an_answer_settled_afterwards_holds_nobody_to_it():
    said = [later(ONE, 1, annotator="ann"), later(ONE, 3, annotator="bob", label="b")]
    assert gold_answers([later(ONE, 2)], said) == {}


def test_the_label_speaks_of_the_answer_first_seen():
    turned = Comparison("q", "y", "x", "b", "lead", created_at=MORNING)  # x is better
    said = [later(ONE, 1, annotator="ann")]
    assert list(gold_answers([turned], said).values()) == ["a"]
    tie = replace(turned, label="tie")
    assert list(gold_answers([tie], said).values()) == ["tie"]


def test_a_question_that_nobody_answered_yet_is_gold_too():
    assert list(gold_answers([ONE], []).values()) == ["a"]
