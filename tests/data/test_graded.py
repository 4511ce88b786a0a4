"""Rankings, ratings and steps: read, checked, split and measured like any other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.config.sections import DataSection
from align.data import fit_length, load_splits
from align.data.formats import convert, detect_format
from align.errors import DataError
from feedback.dialogue import RowProblem
from feedback.schema import Ranking, Rating
from feedback.store import FeedbackStore

RANKING = {"prompt": "Q?", "responses": ["bad", "good", "fair"], "order": [1, 2, 0]}
RATING = {"prompt": "Q?", "completion": "A.", "scores": {"helpful": 6, "honest": None}}
STEPS = {"prompt": "Q?", "completions": ["one", "two"], "labels": [True, None]}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_recognised_and_what_it_becomes():
    assert detect_format([RANKING], {}, "x") == "ranking"
    assert detect_format([RATING], {}, "x") == "rating"
    assert detect_format([STEPS], {}, "x") == "steps"
    assert convert(RANKING, "ranking", "ranking", {}) == {
        "prompt": "Q?",
        "responses": ["bad", "good", "fair"],
        "ranks": [3, 1, 2],
    }
    assert convert(RATING, "rating", "rating", {}) == {
        "prompt": "Q?",
        "completion": "A.",
        "scores": {"helpful": 6.0},
    }
    assert convert(STEPS, "steps", "steps", {})["labels"] == [1.0, None]
    pair = {"prompt": "Q?", "chosen": "yes", "rejected": "no", "weight": 2}
    assert convert(pair, "preference", "ranking", {}) == {
        "prompt": "Q?",
        "responses": ["yes", "no"],
        "ranks": [1, 2],
        "weight": 2.0,
    }


def test_conversations_keep_their_messages():
    chat = [{"role": "user", "content": "Q?"}]
    row = {"prompt": chat, "responses": ["a", "b"], "ranks": [1, 1 + 1]}
    found = convert(row, "ranking", "ranking", {})
    assert found["responses"] == [[{"role": "assistant", "content": word}] for word in "ab"]


def test_they_still_serve_what_they_served_before():
    """A file with a column of scores was prompt-completion data, and still trains SFT."""
    found = convert(RATING | {"scores": "n/a"}, "rating", "sft", {})
    assert found == {"prompt": "Q?", "completion": "A."}
    found = convert(RANKING, "ranking", "prompts", {})
    assert found["prompt"] == "Q?"
    assert found["order"] == [1, 2, 0]


@pytest.mark.parametrize(
    ("format", "change", "reason"),
    [
        ("ranking", {"responses": ["one"]}, "responses is no list of two or more"),
        ("ranking", {"order": [0, 1]}, "order is no order of the responses"),
        ("ranking", {"order": [0, 0, 1]}, "order is no order of the responses"),
        ("ranking", {"ranks": [1, 2]}, "ranks do not fit"),
        ("ranking", {"ranks": [1, 1, 1]}, "all responses share one rank"),
        ("ranking", {"ranks": [1, 1.5, 2]}, "ranks do not fit"),
        ("ranking", {"responses": ["x", "x ", "y"]}, "two equal responses have different ranks"),
        ("rating", {"scores": {}}, "scores holds no number"),
        ("rating", {"scores": {"a": "six"}}, "scores.a is no finite number"),
        ("rating", {"scores": float("nan")}, "scores.score is no finite number"),
        ("steps", {"labels": [1]}, "labels do not fit the steps"),
        ("steps", {"labels": [2, 0]}, "a label is no probability"),
        ("steps", {"labels": [None, None]}, "no step has a label"),
        ("steps", {"completions": ["one", " "]}, "completions is no list of steps"),
        ("steps", {"completions": ["one\nhalf", "two"]}, "a step holds a line break"),
        ("rating", {"weight": -1}, "weight is negative"),
    ],
)
def test_bad_rows_say_why(format, change, reason):
    row = {"ranking": RANKING, "rating": RATING, "steps": STEPS}[format] | change
    with pytest.raises(RowProblem, match=reason):
        convert(row, format, format, {})


def test_opinions_that_differ_in_the_label_alone_all_stay(tmp_path):
    rows = [RANKING, RANKING, RANKING | {"order": [2, 1, 0]}]
    path = write(tmp_path / "r.jsonl", rows)
    section = DataSection.model_validate({"train": path, "validation_fraction": 0})
    found = load_splits(section, "ranking")
    assert found.train["ranks"][:] == [[3, 1, 2], [3, 2, 1]]
    assert found.card.sources[0].exact_duplicates == 1


def test_the_store_gives_rankings_with_the_number_of_people_and_mean_ratings(tmp_path):
    url = f"sqlite:///{tmp_path / 'f.db'}"
    texts = ("bad", "good", "fair")
    with FeedbackStore(url) as store:
        orders = {"ann": (1, 2, 0), "ben": (1, 2, 0), "cem": (1, 0, 2)}
        store.add_judgements(Ranking("Q?", texts, order, who) for who, order in orders.items())
        scores = {"ann": 6, "ben": 7}
        store.add_judgements(Rating("Q?", "good", {"helpful": s}, w) for w, s in scores.items())
    section = DataSection.model_validate({"train": url, "validation_fraction": 0})
    rankings = load_splits(section, "ranking").train
    assert sorted(zip(rankings["weight"][:], rankings["ranks"][:], strict=True)) == [
        (1.0, [2, 1, 3]),
        (2.0, [3, 1, 2]),
    ]
    assert load_splits(section, "rating").train["scores"][:] == [{"helpful": 6.5}]


@pytest.mark.parametrize("kind", ["ranking", "steps"])
def test_every_answer_is_measured_in_tokens(kind, tmp_path, tiny_tokenizer):
    long = " ".join(["word"] * 60)
    row = RANKING | {"responses": ["a", long, "c"]} if kind == "ranking" else STEPS
    row = row if kind == "ranking" else row | {"completions": ["one", long]}
    path = write(tmp_path / "r.jsonl", [row, (RANKING if kind == "ranking" else STEPS)])
    section = DataSection.model_validate({"train": path, "validation_fraction": 0})
    rows = load_splits(section, kind).train
    kept, statistics = fit_length(rows, kind, tiny_tokenizer, 50)
    assert (statistics.overlong, len(kept)) == (1, 1)
    assert statistics.completion.max > 60


def test_a_fold_holds_out_every_prompt_once(tmp_path):
    rows = [RATING | {"prompt": f"Q {place}?"} for place in range(40)]
    path = write(tmp_path / "r.jsonl", rows)
    seen: list[str] = []
    for fold in range(3):
        section = DataSection.model_validate({"train": path, "fold": f"{fold}/3"})
        found = load_splits(section, "rating")
        seen += found.validation["prompt"][:]
        assert not set(found.validation["prompt"][:]) & set(found.train["prompt"][:])
    assert sorted(seen) == sorted(row["prompt"] for row in rows)


@pytest.mark.parametrize("fold", ["3/3", "0/1", "-1/3", "a/b"])
def test_a_fold_that_is_none_is_refused(fold):
    with pytest.raises(ValueError, match="fold"):
        DataSection.model_validate({"train": "x.jsonl", "fold": fold})


def test_a_kind_that_the_data_cannot_serve_is_said(tmp_path):
    path = write(tmp_path / "r.jsonl", [RATING])
    section = DataSection.model_validate({"train": path})
    with pytest.raises(DataError, match="rating data cannot serve 'ranking'"):
        load_splits(section, "ranking")


def test_a_preference_turns_its_ranking_as_its_soft_label_says():
    pair = {"prompt": "Q?", "chosen": "yes", "rejected": "no"}
    turned = convert(pair | {"soft_label": 0.1}, "preference", "ranking", {})
    assert turned == {"prompt": "Q?", "responses": ["no", "yes"], "ranks": [1, 2]}
    assert convert(pair | {"soft_label": 0.5}, "preference", "ranking", {}) is None


def test_an_answer_marked_as_bad_is_not_learnt_because_it_has_scores(tmp_path):
    rows = [RATING | {"label": label, "prompt": f"{label}?"} for label in (True, False)]
    section = DataSection.model_validate(
        {"train": write(tmp_path / "r.jsonl", rows), "validation_fraction": 0}
    )
    assert load_splits(section, "sft").train["prompt"][:] == ["True?"]


def test_near_duplicates_that_say_other_things_stay(tmp_path):
    words = "the quick brown fox jumps over the lazy dog again and again today"
    first = {"prompt": words, "responses": ["good " + words, "bad " + words], "ranks": [1, 2]}
    rows = [first, first | {"ranks": [2, 1]}, first | {"prompt": words + " now"}]
    section = DataSection.model_validate(
        {
            "train": write(tmp_path / "r.jsonl", rows),
            "validation_fraction": 0,
            "deduplicate": "near",
            "near_threshold": 0.7,
        }
    )
    assert load_splits(section, "ranking").train["ranks"][:] == [[1, 2], [2, 1]]
