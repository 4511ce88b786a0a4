"""Shares: against scipy, published values, and coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from feedback.errors import DataError
from reward.statistics import share_interval, sign_test, wilson_interval


@pytest.mark.parametrize("n", [1, 7, 50, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(n: int, share: float, level: float) -> None:
    k = round(n * share)
    ours = wilson_interval(k, n, level)
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_published_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81/263 gives 0.2553 to 0.3662.
    interval = wilson_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


def test_wilson_refuses_nonsense() -> None:
    with pytest.raises(DataError, match="at least one"):
        wilson_interval(0, 0)
    with pytest.raises(DataError, match="5 successes out of 4"):
        wilson_interval(5, 4)
    with pytest.raises(DataError, match="between 0 and 1"):
        wilson_interval(1, 4, level=95)


def test_share_of_wins_and_losses_is_plain_wilson() -> None:
    interval = share_interval([1.0] * 30 + [0.0] * 10)
    plain = wilson_interval(30, 40)
    assert interval.n == pytest.approx(40)
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high))


def test_ties_count_half_and_narrow_the_interval() -> None:
    values = [1.0] * 20 + [0.5] * 20 + [0.0] * 10
    interval = share_interval(values)
    plain = wilson_interval(30, 50)
    assert interval.value == pytest.approx(0.6)
    assert interval.n > 50
    assert plain.low < interval.low < 0.6 < interval.high < plain.high


def test_all_ties_stay_uncertain() -> None:
    # By the rule of three at most 3/n of unseen pairs are decided, each worth one half.
    interval = share_interval([0.5] * 100)
    assert interval.low < 0.5 < interval.high
    assert interval.high - 0.5 == pytest.approx(1.5 / 100, rel=0.5)


def test_share_mirrors() -> None:
    values = np.array([1, 1, 0.5, 0, 1, 0.25])
    one, two = share_interval(values), share_interval(1 - values)
    assert (one.low, one.value, one.high) == pytest.approx(
        (1 - two.high, 1 - two.value, 1 - two.low)
    )


def test_identical_rows_of_a_prompt_are_one_observation() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0] * 5
    copied = [value for value in values for _ in range(4)]
    prompts = [row for row in range(len(values)) for _ in range(4)]
    assert share_interval(copied).n == pytest.approx(160)
    assert share_interval(copied, prompts).n == pytest.approx(40, rel=0.15)


@pytest.mark.parametrize(
    ("win", "tie", "n"), [(0.5, 0.0, 40), (0.7, 0.1, 40), (0.4, 0.5, 100), (0.9, 0.05, 200)]
)
def test_coverage_with_ties(win: float, tie: float, n: int) -> None:
    rng = np.random.default_rng(5)
    truth = win + tie / 2
    draws = rng.choice([1.0, 0.5, 0.0], p=[win, tie, 1 - win - tie], size=(1500, n))
    intervals = [share_interval(row) for row in draws]
    coverage = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.93 <= coverage <= 0.975


def test_coverage_over_prompts_with_several_samples() -> None:
    rng = np.random.default_rng(6)
    prompts = np.repeat(np.arange(60), 4).tolist()
    naive = clustered = 0
    for _ in range(600):
        chances = rng.beta(2, 1, size=60)  # prompts differ; their mean is 2/3
        values = (rng.random((60, 4)) < chances[:, None]).astype(float).ravel()
        a, b = share_interval(values), share_interval(values, prompts)
        naive += a.low <= 2 / 3 <= a.high
        clustered += b.low <= 2 / 3 <= b.high
    assert clustered / 600 >= 0.92
    assert naive / 600 < 0.90  # ignoring the prompts is too sure of itself


def test_share_refuses_nonsense() -> None:
    with pytest.raises(DataError, match="no observations"):
        share_interval([])
    with pytest.raises(DataError, match=r"lie in \[0, 1\]"):
        share_interval([0.2, 1.4])
    with pytest.raises(DataError, match="2 values came with 1"):
        share_interval([0.2, 0.4], ["a"])


def test_sign_test_by_hand() -> None:
    # 9 of 10: 2 * (1 + 10) / 2^10
    assert sign_test(9, 1) == pytest.approx(22 / 1024)
    assert sign_test(1, 9) == sign_test(9, 1)
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 5) == 1.0
    assert math.isclose(sign_test(0, 8), 2 / 256)
    with pytest.raises(DataError, match="counts"):
        sign_test(-1, 2)
