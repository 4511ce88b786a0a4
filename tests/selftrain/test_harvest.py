"""Which answers a policy is trained on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.errors import ConfigError
from align.selftrain.harvest import (
    Sample,
    dpo_row,
    keep_best,
    keep_pairs,
    sft_row,
    unanswered,
    unusable,
    why_nothing,
    with_hint,
)

HARVEST = {"drawn": 96, "usable": 3, "cut": 93, "solved": 12, "questions": 24, "threshold": 1.0}

SAMPLES = st.lists(
    st.builds(
        Sample,
        question=st.integers(0, 4),
        completion=st.sampled_from(["a", "a ", "b", "c", " "]),
        score=st.sampled_from([0.0, 0.5, 1.0]),
        finished=st.booleans(),
    ),
    max_size=30,
)

# The first draw of a process reads constants from every module that is loaded.
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("counts", "words", "fix"),
    [
        (
            {},
            "no answer of 96 was kept; 93 were cut off at rollout.max_new_tokens; 3 could be, and "
            "none of them has a reward of 1 or more; 12 of 24 questions were solved, but by "
            "answers that are never kept",
            True,
        ),
        (
            {"usable": 96, "cut": 0, "solved": 0},
            "no answer of 96 was kept; all could be, and none of them has a reward of 1 or more",
            False,
        ),
        (
            {"usable": 2, "cut": 40, "threshold": None},
            "no answer of 96 was kept; 94 were cut off or empty (40 cut off); 2 could be, and no "
            "question has two whose rewards are far enough apart",
            False,
        ),
        ({"usable": 0, "cut": 0, "solved": 0}, "no answer of 96 was kept; 96 were empty", False),
    ],
)
def test_why_a_round_has_nothing_to_train_on(counts, words, fix):
    end = ". Fix: raise rollout.max_new_tokens" if fix else ""
    assert why_nothing(HARVEST | counts) == f"nothing to train on: {words}{end}"


def test_an_older_harvest_does_not_say_which_were_cut_off():
    before = {name: value for name, value in HARVEST.items() if name != "cut"}
    assert unusable(before) == "93 were cut off or empty"


@PROPERTY
@given(SAMPLES, st.integers(1, 3), st.sampled_from([None, 0.5, 1.0]))
def test_what_is_kept_is_whole_different_and_best(samples, most, threshold):
    kept = keep_best(samples, most, threshold)
    for one in kept:
        assert one.finished
        assert one.completion.strip()
        assert threshold is None or one.score >= threshold
    for question in range(5):
        mine = [one for one in kept if one.question == question]
        words = [one.completion.strip() for one in mine]
        assert len(words) == len(set(words)) <= most
        rest = [
            one
            for one in samples
            if one.question == question
            and one.finished
            and one.completion.strip() not in {"", *words}
        ]
        if rest and mine and len(mine) == most:
            assert max(one.score for one in rest) <= min(one.score for one in mine)


def test_the_first_of_equal_answers():
    samples = [Sample(0, "x", 1.0, True), Sample(0, "y", 1.0, True), Sample(0, "z", 2.0, False)]
    assert keep_best(samples, 1) == samples[:1]
    with pytest.raises(ValueError, match="at least 1"):
        keep_best(samples, 0)


def test_pairs_of_best_and_worst():
    samples = [
        Sample(0, "bad", 0.1, True),
        Sample(0, "good", 0.9, True),
        Sample(0, "cut", -5.0, False),
        Sample(1, "one", 0.5, True),
        Sample(1, "two", 0.5, True),
        Sample(2, "alone", 0.5, True),
    ]
    assert keep_pairs(samples, 0.0) == [(samples[1], samples[0])]
    assert keep_pairs(samples, 0.8) == []
    row = dpo_row("q", samples[1], samples[0])
    assert row == {"prompt": "q", "chosen": "good", "rejected": "bad", "gap": pytest.approx(0.8)}


def test_hints_are_for_what_nobody_solved_and_leave_no_trace():
    samples = [Sample(0, "1", 1.0, True), Sample(1, "2", 0.0, True), Sample(2, "3", 1.0, False)]
    assert unanswered(samples, 4, 1.0) == [1, 2, 3]
    hint = "{prompt} (The answer is {answer}.)"
    assert with_hint("2+2?", hint, {"answer": "4"}) == "2+2? (The answer is 4.)"
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+2?"}]
    shown = with_hint(talk, hint, {"answer": "4"})
    assert shown[-1]["content"] == "2+2? (The answer is 4.)"
    assert talk[-1]["content"] == "2+2?"
    row = sft_row("2+2?", Sample(0, "4", 1.0, True, hinted=True))
    assert row == {"prompt": "2+2?", "completion": "4", "score": 1.0, "hinted": True}
    with pytest.raises(ConfigError, match=r"harvest.hint: .*answr.* a row has answer, prompt"):
        with_hint("2+2?", "{answr}", {"answer": "4"})
