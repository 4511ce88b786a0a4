"""What people said, in stores and feedback files, as labelled answers."""

from __future__ import annotations

import pytest

from align.errors import DataError
from align.evaluate.reward_bench import score_sets
from align.evaluate.reward_judgements import shown_source
from align.evaluate.reward_rows import read_labelled
from feedback.records import new_item
from feedback.schema import Comparison, Ranking, Rating, Thumb
from feedback.store import FeedbackStore


def test_a_store_holds_all_kinds(tmp_path):
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    with FeedbackStore(url) as store:
        store.add_items([new_item("pair", "p", ["a", "b"], columns={"kind": "x"})])
        said_of_pairs = [
            Comparison("p", "a", "b", label, who)
            for label, who in (("a", "ann"), ("a", "ben"), ("b", "cem"))
        ]
        store.add_judgements(
            [
                *said_of_pairs,
                Ranking("r", ("a", "b", "c"), (1, 2, 0), "ann"),
                Rating("s", "a", {"helpful": 2}, "ann"),
                Rating("s", "b", {"helpful": 6}, "ann"),
                Thumb("t", "a", True, "ann"),
                Thumb("t", "b", False, "ann"),
            ]
        )
    found = read_labelled(url, category="kind")
    assert found.rows == 8
    pair, ranking, rating, thumb = found.sets
    assert (pair.answers, pair.category) == (("a", "b"), "x")
    assert pair.grades == pytest.approx((2 / 3, 1 / 3))
    assert ranking.grades == (0, 2, 1)
    assert (rating.grades, thumb.grades) == ((2, 6), (1, 0))
    with pytest.raises(DataError, match="no such file"):
        read_labelled(f"sqlite:///{tmp_path / 'gone.db'}")


def votes() -> list[Comparison]:
    return [Comparison("p", "a", "b", "a", who) for who in ("ann", "ben")]


def test_adjudications_replace_the_votes(write, tmp_path):
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    ratings = [Rating("s", text, {"helpful": 2}, "ann") for text in "ab"]
    with FeedbackStore(url) as store:
        store.add_judgements([*votes(), *ratings])
        final = [Comparison("p", "a", "b", "b", "eve"), Rating("s", "b", {"helpful": 7}, "eve")]
        store.add_judgements(final, adjudicated=True)
    row = {"prompt": "p", "response_a": "a", "response_b": "b"}
    rated = [{"kind": "rating", "prompt": "s", "response": t, "scores": {"helpful": 2},
              "annotator": "ann"} for t in "ab"]  # fmt: skip
    file = write(
        [
            *(row | {"label": "a", "annotator": who} for who in ("ann", "ben")),
            *rated,
            row | {"label": "b", "annotator": "eve", "adjudicated": True},
            rated[1] | {"scores": {"helpful": 7}, "annotator": "eve", "adjudicated": True},
        ]
    )
    for source in (url, file):
        pair, rating = read_labelled(source).sets
        assert dict(zip(pair.answers, pair.grades, strict=True)) == {"a": 0, "b": 1}
        assert rating.grades == (2, 7)


def test_further_columns_of_stores_and_files_go_to_the_reward(write, tmp_path):
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    with FeedbackStore(url) as store:
        store.add_items(
            [
                new_item("pair", "p", ["a", "b"], columns={"gold": "7"}),
                new_item("rating", "s", ["a"], columns={"gold": "8"}),
                new_item("rating", "s", ["b"], columns={"gold": "8"}),
                new_item("ranking", "r", ["a", "b"], columns={"gold": "9"}),
            ]
        )
        ratings = [Rating("s", text, {"x": 2 + i}, "ann") for i, text in enumerate("ab")]
        store.add_judgements([*votes(), *ratings, Ranking("r", ("a", "b"), (1, 0), "ann")])
    rows = [
        {"prompt": "p", "response_a": "a", "response_b": "b", "label": "a", "annotator": "ann",
         "gold": "7"},
        {"kind": "ranking", "prompt": "r", "responses": ["a", "b"], "order": [1, 0],
         "annotator": "ann", "gold": "9"},
        *({"kind": "thumb", "prompt": "s", "response": text, "good": text == "a",
           "annotator": "ann", "gold": "8"} for text in "ab"),
    ]  # fmt: skip
    gold = {"p": "7", "r": "9", "s": "8"}

    def right(prompts, completions, gold_of=gold, **columns):
        assert set(columns) == {"gold"}
        return [float(g == gold_of[p]) for p, g in zip(prompts, columns["gold"], strict=True)]

    for source in (url, write(rows)):
        sets = read_labelled(source).sets
        assert [one.prompt for one in sets] == ["p", "r", "s"]
        assert [list(found) for found in score_sets(right, sets)] == [[1.0, 1.0]] * 3


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:hush@127.0.0.1:1/votes",
        "postgresql://127.0.0.1:1/votes?user=ann&password=hush",
        "postgresql://ann:hush@127.0.0.1:port/votes",
        "mysql://ann:hush@127.0.0.1:1/votes",
    ],
)
def test_passwords_are_never_shown(url):
    with pytest.raises((DataError, ImportError)) as caught:
        read_labelled(url)
    assert "hush" not in str(caught.value)
    assert "hush" not in shown_source(url)


def test_a_store_is_named_without_its_password(tmp_path):
    url = f"sqlite:///{tmp_path / 'votes.db'}?password=hush"
    assert shown_source(url).endswith("votes.db?password=hidden")
