"""Uncertainty and committee scores: hand-computed values, identities, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata

from feedback.acquisition import arrays, committee, uncertainty
from feedback.errors import DataError

LOG2 = math.log(2)
TERNARY = np.array([[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.7, 0.2, 0.1]])
committees = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
    elements=st.floats(0, 1),
)


def h(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_pair_uncertainty_is_the_entropy_by_hand():
    found = uncertainty.pair_uncertainty([0.5, 0.25, 1.0, 0.0])
    assert found == pytest.approx([LOG2, 0.25 * math.log(4) + 0.75 * math.log(4 / 3), 0, 0])


def test_three_classes_by_hand_and_the_three_differ():
    entropies = [LOG2, 0.4 * math.log(2.5) + 0.6 * math.log(10 / 3), h3(0.7, 0.2, 0.1)]
    assert uncertainty.entropy(TERNARY) == pytest.approx(entropies)
    assert uncertainty.margin(TERNARY) == pytest.approx([0.0, -0.1, -0.5])
    assert uncertainty.least_confidence(TERNARY) == pytest.approx([0.5, 0.6, 0.3])
    first = {f.__name__: f(TERNARY).argmax() for f in MEASURES}
    assert first == {"entropy": 1, "margin": 0, "least_confidence": 1}


def h3(*p: float) -> float:
    return -sum(x * math.log(x) for x in p)


MEASURES = (uncertainty.entropy, uncertainty.margin, uncertainty.least_confidence)


@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 1000)))
def test_the_three_rank_pairs_alike(thousandths):
    p = thousandths / 1000  # a grid, so that rounding breaks no ties
    both = np.stack([p, 1 - p], axis=1)
    reference = rankdata(np.round(uncertainty.pair_uncertainty(p), 12))
    for measure in MEASURES:
        assert (rankdata(np.round(measure(both), 12)) == reference).all()


def test_committee_by_hand():
    members = [[0.9, 0.5, 0.9, 1.0], [0.1, 0.5, 0.8, 0.0]]
    assert committee.vote_entropy(members) == pytest.approx([LOG2, LOG2, 0, LOG2])
    expected = [LOG2 - h(0.1), 0.0, h(0.85) - (h(0.9) + h(0.8)) / 2, LOG2]
    assert committee.bald(members) == pytest.approx(expected, abs=1e-12)
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert committee.mean_kl(members)[0] == pytest.approx(kl)
    assert committee.mean_probability(members) == pytest.approx([0.5, 0.5, 0.85, 0.5])


def test_an_undecided_member_votes_half_for_each():
    # Shares 3/4 and 1/4: one whole vote and one split.
    assert committee.vote_entropy([[0.9], [0.5]]) == pytest.approx([h(0.75)])


def test_classes_by_hand():
    members = np.array([[[0.8, 0.1, 0.1]], [[0.1, 0.8, 0.1]], [[0.1, 0.1, 0.8]]])
    assert committee.vote_entropy(members) == pytest.approx([math.log(3)])
    assert committee.bald(members) == pytest.approx([math.log(3) - h3(0.8, 0.1, 0.1)])


@settings(deadline=None)
@given(committees)
@example(np.array([[5e-324, 0.0], [0.0, 0.0]]))
def test_bald_is_the_mean_divergence(members):
    found = committee.bald(members)
    assert found == pytest.approx(committee.mean_kl(members), abs=1e-9)
    assert found.min() >= 0
    assert found.max() <= LOG2 + 1e-12
    assert (found <= uncertainty.pair_uncertainty(members.mean(axis=0)) + 1e-12).all()


@settings(deadline=None)
@given(committees)
def test_turning_a_pair_round_changes_no_score(members):
    for score in (committee.bald, committee.mean_kl, committee.vote_entropy):
        assert score(1 - members) == pytest.approx(score(members), abs=1e-9)


def test_a_pair_is_an_item_of_two_classes():
    members = np.random.default_rng(0).random((4, 7))
    both = np.stack([members, 1 - members], axis=2)
    for score in (committee.bald, committee.mean_kl, committee.vote_entropy):
        assert score(both) == pytest.approx(score(members))


def test_equal_answers_are_unsure_and_teach_nothing():
    members = np.full((3, 1), 0.5)
    assert uncertainty.pair_uncertainty(members[0]) == pytest.approx([LOG2])
    assert committee.bald(members) == pytest.approx([0.0])


def test_chunks_are_joined_in_order(monkeypatch):
    members = np.random.default_rng(1).random((3, 50))
    whole = committee.bald(members)
    monkeypatch.setattr(arrays.chunks, "__defaults__", (7,))
    assert (committee.bald(members) == whole).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: uncertainty.pair_uncertainty([0.5, 1.2]),
            r"holds 1\.2; probabilities in",
        ),
        (lambda: uncertainty.pair_uncertainty([[0.5]]), r"shape \(1, 1\); 1 dimensions"),
        (lambda: uncertainty.entropy([[0.5, 0.6]]), r"sum to 1\.1; 1 is expected"),
        (lambda: uncertainty.entropy([[1.0]]), "has 1 class; at least 2"),
        (lambda: committee.bald([[0.5]]), "committee of 1 cannot disagree"),
        (lambda: committee.bald([[0.5], [math.nan]]), r"members\[1, 0\] is nan"),
        (lambda: committee.bald([["a"], ["b"]]), "holds what is no number"),
        (lambda: arrays.top([1.0], 0), "k is 0; a whole number of at least 1"),
        (lambda: arrays.top([1.0], True), "k is True"),
        (lambda: arrays.same_length(a=np.ones(1), b=np.ones(2)), "a has 1, b has 2"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()


def test_margins_and_probabilities_go_both_ways():
    margins = np.array([[-3.0, 0.0], [2.0, 40.0]])
    there = arrays.to_probabilities(margins)
    assert there[0] == pytest.approx([1 / (1 + math.exp(3)), 0.5])
    assert arrays.to_margins(there)[0] == pytest.approx(margins[0])
    assert np.isfinite(arrays.to_margins([0.0, 1.0])).all()


def test_top_is_ordered_and_chance_decides_ties():
    scores = [1.0, 3.0, 2.0, 3.0, 0.0]
    assert arrays.top(scores, 3).tolist() == [1, 3, 2]
    assert len(arrays.top(scores, 99)) == 5
    seen = {int(arrays.top(np.zeros(9), 1, np.random.default_rng(seed))[0]) for seed in range(50)}
    assert len(seen) > 4
