"""The holdout is random and permanent; accuracy from it is unbiased, and its interval covers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from feedback.acquisition import Holdout, Pool, estimate_accuracy
from feedback.errors import DataError

RNG = np.random.default_rng


def make_pool(count: int = 2000, **more) -> Pool:
    return Pool(ids=[f"i{i}" for i in range(count)], **more)


def test_the_holdout_is_its_share_and_never_changes():
    pool = make_pool()
    held = Holdout(0.2).held(pool)
    assert held.mean() == pytest.approx(0.2, abs=4 * (0.16 / 2000) ** 0.5)
    assert (Holdout(0.2).held(pool) == held).all()
    assert (Holdout(0.2, seed=1).held(pool) != held).any()
    grown = make_pool(2500)
    assert (Holdout(0.2).held(grown)[:2000] == held).all()  # a pool may grow
    assert held[Holdout(0.1).held(pool)].all()  # a smaller share is part of a greater
    turned = Pool(ids=pool.ids[::-1])
    assert (Holdout(0.2).held(turned)[::-1] == held).all()


def test_known_ids_have_known_places():
    """The hash must not change: a holdout that moved between versions would leak into training."""
    pool = make_pool(40)
    assert np.flatnonzero(Holdout(0.2).held(pool)).tolist() == KNOWN


KNOWN = [2, 10, 24, 27, 34]


def test_pairs_of_a_prompt_go_together():
    prompts = [f"p{i // 4}" for i in range(400)]
    held = Holdout(0.3).held(make_pool(400, prompt_ids=prompts))
    for start in range(0, 400, 4):
        assert len(set(held[start : start + 4])) == 1


def test_draws_go_on_where_the_last_stopped():
    pool = make_pool(300)
    holdout = Holdout(0.2)
    whole = holdout.draw(pool, 300)
    assert sorted(whole.tolist()) == np.flatnonzero(holdout.held(pool)).tolist()
    first = holdout.draw(pool, 10)
    rest = holdout.draw(pool, 300, [pool.ids[i] for i in first])
    assert np.concatenate([first, rest]).tolist() == whole.tolist()
    assert whole.tolist() != sorted(whole.tolist())


def test_propensities_are_of_all_that_was_asked_by_now():
    pool = make_pool(1000)
    holdout = Holdout(0.2)
    order = holdout.draw(pool, 1000)
    asked = [pool.ids[i] for i in order[:30]] + ["i0"] * (not holdout.held(pool)[0])
    found = holdout.propensities(pool, asked)
    assert found[order] == pytest.approx(0.2 * 30 / len(order))
    assert np.isnan(found[~holdout.held(pool)]).all()


def test_strata_have_their_own_shares():
    strata = ["rare" if i % 10 == 0 else "common" for i in range(3000)]
    pool = make_pool(3000, strata=strata)
    holdout = Holdout({"rare": 0.6, "common": 0.1})
    rare = np.array([one == "rare" for one in strata])
    held = holdout.held(pool)
    assert held[rare].mean() == pytest.approx(0.6, abs=0.12)
    assert held[~rare].mean() == pytest.approx(0.1, abs=0.03)
    # At any time the two are asked in proportion to their shares.
    early = holdout.draw(pool, held.sum() // 3)
    assert rare[early].mean() == pytest.approx(rare[held].mean(), abs=0.1)


def test_estimates_by_hand():
    even = estimate_accuracy([1, 0, 1, 1], [0.1] * 4)
    assert (even.value, even.n) == (0.75, 4)
    # Wilson's interval with Student's quantile, for 3 of 4 less one degree of freedom.
    z, n = t.ppf(0.975, 3), 3.0
    middle = (0.75 + z * z / 2 / n) / (1 + z * z / n)
    half = z * (0.75 * 0.25 / n + z * z / 4 / n**2) ** 0.5 / (1 + z * z / n)
    assert even.effective == pytest.approx(3)
    assert (even.low, even.high) == pytest.approx((middle - half, middle + half))
    uneven = estimate_accuracy([1, 0], [0.5, 0.1])
    assert uneven.value == pytest.approx(2 / 12)
    total = estimate_accuracy([1, 0, 1], [0.5, 0.1, 0.25], population=20, method="horvitz_thompson")
    assert total.value == pytest.approx((2 + 4) / 20)
    half = 1.959964 * (0.5 * 4 + 0.75 * 16) ** 0.5 / 20
    assert total.high == pytest.approx(total.value + half)


def test_all_right_is_not_certain():
    found = estimate_accuracy(np.ones(30), np.full(30, 0.1))
    assert found.value == found.high == 1.0
    assert 0.8 < found.low < 0.95


def test_copies_of_a_prompt_count_once():
    correct = np.repeat([1, 0, 1, 1, 0, 1, 1, 1], 10)
    alone = estimate_accuracy(correct, np.full(80, 0.2))
    together = estimate_accuracy(correct, np.full(80, 0.2), clusters=np.arange(80) // 10)
    assert together.value == alone.value
    assert together.effective == pytest.approx(7, abs=0.5)
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.fixture(scope="module")
def rounds():
    """Estimates of many seeds: of the holdout, and of what was chosen for being hard."""
    rng = RNG(0)
    count = 2000
    hard = rng.random(count)  # the model is right with chance 1 - hard / 2
    correct = (rng.random(count) > hard / 2).astype(float)
    strata = np.where(hard > 0.8, "hard", "easy").tolist()
    pool = make_pool(count, strata=strata)
    found = []
    for seed in range(200):
        holdout = Holdout({"hard": 0.3, "easy": 0.1}, seed)
        order = holdout.draw(pool, 150)
        chances = holdout.propensities(pool, [pool.ids[i] for i in order])[order]
        plain = correct[order].mean()
        ours = estimate_accuracy(correct[order], chances)
        total = estimate_accuracy(
            correct[order], chances, population=count, method="horvitz_thompson"
        )
        found.append((plain, ours, total))
    chosen = correct[np.argsort(-hard)[:150]].mean()
    return correct.mean(), chosen, found


@pytest.mark.parametrize("which", [1, 2])
def test_the_estimate_is_unbiased_and_covers(rounds, which):
    truth, _, found = rounds
    values = np.array([one[which].value for one in found])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / 200**0.5)
    cover = np.mean([one[which].low <= truth <= one[which].high for one in found])
    assert cover >= 0.9
    assert values.std() < 0.08


def test_what_was_chosen_and_what_is_unweighted_are_biased(rounds):
    truth, chosen, found = rounds
    assert truth - chosen > 0.1
    plain = np.array([one[0] for one in found])
    assert truth - plain.mean() > 0.03  # the hard stratum is drawn three times as often


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: estimate_accuracy([1, 0], [0.1, np.nan]), "1 of 2 items have no propensity"),
        (lambda: estimate_accuracy([], []), "at least one, are"),
        (lambda: estimate_accuracy([1], [0.0]), "a propensity is 0"),
        (lambda: estimate_accuracy([2], [0.1]), "correct holds 2"),
        (lambda: estimate_accuracy([1], [0.1], clusters=["a", "b"]), "2 clusters for 1 items"),
        (lambda: estimate_accuracy([1], [0.1], method="mean"), "method is 'mean'"),
        (lambda: estimate_accuracy([1], [0.1], method="horvitz_thompson"), "population is None"),
        (lambda: estimate_accuracy([1], [0.1], level=1.0), r"level is 1\.0"),
        (lambda: Holdout(1.0), r"fraction is 1\.0"),
        (lambda: Holdout({"a": 0.0}), "of stratum 'a' is 0"),
        (lambda: Holdout({"a": 0.1}).held(make_pool(3)), "the pool has no strata"),
        (lambda: Holdout({"a": 0.1}).held(make_pool(1, strata=["b"])), "stratum 'b' has no"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()
