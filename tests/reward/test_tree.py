"""Rows as a tree: nothing lost, nothing twice, and batches within their budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.tree import Segment, common_prefix, padded_batches, share, tree_batches

# few tokens, so that prefixes are common: nested, identical, one inside the other
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)
LEAST = st.integers(1, 4)


@settings(deadline=None, max_examples=200)
@given(rows=ROWS, least=LEAST)
def test_every_row_can_be_read_from_the_tree(rows, least):
    tree = share(rows, least)
    for index, row in enumerate(rows):
        places = tree.places(index)
        assert [tree.ids[place] for place in places] == row
        assert tree.ends()[index] == places[-1]
    assert len(tree.ids) == sum(segment.length for segment in tree.segments)
    for number, segment in enumerate(tree.segments):
        for at, count in segment.before:
            assert at < number
            assert 0 < count <= tree.segments[at].length
    distinct = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    if least == 1:  # as small as a tree can be: a node for every distinct prefix
        assert len(tree.ids) == len(distinct)
        assert len(tree.segments) <= len({tuple(row) for row in rows})
    assert len(distinct) <= len(tree.ids) <= sum(map(len, rows))


def test_prefixes_nest_and_short_ones_are_computed_twice():
    rows = [[1, 1, 2, 3], [1, 1, 2, 4, 5], [1, 1, 6], [7]]
    tree = share([rows[i] for i in (2, 0, 3, 1)], least=2)
    assert tree.ids == [1, 1, 2, 3, 4, 5, 6, 7]
    assert tree.segments == [
        Segment(4),
        Segment(2, ((0, 3),)),
        Segment(1, ((0, 2),)),
        Segment(1),
    ]
    assert [segment.depth for segment in tree.segments] == [0, 3, 2, 0]
    assert len(share(rows, least=3).ids) == 4 + 2 + 3 + 1
    assert len(share(rows, least=4).ids) == sum(map(len, rows))
    deep = share([[1, 1, 1, 1], [1, 1, 1, 2, 2], [1, 1, 1, 2, 3]], least=1)
    assert deep.segments[2] == Segment(1, ((0, 3), (1, 1)))


def test_an_empty_row_is_named():
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        share([[1], []])


@settings(deadline=None, max_examples=200)
@given(rows=ROWS, least=LEAST, budget=st.integers(1, 30))
def test_batches_hold_every_row_once_and_no_more_tokens_than_asked(rows, least, budget):
    batches = tree_batches(rows, budget, least)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or len(share([rows[i] for i in batch], least).ids) <= budget
    padded = padded_batches(rows, budget)
    assert sorted(index for batch in padded for index in batch) == list(range(len(rows)))
    for batch in padded:
        assert len(batch) == 1 or len(batch) * max(len(rows[i]) for i in batch) <= budget
    longest = [max(len(rows[i]) for i in batch) for batch in padded]
    assert longest == sorted(longest, reverse=True)


def test_answers_of_one_prompt_stay_together():
    prompts = [[start] * 20 for start in range(6)]
    rows = [[*prompt, 9, answer] for prompt in prompts for answer in range(4)]
    shuffled = [rows[i * 7 % 24] for i in range(24)]
    batches = tree_batches(shuffled, budget=73)  # two prompts, 50 tokens, and half of a third
    assert [len(batch) for batch in batches] == [8, 8, 8]
    for batch in batches:
        assert len({shuffled[i][0] for i in batch}) == 2
    many = [[0, 0, 0], *([5] * 20 + [9, answer] for answer in range(30))]
    assert [len(batch) for batch in tree_batches(many, budget=40)] == [17, 14]  # not [1, ...]
    assert tree_batches([], 10) == padded_batches([], 10) == []


def test_tokens_in_common():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == common_prefix([1, 2, 4], [1, 2]) == 2
    assert common_prefix([1], [2]) == common_prefix([], [2]) == 0
