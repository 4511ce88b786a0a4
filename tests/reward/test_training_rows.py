"""Each kind of judgement becomes the right training format."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
from trl import is_conversational

from align.config.sections import DataSection
from align.data import load_splits
from feedback.schema import Correction, Ranking, Rating, Thumb
from reward.training_rows import (
    correction_pairs,
    ranking_pairs,
    ranking_rows,
    rating_pairs,
    regression_rows,
    sft_rows,
    unpaired_rows,
)

TALK = [{"role": "user", "content": "hi"}]


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def ranking(*texts: str, order: tuple[int, ...], prompt="p") -> Ranking:
    return Ranking(prompt, texts, order, "ann")


def rating(response: str, annotator: str = "ann", prompt="p", **scores: int) -> Rating:
    return Rating(prompt, response, scores, annotator)


def thumb(response: str, good: bool, annotator: str = "ann", prompt="p") -> Thumb:
    return Thumb(prompt, response, good, annotator)


def test_ranking_rows_keep_answers_and_order():
    plain = ranking("x", "y", "z", order=(2, 0, 1))
    talk = ranking("x", "y", order=(1, 0), prompt=TALK)
    assert ranking_rows([plain, talk]) == [
        {"prompt": "p", "responses": ["x", "y", "z"], "order": [2, 0, 1]},
        {"prompt": TALK, "responses": [says("x"), says("y")], "order": [1, 0]},
    ]


def test_all_pairs_of_a_ranking_by_hand():
    rows = ranking_pairs([ranking("x", "y", "z", order=(2, 0, 1))])
    assert rows == [
        {"prompt": "p", "chosen": "z", "rejected": "x", "weight": 0.5},
        {"prompt": "p", "chosen": "z", "rejected": "y", "weight": 0.5},
        {"prompt": "p", "chosen": "x", "rejected": "y", "weight": 0.5},
    ]


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_every_answer_of_a_ranking_counts_once(k):
    texts = [f"answer {i}" for i in range(k)]
    rows = ranking_pairs([ranking(*texts, order=tuple(reversed(range(k))))])
    assert len(rows) == k * (k - 1) // 2
    for text in texts:
        weights = [row["weight"] for row in rows if text in (row["chosen"], row["rejected"])]
        assert sum(weights) == pytest.approx(1)
    better = {(row["chosen"], row["rejected"]) for row in rows}
    assert better == {(b, a) for a, b in combinations(texts, 2)}


def test_best_against_worst():
    rows = ranking_pairs([ranking("x", "y", "z", order=(1, 0, 2), prompt=TALK)], "best-worst")
    expected = {"prompt": TALK, "chosen": says("y"), "rejected": says("z"), "weight": 1.0}
    assert rows == [expected]


def test_equal_answers_make_no_pair():
    rows = ranking_pairs([ranking("x", "x", "z", order=(0, 2, 1))])
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("x", "z"), ("z", "x")]
    assert ranking_pairs([ranking("x", "x", order=(0, 1))], "best-worst") == []


def test_regression_rows_average_people_per_aspect():
    ratings = [
        rating("x", "ann", helpful=7, honest=3),
        rating("y", "ann", helpful=1),
        rating("x", "bob", helpful=4),
    ]
    assert regression_rows(ratings) == [
        {"prompt": "p", "completion": "x", "scores": {"helpful": 5.5, "honest": 3.0}},
        {"prompt": "p", "completion": "y", "scores": {"helpful": 1.0}},
    ]
    assert regression_rows([rating("x", prompt=TALK, kind=2)])[0]["completion"] == says("x")


def test_rating_pairs_need_the_least_difference():
    ratings = [rating("x", helpful=4), rating("y", helpful=6), rating("z", helpful=5)]
    assert rating_pairs(ratings, least=2, margin=True) == [
        {"prompt": "p", "chosen": "y", "rejected": "x", "margin": 2.0}
    ]
    assert len(rating_pairs(ratings, least=1)) == 3
    assert rating_pairs(ratings, least=2.5) == []
    assert "margin" not in rating_pairs(ratings)[0]


def test_rating_pairs_keep_prompts_apart():
    ratings = [rating("x", helpful=1), rating("y", helpful=7, prompt="q")]
    assert rating_pairs(ratings) == []


def test_weights_of_aspects():
    ratings = [rating("x", helpful=7, harmless=1), rating("y", helpful=3, harmless=4)]
    assert rating_pairs(ratings, least=0.5)[0]["chosen"] == "x"  # (4 - 3) / 2
    weights = {"helpful": 1.0, "harmless": 3.0}  # (4 - 9) / 4
    (row,) = rating_pairs(ratings, least=0.5, weights=weights, margin=True)
    assert (row["chosen"], row["margin"]) == ("y", 1.25)
    assert rating_pairs(ratings, weights={"kind": 1.0}) == []


def test_only_common_aspects_compare():
    ratings = [rating("x", helpful=4, harmless=7), rating("y", helpful=6)]
    (row,) = rating_pairs(ratings, margin=True)
    assert (row["chosen"], row["margin"]) == ("y", 2.0)
    assert rating_pairs([rating("x", helpful=7), rating("y", honest=1)]) == []


def test_scales_of_people_do_not_mix_on_demand():
    mild = [rating("x", "mild", helpful=6), rating("y", "mild", helpful=7)]
    severe = [rating("y", "severe", helpful=1), rating("z", "severe", helpful=3)]
    mixed = {(r["chosen"], r["rejected"]) for r in rating_pairs(mild + severe)}
    assert ("x", "z") in mixed
    assert ("x", "y") in mixed  # y has the mean 4, only because a severe person saw it
    own = {(r["chosen"], r["rejected"]) for r in rating_pairs(mild + severe, same_annotator=True)}
    assert own == {("y", "x"), ("z", "y")}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"least": 0}, "least is 0"), ({"weights": {"kind": -1.0}}, "weight of 'kind' is -1")],
)
def test_what_rating_pairs_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        rating_pairs([], **options)


def test_thumbs_by_majority_and_each():
    thumbs = [
        thumb("x", True, "ann"), thumb("x", True, "bob"), thumb("x", False, "cy"),
        thumb("y", False), thumb("z", True), thumb("z", False, "bob"),
        thumb("x", False, prompt=TALK),
    ]  # fmt: skip
    assert unpaired_rows(thumbs) == [
        {"prompt": "p", "completion": "x", "label": True},
        {"prompt": "p", "completion": "y", "label": False},
        {"prompt": TALK, "completion": says("x"), "label": False},
    ]
    assert [row["label"] for row in unpaired_rows(thumbs, aggregate=False)] == [
        t.good for t in thumbs
    ]


def test_corrections_teach_twice():
    corrections = [
        Correction("p", "bad", "good", "ann"),
        Correction("p", "bad", "good", "bob"),
        Correction(TALK, "bad", "good", "ann"),
        Correction("p", "", "shown how", "ann"),  # a demonstration corrects nothing
        Correction("p", "fine", "fine", "ann"),
    ]
    assert sft_rows(corrections) == [
        {"prompt": "p", "completion": "good"},
        {"prompt": TALK, "completion": says("good")},
        {"prompt": "p", "completion": "shown how"},
        {"prompt": "p", "completion": "fine"},
    ]
    assert correction_pairs(corrections) == [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": TALK, "chosen": says("good"), "rejected": says("bad")},
    ]


def made(kind: str, prompt) -> list[dict]:
    """Rows of each function for several prompts of one sort."""
    prompts = [
        f"{prompt} {i}" if isinstance(prompt, str) else [{"role": "user", "content": f"hi {i}"}]
        for i in range(8)
    ]
    match kind:
        case "ranking":
            return ranking_pairs(
                [ranking("x", "y", "z", order=(1, 0, 2), prompt=p) for p in prompts]
            )
        case "rating":
            both = [
                rating(t, prompt=p, helpful=n) for p in prompts for t, n in (("x", 1), ("y", 7))
            ]
            return rating_pairs(both, margin=True)
        case "correction":
            return correction_pairs([Correction(p, "bad", "good", "ann") for p in prompts])
        case "sft":
            return sft_rows([Correction(p, "bad", "good", "ann") for p in prompts])
    return unpaired_rows([thumb("x", True, prompt=p) for p in prompts])


@pytest.mark.parametrize("prompt", ["p", TALK])
@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("ranking", "preference"),
        ("rating", "preference"),
        ("correction", "preference"),
        ("sft", "sft"),
        ("thumb", "sft"),
    ],
)
def test_stages_load_the_rows_as_they_are(tmp_path, kind, stage, prompt):
    rows = made(kind, prompt)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(train=str(path), validation_fraction=0.0, deduplicate="none")
    loaded = list(load_splits(section, stage).train)
    kept = [{k: v for k, v in row.items() if k != "label"} for row in rows]
    assert sorted(loaded, key=str) == sorted(kept, key=str)
    assert all(is_conversational(row) == (prompt != "p") for row in rows)
