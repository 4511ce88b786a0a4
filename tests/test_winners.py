"""`align generate --best-of`: the winners, what is left out, and options that need one another."""

from __future__ import annotations

import json

import pytest

from align.errors import ConfigError, RewardError
from align.generate import Generation
from align.winners import Winners, keep_best, open_winners


def made(index, sample, text, prompt="p"):
    return Generation(prompt, text, True, -1.0, 3, index, sample)


BATCH = [
    made(4, 0, "aa"),
    made(4, 1, "aaaa"),
    made(4, 2, "aaaa"),
    made(5, 0, "a", [{"role": "user", "content": "q"}]),
    made(5, 1, "", [{"role": "user", "content": "q"}]),
]


def size(prompts, completions, **columns):
    plain = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert [isinstance(c, str) for c in completions] == [isinstance(p, str) for p in prompts]
    return [float(len(text)) for text in plain]


def test_the_best_of_each_prompt_wins_the_first_of_equals():
    kept = Winners(size).pick(BATCH, None)
    assert [(item.index, item.sample) for item, _ in kept] == [(4, 1), (5, 0)]
    assert [found for _, found in kept] == [
        {"score": 4.0, "best_of": 3},
        {"score": 1.0, "best_of": 2},
    ]


def test_poor_winners_are_left_out():
    assert [item.index for item, _ in Winners(size, least=2.0).pick(BATCH, None)] == [4]


def test_columns_reach_the_reward():
    def wants(prompts, completions, place, **columns):
        return [1.0 if where == "x" else 0.0 for where in place]

    columns = [{}] * 4 + [{"place": "x"}, {"place": "y"}]
    kept = Winners(wants).pick(BATCH, columns)
    assert [found["score"] for _, found in kept] == [1.0, 0.0]


def test_a_reward_that_fails_is_named():
    def broken(prompts, completions, **columns):
        return [float("nan")] * len(completions)

    with pytest.raises(RewardError, match="broken"):
        Winners(broken).pick(BATCH, None)


def test_the_best_share_of_a_file_stays_in_order(tmp_path):
    file = tmp_path / "w.jsonl"
    rows = [{"score": s, "completion": f"é{s}"} for s in (1.0, 5.0, 3.0, 4.0)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert keep_best(file, 0.5) == 2
    assert [json.loads(line) for line in file.read_text().splitlines()] == [rows[1], rows[3]]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, 4, 1, None, None, None), ["--best-of", "--reward"]),
        ((None, 1, 1, 0.5, 0.5, None), ["--min-score", "--keep"]),
        (("m:f", 0, 1, None, 2.0, None), ["--best-of", "--keep", "--output"]),
        (("m:f", 4, 3, None, None, None), ["--samples"]),
    ],
)
def test_options_that_need_one_another(given, words):
    with pytest.raises(ConfigError) as caught:
        open_winners(*given)
    assert all(word in str(caught.value) for word in words)


def test_nothing_asked_is_nothing_done():
    assert open_winners(None, 1, 3, None, None, None) is None


def test_a_function_is_imported():
    found = open_winners("align.quickstart.gold:gold_score", 2, 1, 0.5, None, None)
    assert found.reward.__name__ == "gold_score"
    assert found.least == 0.5
