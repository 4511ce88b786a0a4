"""Strategies and what is made of them: each is its score, and compositions keep their promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.acquisition import (
    STRATEGIES,
    Annotator,
    Budget,
    Diversify,
    Epsilon,
    Mix,
    Pool,
    Scorer,
    Stratify,
    View,
    committee,
    design,
    per_cost,
    uncertainty,
)
from feedback.acquisition.compose import quotas, ranks
from feedback.errors import DataError

RNG = np.random.default_rng
COUNT = 40


def make_view(seed: int = 0, **more) -> View:
    rng = RNG(seed)
    z = rng.normal(size=(COUNT, 5))
    pool = Pool(
        ids=[f"i{i}" for i in range(COUNT)],
        differences=z,
        prompts=rng.normal(size=(COUNT, 3)),
        **more,
    )
    margins = rng.normal(size=(6, 5)) @ z.T
    taken = np.arange(4)
    return View(pool, margins, np.arange(4, COUNT), taken)


def scored(values, name: str = "given") -> Scorer:
    """A scorer of known scores over the whole pool."""
    values = np.asarray(values, dtype=float)
    return Scorer(name, lambda view, rng: values[view.free], lambda view, i, s: f"{name} {s:g}")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_takes_free_places_once_and_says_why(name):
    view = make_view()
    picks = STRATEGIES[name]()(view, 7, RNG(1))
    assert len(set(picks.index.tolist())) == 7
    assert set(picks.index.tolist()) <= set(view.free.tolist())
    assert len(picks.reasons) == len(picks.scores) == 7
    assert all(10 < len(why) < 120 and "\n" not in why for why in picks.reasons)
    again = STRATEGIES[name]()(view, 7, RNG(1))
    assert again.index.tolist() == picks.index.tolist()
    assert len(STRATEGIES[name]()(view, 99, RNG(1)).index) == COUNT - 4
    nothing = view.narrow(view.free[:0])
    assert len(STRATEGIES[name]()(nothing, 3, RNG(1)).index) == 0


def test_strategies_are_their_scores():
    view = make_view()
    free = view.free
    best = STRATEGIES["bald"]()(view, 3, RNG(0))
    expected = committee.bald(view.members[:, free])
    assert best.index.tolist() == free[np.argsort(-expected)[:3]].tolist()
    assert best.scores == pytest.approx(np.sort(expected)[::-1][:3])
    unsure = STRATEGIES["uncertainty"]()(view, 1, RNG(0)).index[0]
    assert unsure == free[uncertainty.pair_uncertainty(view.p[free]).argmax()]
    batch = STRATEGIES["d_optimal"]()(view, 4, RNG(0))
    h = design.information(view.pool.z[:4], view.p[:4], 1.0)
    places, gains = design.greedy_d_optimal(view.pool.z[free], view.p[free], 4, h)
    assert batch.index.tolist() == free[places].tolist()
    assert batch.scores == pytest.approx(gains)


def test_reasons_hold_what_was_seen():
    view = make_view()
    picks = STRATEGIES["bald"]()(view, 1, RNG(0))
    seen = view.members[:, picks.index[0]]
    assert f"{seen.min():.0%} to {seen.max():.0%}" in picks.reasons[0]
    votes = STRATEGIES["vote_entropy"]()(view, 1, RNG(0))
    count = int((view.margins[:, votes.index[0]] > 0).sum())
    assert votes.reasons[0].startswith(f"{count} of 6 members")


def test_a_mix_is_the_weighted_mean_of_ranks():
    view = make_view()
    a, b = RNG(1).random(COUNT), RNG(2).random(COUNT)
    picks = Mix([(scored(a, "a"), 3.0), (scored(1000 * b, "b"), 1.0)])(view, 5, RNG(0))
    shares = 0.75 * ranks(a[None, 4:])[0] + 0.25 * ranks(b[None, 4:])[0]
    assert picks.scores == pytest.approx(shares[picks.index - 4])  # ranks may tie
    assert picks.scores == pytest.approx(np.sort(shares)[::-1][:5])
    assert {why.split()[0] for why in picks.reasons} == {"a"}
    alone = Mix([(scored(a), 1.0)])(view, 5, RNG(0))
    assert alone.index.tolist() == scored(a)(view, 5, RNG(0)).index.tolist()


def test_epsilon_says_what_chance_did():
    view = make_view()
    picks = Epsilon(scored(np.arange(COUNT)), 0.5)(view, 10, RNG(0))
    lucky = ["random" in why for why in picks.reasons]
    assert 0 < sum(lucky) < 10
    kept = [int(i) for i, luck in zip(picks.index, lucky, strict=True) if not luck]
    assert kept == list(range(COUNT - 1, COUNT - 1 - len(kept), -1))


def twins(count: int = 30) -> View:
    """80% copies of three pairs, half of them turned round; the copies are what scores like."""
    rng = RNG(0)
    kinds = rng.normal(size=(3, 5))
    sign = rng.choice([-1.0, 1.0], size=(count, 1))
    copies = sign * kinds[rng.integers(3, size=count)] + 0.01 * rng.normal(size=(count, 5))
    z = np.concatenate([copies, rng.normal(size=(8, 5))])
    pool = Pool(ids=[str(i) for i in range(len(z))], differences=z)
    return View(pool, rng.normal(size=(3, len(z))), np.arange(len(z)), np.zeros(0, dtype=int))


@pytest.mark.parametrize("inner", ["scorer", "d_optimal", "random"])
def test_near_duplicates_never_fill_a_batch(inner):
    view = twins()
    greatest = scored(np.where(np.arange(38) < 30, 100.0, 0.0) + RNG(1).random(38))
    strategy = greatest if inner == "scorer" else STRATEGIES[inner]()
    plain = strategy(view, 10, RNG(0)).index
    picks = Diversify(strategy, 0.98)(view, 10, RNG(0))
    unit = view.pool.z / np.linalg.norm(view.pool.z, axis=1, keepdims=True)
    cosine = np.abs(unit[picks.index] @ unit[picks.index].T) - 2 * np.eye(len(picks.index))
    assert cosine.max() < 0.98
    assert len(picks.index) == 10
    if inner == "scorer":
        assert (plain < 30).all()
        assert (picks.index < 30).sum() == 3  # one of each kind
        assert picks.index[0] == plain[0]  # the best stays the first


def test_a_batch_is_smaller_where_nothing_different_is_left():
    view = twins()
    picks = Diversify(STRATEGIES["random"](), 0.98)(view, 38, RNG(0))
    assert len(picks.index) == 11  # three kinds and eight others


def test_diversify_looks_at_labels_when_told():
    view = twins()
    view = view.narrow(view.free[1:], view.free[:1])
    alike = Diversify(scored(np.arange(38.0, 0, -1)), 0.98, labelled=True)(view, 38, RNG(0))
    assert len(alike.index) == 10  # the kind of the labelled pair is left out


def test_prompts_count_their_direction():
    prompts = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.01]])
    pool = Pool(ids=["a", "b", "c"], prompts=prompts)
    view = View(pool, np.zeros((2, 3)), np.arange(3), np.zeros(0, dtype=int))
    picks = Diversify(scored([3, 2, 1]), 0.98, on="prompts")(view, 3, RNG(0))
    assert picks.index.tolist() == [0, 1]  # opposite prompts are not alike


def test_strata_get_their_shares():
    strata = ["en"] * 24 + ["de"] * 12 + ["fr"] * 4
    view = make_view(strata=strata)
    picks = Stratify(scored(np.arange(COUNT)), {"en": 0.5, "de": 0.25, "fr": 0.25})(view, 8, RNG(0))
    found = [strata[i] for i in picks.index]
    assert [found.count(name) for name in ("en", "de", "fr")] == [4, 2, 2]
    assert [i for i in picks.index if strata[i] == "en"] == [23, 22, 21, 20]
    assert picks.reasons[0].endswith("(of stratum en)")
    even = Stratify(scored(np.arange(COUNT)))(view, 9, RNG(0))  # 20, 12 and 4 candidates
    found = [strata[i] for i in even.index]
    assert [found.count(name) for name in ("en", "de", "fr")] == [5, 3, 1]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 5), min_size=1),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9)),
    st.integers(1, 40),
)
def test_quotas_fill_what_can_be_filled(shares, held, k):
    found = quotas(shares, held, k)
    assert sum(found.values()) == min(k, sum(held.get(name, 0) for name in shares))
    assert all(0 <= count <= held.get(name, 0) for name, count in found.items())


def test_quotas_round_by_largest_remainders():
    assert quotas({"a": 0.5, "b": 0.3, "c": 0.2}, dict.fromkeys("abc", 99), 9) == {
        "a": 4,  # 4.5
        "b": 3,  # 2.7
        "c": 2,  # 1.8
    }


def test_a_budget_buys_per_cost_and_of_the_cheapest():
    costs = np.where(np.arange(COUNT) % 2 == 0, 1.0, 10.0)
    view = make_view(costs=costs)
    scores = scored(np.arange(COUNT) + 1.0)
    people = (Annotator("dear", 3.0), Annotator("cheap", 1.0, capacity=2.0))
    picks = Budget(per_cost(scores), 8.0, people)(view, 5, RNG(0))
    assert picks.index.tolist() == [38, 36, 34, 32]  # per cost, all even; 2 x 1 + 2 x 3 = 8
    assert picks.annotators == ("cheap", "cheap", "dear", "dear")
    assert picks.reasons[0] == "given 39, at a cost of 1"
    plain = Budget(scores, 12.0)(view, 3, RNG(0))
    assert plain.index.tolist() == [39, 38, 36]  # 10 + 1 + 1; what does not fit is passed over
    assert plain.annotators == ("anyone",) * 3


def test_a_budget_goes_outside():
    bought = Budget(STRATEGIES["bald"](), 5.0)
    for outside in (Diversify, Stratify):
        with pytest.raises(DataError, match=f"Budget\\({outside.__name__}"):
            outside(bought)
    picks = Budget(Diversify(STRATEGIES["bald"]()), 5.0)(make_view(), 9, RNG(0))
    assert len(picks.index) == 5


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Mix([]), "at least one scorer"),
        (lambda: Mix([(STRATEGIES["d_optimal"](), 1.0)]), "d_optimal chooses a batch together"),
        (lambda: Diversify(STRATEGIES["bald"](), 1.5), r"similarity is 1\.5"),
        (lambda: Budget(STRATEGIES["bald"](), 0.0), r"limit is 0\.0"),
        (lambda: Budget(STRATEGIES["bald"](), 1.0, ()), "at least one annotator"),
        (lambda: Budget(STRATEGIES["bald"](), 1.0, (Annotator("x", -1.0),)), "annotator 'x'"),
        (lambda: per_cost(scored(-np.ones(COUNT)))(make_view(), 1, RNG(0)), "given gives -1"),
        (lambda: Stratify(STRATEGIES["bald"]())(make_view(), 1, RNG(0)), "needs strata"),
        (
            lambda: Stratify(STRATEGIES["bald"](), {"xx": 1.0})(
                make_view(strata=["en"] * COUNT), 1, RNG(0)
            ),
            "no stratum 'xx' in the pool; there are en",
        ),
        (lambda: quotas({"a": 0.0}, {"a": 1}, 1), "one at least above 0"),
        (lambda: STRATEGIES["k_center"]("answers")(make_view(), 1, RNG(0)), "on is 'answers'"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()
