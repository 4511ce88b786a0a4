"""What a pool is made of, and that it tells nobody which answer is better."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from align.active.belief import Belief
from align.active.desks import SimulatedDesk, of_ranks
from align.active.fresh import beside, groups_of
from align.active.open import fitting, truth_of
from align.active.pool import (
    PairPool,
    check_labels,
    load_pool,
    of_items,
    read_pairs,
    save_pool,
)
from align.errors import DataError
from feedback.schema import pair_id
from feedback.simulate import SimulatedAnnotator

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_labelled_pairs_hide_their_label(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    pool = read_pairs(write(tmp_path / "pairs.jsonl", rows), {}, None, None)
    firsts = Counter(group.answers[0].split()[0] for group in pool.groups)
    assert 70 < firsts["good"] < 130
    for group in pool.groups:
        best = group.answers[group.ranks.index(1.0)]
        assert best.startswith("good")
    again = read_pairs(write(tmp_path / "again.jsonl", rows), {}, None, None)
    assert again.pairs == pool.pairs
    assert pool.pairs[0].id == pair_id("0?", "good 0", "bad 0")


def test_pairs_without_a_label_and_groups_of_several(tmp_path):
    rows = [
        {"prompt": "a?", "response_a": "x", "response_b": "y", "language": "en"},
        {"prompt": "b?", "response_a": "x", "response_b": "z", "language": "de"},
    ]
    pool = read_pairs(write(tmp_path / "a.jsonl", rows), {}, None, "language")
    assert [group.ranks for group in pool.groups] == [(), ()]
    assert [group.stratum for group in pool.groups] == ["en", "de"]
    assert pool.groups[0].columns == {"language": "en"}
    rows = [{"question": "a?", "texts": ["x", "y", "z", "x"]}]
    columns = {"prompt": "question", "responses": "texts"}
    pool = read_pairs(write(tmp_path / "b.jsonl", rows), columns, None, None)
    assert sorted(pool.groups[0].answers) == ["x", "y", "z"]
    assert len(pool.pairs) == 3
    chat = [{"role": "user", "content": "Hello?"}]
    said = [[{"role": "assistant", "content": text}] for text in ("Hi.", "No.")]
    rows = [{"prompt": chat, "chosen": said[0], "rejected": said[1]}]
    (group,) = read_pairs(write(tmp_path / "c.jsonl", rows), {}, None, None).groups
    assert (group.prompt, sorted(group.answers)) == (chat, ["Hi.", "No."])


def test_a_table_of_comparisons_says_its_label(tmp_path):
    said = ["a", " B ", "tie", "", None]
    rows = [
        {"prompt": f"{i}?", "response_a": "x", "response_b": "y", "label": label, "tone": "dry"}
        for i, label in enumerate(said)
    ]
    pool = read_pairs(write(tmp_path / "a.jsonl", rows), {}, None, None)
    ranks = [dict(zip(g.answers, g.ranks, strict=False)) for g in pool.groups]
    assert ranks == [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 1.0}, {"x": 1.0, "y": 1.0}, {}, {}]
    assert pool.groups[0].columns == {"tone": "dry"}  # a question must not say its answer
    with pytest.raises(DataError, match=r"a.jsonl: 2 of 5 rows .* about '3\?'.*column label"):
        check_labels(pool, "a.jsonl")
    check_labels(PairPool(pool.groups[:3]), "a.jsonl")

    theirs = {"prompt": "q", "response_a": "one", "response_b": "two", "label": "winner"}
    rows = [{"q": "a?", "one": "x", "two": "y", "winner": "b", "label": "a"}]
    (group,) = read_pairs(write(tmp_path / "b.jsonl", rows), theirs, None, None).groups
    assert group.answers[group.ranks.index(1.0)] == "y"
    assert "winner" not in group.columns
    assert "two" not in group.columns


def test_a_labelled_tie_is_answered_as_one(store, tmp_path):
    rows = [
        {"prompt": f"{i}?", "response_a": "x", "response_b": "y", "label": "tie"} for i in range(9)
    ]
    pool = read_pairs(write(tmp_path / "a.jsonl", rows), {}, None, None)
    desk = SimulatedDesk(store, [SimulatedAnnotator("ann", 0)], of_ranks)
    found = truth_of(desk, 0)(pool, list(pool.place))
    assert set(found.values()) == {0.5}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a?"}, "prompts"),
        ({"prompt": "a?", "completion": "x"}, "prompt-completion"),
        ({"prompt": "a?", "completion": "x", "label": True}, "unpaired"),
        ({"messages": [{"role": "user", "content": "a?"}]}, "messages"),
        ({"text": "a"}, "text"),
    ],
)
def test_data_of_another_kind_are_refused(row, kind, tmp_path):
    path = write(tmp_path / "a.jsonl", [row, row])
    message = f"a.jsonl: {kind} data cannot serve 'ranking'.*preference.*response_a"
    for aside in (None, tmp_path / "quarantine.jsonl"):
        with pytest.raises(DataError, match=message):
            read_pairs(path, {}, None, None, aside)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "b?", "response_a": "x", "response_b": "y", "label": 1},
            "label is unknown: '1'; expected a, b, tie",
        ),
        ({"prompt": "b?", "response_a": "x"}, "a.jsonl:2: responses\\[1\\] .*1 bad rows of 2"),
        ({"prompt": "b?", "response_a": "x", "response_b": "x"}, "two or more answers"),
        ({"prompt": 3, "response_a": "x", "response_b": "y"}, "prompt"),
    ],
)
def test_a_bad_row_is_named(row, message, tmp_path):
    good = {"prompt": "a?", "response_a": "x", "response_b": "y"}
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path / "a.jsonl", [good, row]), {}, None, None)


def test_a_pool_comes_back_as_it_was(tmp_path, make_pool):
    pool = make_pool(9, answers=3)
    save_pool(tmp_path / "pool.jsonl", pool.groups)
    again = PairPool(tuple(load_pool(tmp_path / "pool.jsonl")))
    assert again.groups == pool.groups
    assert len(again.pairs) == 27


def test_margins_are_of_the_pair_s_own_answers(make_pool):
    pool = make_pool(3, answers=3)
    scores = np.arange(18.0).reshape(2, 9) ** 2
    belief = Belief(scores, scores.T)
    margins = belief.margins(pool)
    for place, pair in enumerate(pool.pairs):
        first, second = 3 * pair.group + pair.first, 3 * pair.group + pair.second
        assert margins[:, place].tolist() == (scores[:, first] - scores[:, second]).tolist()
        assert belief.differences(pool)[place].tolist() == margins[:, place].tolist()
    assert belief.rewards(pool, 1).tolist() == scores[:, 3:6].tolist()
    p = 1 / (1 + np.exp(-margins))
    assert np.allclose(belief.p(pool), p.mean(axis=0))
    sure = Belief(scores, scores.T, middle=scores[0])
    assert np.allclose(sure.p(pool), p[0])


def test_a_belief_is_kept_whole(tmp_path, make_pool):
    scores = np.random.default_rng(0).normal(size=(2, 6))
    for middle in (None, scores[0]):
        Belief(scores, scores.T, middle, 3.0).save(tmp_path / "belief.npz")
        again = Belief.load(tmp_path / "belief.npz")
        assert np.array_equal(again.scores, scores)
        assert again.prior == 3.0
        assert (again.middle is None) == (middle is None)
    joined = again.joined(again)
    assert joined.scores.shape == (2, 12)
    assert joined.middle.shape == (12,)


def test_answers_of_a_policy(make_pool):
    rows = [{"prompt": "a?", "place": 1}, {"prompt": "b?", "place": 2}]
    (group,) = groups_of(rows, [["x", "y"], ["z"]], "sft", "place")
    assert (group.sources, group.stratum, group.columns) == (("sft", "sft"), "1", {"place": 1})
    with pytest.raises(DataError, match="sft gives no prompt two different answers"):
        groups_of(rows, [["x"], []], "sft", None)
    (more,) = beside([group], [["x", "w"]], "ppo")
    assert dict(zip(more.answers, more.sources, strict=True)) == {
        "x": "sft",
        "y": "sft",
        "w": "ppo",
    }
    assert beside([group], [["x"]], "ppo") == []


def test_long_answers_are_left_out(tiny_tokenizer, make_pool):
    pool = make_pool(4, answers=3)
    long = pool.groups[0]
    texts = (long.answers[0], "no " * 90, long.answers[2])
    changed = PairPool((type(long)(**(vars(long) | {"answers": texts})), *pool.groups[1:]))
    kept, dropped = fitting(changed, tiny_tokenizer, 60)
    assert dropped == 1
    assert kept.groups[0].answers == (texts[0], texts[2])
    assert kept.groups[0].ranks == (long.ranks[0], long.ranks[2])
    assert kept.groups[1:] == changed.groups[1:]


def test_a_store_s_pairs_keep_their_order(store):
    ids = [store.add_pair(f"{i}?", "x", "y", "sft", "dpo", {"topic": i % 2}) for i in range(4)]
    pool = of_items(store.items("pair"), "topic")
    assert [pair.id for pair in pool.pairs] == ids
    assert [group.stratum for group in pool.groups] == ["0", "1", "0", "1"]
    assert pool.groups[0].answers == ("x", "y")
    assert pool.groups[0].sources == ("sft", "dpo")


@pytest.mark.data
def test_real_preferences_make_a_pool(tmp_path):
    path = SHARED / "hh_harmless.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with pytest.raises(DataError, match=r"hh_harmless.jsonl.gz:87: chosen is empty.*bad_rows"):
        read_pairs(str(path), {}, 100, None)
    pool = read_pairs(str(path), {}, 100, None, tmp_path / "quarantine.jsonl")
    assert len(pool.pairs) == 99
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 1
    assert all(sorted(group.ranks) == [1.0, 2.0] for group in pool.groups)
