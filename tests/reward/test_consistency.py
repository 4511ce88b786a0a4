"""Consistency: what should not matter does not, for judges and rewards that are known."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from feedback.errors import DataError
from reward.consistency import edit_consistency, order_consistency, paraphrase_consistency
from reward.errors import RewardError
from reward.rewording import respace, reword

PROMPTS = [f"Question {i}?" for i in range(60)]
LONG = [f"I do not know {i}, maybe it is so because of that." + "!" * (i % 7) for i in range(60)]
SHORT = [f"Yes, it is {i}." for i in range(60)]


def longer(prompts, first, second, **columns):
    return ["first" if len(a) > len(b) else "second" if len(b) > len(a) else "tie"
            for a, b in zip(first, second, strict=True)]  # fmt: skip


def always_first(prompts, first, second, **columns):
    return ["first"] * len(first)


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def words(completions, **columns):
    return [float(len(text.split())) for text in completions]


def test_a_judge_that_looks_at_the_answers_is_consistent():
    found = order_consistency(longer, PROMPTS, LONG, SHORT)
    assert (found.consistent.value, found.first, found.p_value) == (1.0, 0.5, 1.0)
    assert found.changed == []
    json.dumps(found.as_dict())


def test_a_judge_that_likes_a_place_is_seen_through():
    found = order_consistency(always_first, PROMPTS, LONG, SHORT)
    assert found.consistent.high < 0.1
    assert found.first == 1.0
    assert found.p_value < 1e-6
    assert found.changed == list(range(60))


def test_half_a_judge():
    def half(prompts, first, second, even):
        said = longer(prompts, first, second)
        return ["first" if e else v for e, v in zip(even, said, strict=True)]

    even = [i % 2 == 0 for i in range(60)]
    found = order_consistency(half, PROMPTS, LONG, SHORT, columns={"even": even})
    assert found.consistent.value == 0.5
    assert found.changed == list(range(0, 60, 2))


def test_a_judge_must_answer():
    with pytest.raises(RewardError, match="said 'A' for 1 pairs"):
        order_consistency(lambda p, a, b: ["A"], ["p"], ["a"], ["b"])
    with pytest.raises(RewardError, match="gave 2 verdicts for 1 pairs"):
        order_consistency(lambda p, a, b: ["tie", "tie"], ["p"], ["a"], ["b"])
    with pytest.raises(DataError, match="second 0"):
        order_consistency(longer, ["p"], ["a"], [])


def test_edits_that_a_reward_does_not_see_keep_every_preference():
    found = {one.name: one for one in edit_consistency(words, PROMPTS, LONG, SHORT)}
    assert (found["whitespace"].kept.value, found["whitespace"].moved.value) == (1.0, 0.0)
    assert found["typos"].n == 60
    assert found["reworded"].moved.value > 0  # "do not" is one word less as "don't"


def test_a_reward_that_counts_spaces_turns():
    def spaces(completions, **columns):
        return [float(text.count("  ")) + len(text) / 1e4 for text in completions]

    found = edit_consistency(spaces, PROMPTS, [t[:-1] for t in LONG], LONG[::-1],
                             edits={"whitespace": respace})[0]  # fmt: skip
    assert found.kept.high < 0.95
    assert len(found.changed) == round((1 - found.kept.value) * found.n)


def test_rounding_turns_no_preference():
    calls = []

    def jitters(prompts, completions, **columns):  # both answers to a question score alike
        calls.append(1)
        return [len(p) + (-1) ** len(calls) * 1e-9 * i
                for i, p in enumerate(prompts)]  # fmt: skip

    prompts = [f"Question {'x' * (i % 9)}?" for i in range(60)]
    found = edit_consistency(jitters, prompts, LONG, SHORT, edits={"whitespace": respace})[0]
    assert (found.kept.value, found.changed) == (1.0, [])


def test_an_edit_that_changes_nothing_has_no_rows():
    found = edit_consistency(length, PROMPTS, LONG, SHORT, edits={"none": lambda text, draw: text})
    assert (found[0].n, found[0].kept) == (0, None)


def test_reworded_texts():
    draw = random.Random(0)
    assert reword("I don't know, maybe.", draw) == "I do not know, perhaps."
    assert reword("Do not go; I'm here.", draw) == "Don't go; I am here."
    assert reword("You\u2019re late because of me.", draw) == "You are late because of me."
    assert reword("Since 1990 it is so.", draw) == "Since 1990 it is so."
    assert reword("Nothing here.", draw) == "Nothing here."
    text = "We do not buy it, perhaps they are right."
    assert reword(reword(text, draw), draw) == text
    assert reword("Isn't it nice? It isn't.", draw) == "Isn't it nice? It is not."


@pytest.mark.parametrize(
    "text",
    [
        "Yes, I am. Who they are and what you are, I know.",
        "```python\nif x is not y:\n    # do not do this\n```",
        "Cut off:\n```\nx is not y",
        "Use `x is not y` here.",
        "def f(x):\n    return x is not y",
        "if x is not y and z does not say:\n\tdo not",
        "Write x is not None there.",
        "print('I don\u2019t')",
    ],
)
def test_code_and_short_answers_are_not_reworded(text):
    assert reword(text, random.Random(0)) == text


def test_prose_around_code_is_reworded():
    text = "I don't know.\n```\nx is not y\n```\nThat is not true: `a is not b` isn't it."
    found = reword(text, random.Random(0))
    assert found == "I do not know.\n```\nx is not y\n```\nThat isn't true: `a is not b` isn't it."


def test_reliability_equals_the_analysis_of_variance():
    generator = np.random.default_rng(0)
    true = generator.normal(0, 2, 300)
    table = {f"{i} {k}": true[i] + generator.normal() for i in range(300) for k in range(4)}

    def known(completions, **columns):
        return [table[text] for text in completions]

    found = paraphrase_consistency(
        known, [f"p{i}" for i in range(300)], [f"{i} 0" for i in range(300)],
        [[f"{i} {k}" for k in (1, 2, 3)] for i in range(300)], batch_size=7,
    )  # fmt: skip
    assert found.reliability == pytest.approx(4 / 5, abs=0.05)  # variance 4 between, 1 within
    scores = np.array([[table[f"{i} {k}"] for k in range(4)] for i in range(300)])
    between = 4 * scores.mean(1).var(ddof=1)
    within = scores.var(axis=1, ddof=1).mean()
    assert found.reliability == pytest.approx((between - within) / (between + 3 * within))
    expected = np.abs(scores[:, 1:] - scores[:, :1]).mean() / scores[:, 0].std()
    assert found.moved.value == pytest.approx(expected)


def test_every_answer_needs_a_paraphrase():
    with pytest.raises(DataError, match="answer 1 has no paraphrase"):
        paraphrase_consistency(length, ["p", "q"], ["a", "b"], [["c"], []])
