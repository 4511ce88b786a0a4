"""Duplicates: counts against brute force, fields apart, order, and speed."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from align.data.dedup import (
    N,
    count_contradictions,
    drop_exact,
    drop_near,
    near_duplicates,
    row_texts,
)
from align.data.rows import Row


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    width = min(N, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)} or {()}


def jaccard(a: str, b: str) -> float:
    one, two = shingles(a), shingles(b)
    return len(one & two) / len(one | two)


def brute_force(texts: list[tuple[str, ...]], threshold: float) -> list[bool]:
    """The definition, pair by pair."""
    kept: list[tuple[str, ...]] = []
    found = []
    for row in texts:
        copy = any(
            all(jaccard(a, b) >= threshold for a, b in zip(row, other, strict=True))
            for other in kept
        )
        found.append(copy)
        if not copy:
            kept.append(row)
    return found


def world(rng: random.Random, rows: int, fields: int) -> list[tuple[str, ...]]:
    """Texts of a small vocabulary, half of them edited copies of earlier ones."""
    words = [f"w{i}" for i in range(40)]
    texts: list[tuple[str, ...]] = []
    for _ in range(rows):
        if texts and rng.random() < 0.5:
            edited = []
            for text in rng.choice(texts):
                tokens = text.split()
                for _ in range(rng.choice([0, 0, 1, 3])):
                    if tokens:
                        tokens[rng.randrange(len(tokens))] = rng.choice(words)
                edited.append(" ".join(tokens))
            texts.append(tuple(edited))
        else:
            texts.append(
                tuple(" ".join(rng.choices(words, k=rng.randint(1, 40))) for _ in range(fields))
            )
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("fields", [1, 3])
def test_near_duplicates_equal_brute_force(threshold, fields):
    for seed in range(4):
        texts = world(random.Random(seed), 150, fields)
        expected = brute_force(texts, threshold)
        assert near_duplicates(texts, threshold) == expected
        assert 2 < sum(expected) < 145  # the worlds hold both


def test_the_threshold_itself_counts():
    a = "a b c d e f g h i j k l"  # 10 shingles
    b = "a b c d e f g h i j k x"  # 9 of them, and one other: 9 / 11
    assert jaccard(a, b) == 9 / 11
    assert near_duplicates([(a,), (b,)], 9 / 11) == [False, True]
    assert near_duplicates([(a,), (b,)], 9 / 11 + 1e-6) == [False, False]


def row(prompt: str, **answers: str) -> Row:
    return Row("x:1", 0, {"prompt": prompt, **answers})


LONG = " ".join(f"word{i}" for i in range(200))


def test_another_answer_to_one_long_prompt_is_no_duplicate():
    rows = [row(LONG, completion="yes it is"), row(LONG, completion="no it is not")]
    assert drop_near(rows, 0.9) == (rows, [])
    same = [row(LONG, completion="yes it is"), row(LONG + " so", completion="yes it is")]
    assert drop_near(same, 0.9) == (same[:1], same[1:])


def test_words_that_change_fields_are_no_duplicate():
    rows = [row("a b c", completion="d e f"), row("d e f", completion="a b c")]
    assert drop_near(rows, 0.5) == (rows, [])


def test_exact_means_after_case_and_space():
    rows = [row("What is it?"), row(" what  IS it?\n"), row("What is it"), row("What is it?")]
    kept, dropped = drop_exact(rows)
    assert kept == [rows[0], rows[2]]
    assert dropped == [rows[1], rows[3]]


def test_conversations_and_further_columns():
    turns = [{"role": "user", "content": "Hi  there"}]
    one = Row("x:1", 0, {"prompt": turns, "chosen": turns, "rejected": turns, "margin": 1.0})
    assert row_texts(one) == ("hi there", "hi there", "hi there")


def test_contradictions_are_counted_on_both_sides():
    rows = [
        row("q", chosen="a", rejected="b"),
        row("Q", chosen="B", rejected="a"),
        row("q", chosen="a", rejected="c"),
        row("p", chosen="b", rejected="a"),
    ]
    assert count_contradictions(rows) == 2


def test_no_rows():
    assert near_duplicates([], 0.9) == []
    assert drop_exact([]) == ([], [])


def test_speed_on_twenty_thousand_rows():
    rng = random.Random(0)
    # Zipf-like words, as in language: common ones are very common.
    words = [f"w{i}" for i in range(20000)]
    totals = list(itertools.accumulate(1 / (i + 1) for i in range(20000)))
    texts = [(" ".join(rng.choices(words, cum_weights=totals, k=60)),) for _ in range(18000)]
    texts += [(text + " end",) for (text,) in texts[:2000]]
    start = time.process_time()
    duplicate = near_duplicates(texts, 0.9)
    assert time.process_time() - start < 20  # 2.6 here; comparing all pairs takes many minutes
    assert sum(duplicate) == 2000
    assert not any(duplicate[:18000])
