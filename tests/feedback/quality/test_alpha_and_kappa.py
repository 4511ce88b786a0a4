"""Chance-corrected agreement against hand-computed values and the libraries."""

import random

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from feedback.errors import DataError
from feedback.quality.alpha import krippendorff_alpha
from feedback.quality.kappa import cohen_kappas, fleiss_kappa
from feedback.quality.votes import LEVELS, label_votes, level_votes, vote_table
from feedback.schema import Comparison

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", four observers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
ORDER = ["b", "tie", "a"]


def as_votes(rows) -> list[tuple[str, str, object]]:
    return [
        (f"u{i}", f"o{k}", value)
        for k, row in enumerate(rows)
        for i, value in enumerate(row)
        if value is not None
    ]


def as_matrix(votes, order) -> np.ndarray:
    table = vote_table(votes, order)
    matrix = np.full((len(table.annotators), len(table.items)), np.nan)
    matrix[table.annotator, table.item] = table.label
    return matrix


def test_alpha_equals_the_published_example() -> None:
    votes = as_votes(PUBLISHED)
    assert krippendorff_alpha(votes, draws=0).value == pytest.approx(0.743, abs=5e-4)
    ordinal = krippendorff_alpha(votes, "ordinal", labels=[1, 2, 3, 4, 5], draws=0)
    assert ordinal.value == pytest.approx(0.815, abs=5e-4)
    assert (ordinal.items, ordinal.votes) == (11, 40)  # the unit with one vote is left out


def test_alpha_by_hand() -> None:
    """Two items of two votes: aa, ab. D_o = 1/2, D_e = 2*3*1/(4*3) = 1/2, alpha = 0."""
    votes = as_votes([["a", "a"], ["a", "b"]])
    assert krippendorff_alpha(votes, draws=0).value == pytest.approx(0.0)


@pytest.mark.parametrize("metric", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_the_library_with_votes_missing(make_votes, metric, seed) -> None:
    votes = make_votes(seed, missing=0.5)
    ours = krippendorff_alpha(votes, metric, labels=ORDER, draws=0)
    theirs = krippendorff.alpha(as_matrix(votes, ORDER), level_of_measurement=metric)
    assert ours.value == pytest.approx(theirs, abs=1e-12)


def test_the_order_of_votes_and_the_names_of_people_do_not_matter(make_votes) -> None:
    votes = make_votes(3)
    shuffled = [(item, f"x{name}", label) for item, name, label in votes]
    random.Random(0).shuffle(shuffled)
    for metric in ("nominal", "ordinal"):
        one, other = (
            krippendorff_alpha(v, metric, labels=ORDER, draws=0) for v in (votes, shuffled)
        )
        assert one.value == pytest.approx(other.value, abs=1e-12)


def test_the_interval_is_that_of_resampled_items(make_votes) -> None:
    """Counting kinds of items gives what resampling the items one by one gives."""
    # Two people and three labels: a few kinds of items, some of them common and some rare.
    votes = [vote for vote in make_votes(1, items=120, missing=0.0) if vote[1] in ("ann0", "ann1")]
    by_item: dict[str, list] = {}
    for item, name, label in votes:
        by_item.setdefault(item, []).append((name, label))
    groups, rng = list(by_item.values()), np.random.default_rng(5)
    values = []
    for _ in range(400):
        drawn = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        again = [(f"i{i}", *vote) for i, group in enumerate(drawn) for vote in group]
        values.append(krippendorff_alpha(again, draws=0).value)
    low, high = np.quantile(values, [0.025, 0.975])
    ours = krippendorff_alpha(votes, draws=4000)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.02)
    assert ours.low < ours.value < ours.high


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohen_equals_scikit_learn(make_votes, weights) -> None:
    votes = make_votes(2, missing=0.4)
    ours = cohen_kappas(votes, labels=ORDER, weights=weights, draws=0)
    matrix = as_matrix(votes, ORDER)
    assert len(ours) == 10
    for (one, other), found in ours.items():
        rows = matrix[[int(one[-1]), int(other[-1])]]
        both = rows[:, ~np.isnan(rows).any(axis=0)].astype(int)
        name = None if weights == "none" else weights
        theirs = cohen_kappa_score(*both, labels=[0, 1, 2], weights=name)
        assert found.value == pytest.approx(theirs, abs=1e-12)
        assert found.items == both.shape[1]


def test_fleiss_equals_statsmodels_on_items_with_equally_many_votes(make_votes) -> None:
    votes = make_votes(4)
    counts = vote_table(votes, ORDER).counts()
    found = fleiss_kappa(votes, labels=ORDER, draws=200)
    sizes = counts.sum(axis=1)
    kept = counts[sizes == found.votes / found.items]
    assert found.value == pytest.approx(inter_rater.fleiss_kappa(kept), abs=1e-12)
    assert found.low < found.value < found.high
    assert f"{len(counts) - len(kept)} items" in found.note


@pytest.mark.data
def test_real_annotators_equal_the_libraries(pandalm_votes) -> None:
    """Three people, 700 pairs; figures from krippendorff 0.9, statsmodels 0.15, sklearn 1.9."""
    nominal = krippendorff_alpha(pandalm_votes)
    ordinal = krippendorff_alpha(pandalm_votes, "ordinal", labels=ORDER)
    assert nominal.value == pytest.approx(0.8396782637050789, abs=1e-6)
    assert ordinal.value == pytest.approx(0.850446518974454, abs=1e-6)
    assert nominal.low < nominal.value < nominal.high
    assert fleiss_kappa(pandalm_votes).value == pytest.approx(0.839601883649674, abs=1e-6)
    kappas = cohen_kappas(pandalm_votes, draws=0)
    matrix = as_matrix(pandalm_votes, ORDER).astype(int)
    for (one, other), found in kappas.items():
        rows = matrix[int(one[-1]) - 1], matrix[int(other[-1]) - 1]
        assert found.value == pytest.approx(cohen_kappa_score(*rows), abs=1e-6)


@pytest.mark.parametrize("votes", [[], [("i", "ann", "a"), ("j", "ann", "b")]])
def test_without_overlap_there_is_no_value_and_a_reason(votes) -> None:
    for found in (krippendorff_alpha(votes), fleiss_kappa(votes)):
        assert (found.value, found.low, found.items) == (None, None, 0)
        assert "two people" in found.note
    assert cohen_kappas(votes) == {}


def test_two_who_share_no_item_have_a_named_gap() -> None:
    (found,) = cohen_kappas([("i", "ann", "a"), ("j", "bob", "b")]).values()
    assert found.value is None
    assert "two people" in found.note


def test_unanimity_on_one_label_is_not_called_agreement() -> None:
    votes = as_votes([["a"] * 4, ["a"] * 4])
    found = [krippendorff_alpha(votes), fleiss_kappa(votes), *cohen_kappas(votes).values()]
    assert [f.value for f in found] == [None] * 3
    assert all("every vote is the same" in f.note for f in found)


def test_bad_votes_are_named() -> None:
    with pytest.raises(DataError, match="'ann' voted twice on item 'i'"):
        krippendorff_alpha([("i", "ann", "a"), ("i", "ann", "b")])
    with pytest.raises(DataError, match="label 'c'"):
        krippendorff_alpha([("i", "ann", "c")], labels=["a", "b"])
    with pytest.raises(ValueError, match="order of the labels"):
        krippendorff_alpha([("i", "ann", "a")], "ordinal")


def test_comparisons_become_votes_whichever_way_they_are_stored() -> None:
    said = [
        Comparison("p", "x", "y", "a", "ann", strength=2),
        Comparison("p", "y", "x", "a", "bob", strength=1),
        Comparison("p", "x", "y", "tie", "cy", strength=0),
        Comparison("p", "x", "y", "b", "ann"),  # a repeat: left to self-consistency
    ]
    assert [v[1:] for v in label_votes(said)] == [("ann", "a"), ("bob", "b"), ("cy", "tie")]
    assert [v[1:] for v in level_votes(said)] == [("ann", 2), ("bob", -1), ("cy", 0)]
    assert {v[2] for v in level_votes(said)} <= set(LEVELS)
