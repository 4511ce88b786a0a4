"""Probes: rewards that can be gamed are caught, and one that knows the answer is not."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from feedback.errors import DataError
from reward.errors import RewardError
from reward.probes import PROBES, Probe, attack, find_probes
from reward.probing import probe
from reward.verify.math_answer import MathReward

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ANSWER = "The sky is blue. Light of 400 nm is scattered more than red light, so we see it."
PROMPTS = ["Why is the sky blue?", "What is 2 + 2?", "Name a fruit."]
ANSWERS = [ANSWER, "Adding two and two makes four. So the answer is 4.", "An apple is a fruit."]


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def praise(completions, **columns):
    words = ("best", "complete", "better", "wonderful", "insightful", "great")
    return [
        float(sum(text.lower().count(w) for w in words) + len(text) % 2) for text in completions
    ]


def edited(name: str) -> str | None:
    return attack(PROBES[name], PROMPTS, ANSWERS)[0]


def test_what_each_probe_does():
    assert edited("empty") == ""
    assert edited("copied_prompt") == PROMPTS[0]
    assert ANSWER.startswith(edited("truncated"))
    assert len(edited("truncated").split()) == len(ANSWER.split()) // 2
    assert edited("swapped_answer") in ANSWERS[1:]
    assert edited("repetition").count("The sky is blue.") == 3
    assert edited("flattery").endswith(ANSWER)
    assert edited("self_praise").startswith(ANSWER)
    assert edited("filler").startswith(ANSWER)
    assert 2 * len(ANSWER) <= len(edited("filler")) < 3 * len(ANSWER) + 70
    assert edited("lower_case") == ANSWER.replace("The", "the").replace("Light", "light")
    assert edited("whitespace").split() == ANSWER.split()
    assert sorted(edited("typos")) == sorted(ANSWER)
    shape = [c if not c.isalnum() else "x" for c in ANSWER]
    assert [c if not c.isalnum() else "x" for c in edited("gibberish")] == shape
    assert "400" not in edited("gibberish")
    assert len(edited("wrong_language").split()) == len(ANSWER.split())
    assert not set(edited("wrong_language").lower().split()) & {"the", "sky", "blue"}
    assert all(edited(name) != ANSWER for name in PROBES)


def test_where_a_probe_does_not_apply():
    assert attack(PROBES["truncated"], ["p"], ["three words only"]) == [None]
    assert attack(PROBES["typos"], ["p"], ["12 + 3 = 15"]) == [None]
    assert attack(PROBES["copied_prompt"], ["same"], ["same"]) == [None]
    assert attack(PROBES["swapped_answer"], ["p", "p"], ["a", "b"]) == [None, None]
    assert attack(PROBES["empty"], ["p"], [" "]) == [None]


@pytest.mark.parametrize("name", PROBES)
def test_the_order_of_rows_changes_nothing(name):
    rows = list(range(3))
    forward = attack(PROBES[name], PROMPTS, ANSWERS, seed=4)
    random.Random(0).shuffle(rows)
    turned = attack(PROBES[name], [PROMPTS[i] for i in rows], [ANSWERS[i] for i in rows], seed=4)
    assert turned == [forward[i] for i in rows]


def test_a_swapped_answer_is_of_another_prompt():
    prompts = ["p", "p", "p", "p", "q", "q", "r"]
    answers = [f"{prompt}{i}" for i, prompt in enumerate(prompts)]
    found = attack(PROBES["swapped_answer"], prompts, answers)
    assert all(text[0] != prompt for text, prompt in zip(found, prompts, strict=True))


def test_the_seed_changes_what_is_drawn():
    for name in ("gibberish", "wrong_language", "flattery"):
        drawn = {attack(PROBES[name], PROMPTS[:1], ANSWERS[:1], seed=s)[0] for s in range(8)}
        assert len(drawn) > 1, name


def test_conversations_keep_all_but_the_last_message():
    prompt = [{"role": "user", "content": "Old?"}, {"role": "assistant", "content": "Yes."},
              {"role": "user", "content": "Why?"}]  # fmt: skip
    answer = [{"role": "assistant", "content": ANSWER}]
    assert attack(PROBES["copied_prompt"], [prompt], [answer]) == [
        [{"role": "assistant", "content": "Why?"}]
    ]
    assert answer[0]["content"] == ANSWER


def test_what_an_environment_says_stays():
    """The model's last message is edited, wherever it stands."""
    talk = [
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "12"},
        {"role": "assistant", "content": "It is twelve then, I think so."},
        {"role": "user", "content": "Thanks."},
    ]
    for name in ("empty", "truncated", "self_praise", "typos"):
        found = attack(PROBES[name], ["p"], [talk])[0]
        assert found[:2] == talk[:2]
        assert found[3] == talk[3]
        assert found[2]["role"] == "assistant"
        assert found[2]["content"] != talk[2]["content"]
    swapped = attack(PROBES["swapped_answer"], ["p", "q"], [talk, "Other."])
    assert swapped[0][2]["content"] == "Other."
    assert swapped[0][3] == talk[3]


def test_sentences_are_repeated_whole():
    text = "It costs 3.50 euros! See example.org/a?b=c now.\nRight?"
    found = attack(PROBES["repetition"], ["p"], [text])[0]
    parts = ["It costs 3.50 euros!", "See example.org/a?b=c now.", "Right?"]
    assert found == " ".join(part for part in parts for _ in range(3))


def test_a_length_reward_is_caught():
    report = probe(length, PROMPTS * 1, ANSWERS)
    assert {r.name: r.n for r in report.results}["filler"] == 3
    by_name = {r.name: r for r in many(length).results}
    for name in ("flattery", "self_praise", "filler", "repetition"):
        assert by_name[name].verdict == "fooled"
        assert by_name[name].fooled.value == 1.0
        assert by_name[name].shift.low > 0
    assert by_name["gibberish"].verdict == "blind"
    assert by_name["empty"].verdict == by_name["truncated"].verdict == "holds"
    assert by_name["lower_case"].unchanged == 1.0
    worst = by_name["filler"].examples[0]
    assert worst.after > worst.before
    assert worst.shift == max(e.shift for e in by_name["filler"].examples)
    json.dumps(many(length).as_dict())


def test_the_examples_are_those_that_moved_most():
    every = many(length, examples=100, probes=["filler"]).results[0].examples
    assert len(every) == 40
    shifts = [example.shift for example in every]
    assert shifts == sorted(shifts, reverse=True)
    assert shifts[0] > shifts[-1]
    assert many(length, examples=2, probes=["filler"]).results[0].examples == every[:2]
    # of an edit that must change nothing, a fall counts as well
    fallen = many(lambda completions: [t.count("hi") + len(t) / 99 for t in completions],
                  probes=["typos"]).results[0]  # fmt: skip
    assert fallen.examples
    assert all(example.shift < 0 for example in fallen.examples)


def test_a_reward_of_noise_is_unclear():
    def noise(completions, **columns):
        return [random.Random(text).gauss(0, 1) for text in completions]

    verdicts = {r.name: r.verdict for r in many(noise).results}
    assert verdicts["flattery"] == verdicts["self_praise"] == "unclear"  # half score higher
    assert verdicts["truncated"] == verdicts["typos"] == "fooled"


def test_a_keyword_reward_is_caught():
    report = many(praise)
    assert "self_praise" in report.failed
    assert "flattery" in report.failed
    assert "empty" not in {r.name for r in report.results if r.verdict == "holds"}


def many(reward_fn, **settings):
    """Forty prompts with an answer each, of different length."""
    prompts = [f"Why is thing {i} as it is?" for i in range(40)]
    answers = [
        f"Thing {i} is so because of part {i + 1}. " + "It has always been like that. " * (i % 5)
        + "That is all there is to say about it."
        for i in range(40)
    ]  # fmt: skip
    return probe(reward_fn, prompts, answers, **settings)


@pytest.fixture(scope="module")
def solved() -> list[dict]:
    path = SHARED / "gsm8k_solutions.jsonl.gz"
    if not path.is_file():
        pytest.skip("shared/data is not beside the project")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    best = "175b_verification"
    return [
        {
            "prompt": row["question"],
            "answer": row["ground_truth"].rsplit("A: ", 1)[-1],
            "completion": row[best]["solution"],
        }
        for row in rows
        if row[best]["is_correct"]
    ][:150]


def gold(prompts, completions, answer, **columns):
    """Right or wrong, less something for saying the same thing again."""
    right = MathReward(parser="numeric")(prompts, completions, answer=answer)
    found = []
    for value, text in zip(right, completions, strict=True):
        parts = [part.strip() for part in text.replace("\n", ". ").split(". ") if part.strip()]
        found.append(value - (1 - len(set(parts)) / len(parts) if parts else 0.0))
    return found


@pytest.mark.data
def test_a_reward_that_knows_the_answer_passes(solved):
    columns = {"answer": [row["answer"] for row in solved]}
    prompts = [row["prompt"] for row in solved]
    answers = [row["completion"] for row in solved]
    report = probe(gold, prompts, answers, columns=columns, scale=0.5)
    assert report.failed == []
    verdicts = {r.name: r.verdict for r in report.results}
    assert {verdicts[n] for n, p in PROBES.items() if p.expect == "worse"} == {"holds"}
    for name in ("flattery", "self_praise", "filler", "typos", "whitespace"):
        assert verdicts[name] == "holds", name
    # A bare verifier does not see repetition: it is blind there, and nowhere else.
    bare = probe(MathReward(parser="numeric"), prompts, answers, columns=columns, scale=0.5)
    assert bare.failed == ["repetition"]
    assert {r.name: r.verdict for r in bare.results}["repetition"] == "blind"


@pytest.mark.data
def test_gameable_rewards_are_caught_on_real_answers(solved):
    prompts = [row["prompt"] for row in solved]
    report = probe(length, prompts, [row["completion"] for row in solved])
    assert {"repetition", "flattery", "self_praise", "filler", "gibberish"} <= set(report.failed)


def test_only_some_probes_and_ones_own():
    shout = Probe("shout", "not_better", lambda answer, question, draw: answer.upper(), "capitals")
    report = many(lambda completions: [float(sum(c.isupper() for c in t)) + len(t) / 99
                                       for t in completions], probes=["empty", shout])  # fmt: skip
    assert [r.name for r in report.results] == ["empty", "shout"]
    assert report.failed == ["shout"]


def test_an_untested_probe_and_noise_below_rounding():
    report = probe(length, ["a", "b"], ["x", "xyz"], probes=["truncated"])
    assert (report.results[0].n, report.results[0].verdict) == (0, "untested")
    calls = []

    def jitters(completions, **columns):  # as a model does that pads differently
        calls.append(1)
        return [len(text.strip()) / 7 + len(calls) * 1e-7 for text in completions]

    same = many(jitters, probes=["lower_case"]).results[0]
    assert (same.unchanged, same.fooled.value, same.verdict) == (1.0, 0.0, "holds")


def test_wrong_calls():
    with pytest.raises(DataError, match="there is no probe 'emty'"):
        find_probes(["emty"])
    with pytest.raises(DataError, match="completions 1"):
        probe(length, ["a", "b"], ["c"])
    with pytest.raises(RewardError, match=r"gives all 2 answers the score 1"):
        probe(length, ["a", "b"], ["c", "d"])
