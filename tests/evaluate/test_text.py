"""Text metrics by hand."""

import pytest

from align.errors import DataError
from align.evaluate.text import distinct_n, plain, repetition_rate, text_metrics, words


def test_words_and_plain() -> None:
    assert words("Don't stop, it's 9am!") == ["don't", "stop", ",", "it's", "9am", "!"]
    message = [{"role": "assistant", "content": "Yes."}]
    assert plain(message) == "Yes."
    assert words(message) == ["yes", "."]


def test_distinct_by_hand() -> None:
    sequences = [list("abab"), list("abc")]  # bigrams: ab ba ab | ab bc
    assert distinct_n(sequences, 1) == pytest.approx(3 / 7)
    assert distinct_n(sequences, 2) == pytest.approx(3 / 5)
    assert distinct_n([["a"]], 2) == 0.0
    with pytest.raises(DataError, match="n = 0"):
        distinct_n(sequences, 0)


def test_repetition_counts_within_a_sequence_only() -> None:
    assert repetition_rate([list("ababab")], 2) == pytest.approx(1 - 2 / 5)
    assert repetition_rate([list("abcd"), list("abcd")], 2) == 0.0
    assert repetition_rate([list("aaaaa"), list("ab"), ["a"]], 2) == pytest.approx((3 / 4 + 0) / 2)
    assert repetition_rate([["a"]], 2) == 0.0


def test_text_metrics_by_hand() -> None:
    metrics = text_metrics(
        ["a b c", "a b, c", "", "a b c"], [4, 6, 1, 9], [True, True, True, False]
    )
    assert metrics["length_mean"] == 5.0
    assert metrics["length_median"] == 5.0
    assert metrics["words_mean"] == pytest.approx(9 / 4)  # marks are not words
    assert metrics["distinct_2"] == pytest.approx(4 / 7)  # ab bc | ab b, ,c | ab bc
    assert metrics["empty_rate"] == 0.25
    assert metrics["duplicate_rate"] == 0.25
    assert metrics["finished_rate"] == 0.75


def test_a_collapsed_model_shows() -> None:
    lively = [f"answer {k} about topic {k * 7} and {k * 13}" for k in range(50)]
    collapsed = ["sorry sorry sorry sorry sorry sorry sorry"] * 50
    good = text_metrics(lively, [8] * 50, [True] * 50)
    bad = text_metrics(collapsed, [8] * 50, [True] * 50)
    assert bad["distinct_2"] < 0.01 < good["distinct_2"]
    assert bad["repetition_4"] > 0.7
    assert good["repetition_4"] == 0.0
    assert bad["duplicate_rate"] == 0.98


def test_text_metrics_refuses() -> None:
    with pytest.raises(DataError, match="0 completions"):
        text_metrics([], [], [])
    with pytest.raises(DataError, match="2 completions, 1 lengths"):
        text_metrics(["a", "b"], [1], [True, True])
