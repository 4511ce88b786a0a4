"""Paired tests and intervals: against scipy, hand-computed values, and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from align.errors import DataError
from align.evaluate.significance import (
    Difference,
    bootstrap_interval,
    difference_interval,
    holm,
    mcnemar_test,
    paired_difference,
    permutation_test,
    seeds_interval,
)


def test_bootstrap_equals_scipy() -> None:
    x = np.random.default_rng(0).exponential(size=80)
    ours = bootstrap_interval(x, resamples=20_000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile")
    assert ours.value == pytest.approx(x.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_bootstrap_is_repeatable_and_chunking_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_interval(x, resamples=1000)
    monkeypatch.setattr("align.evaluate.significance.CHUNK", 7 * 50)
    assert bootstrap_interval(x, resamples=1000) == whole


def test_bootstrap_of_a_ratio_weighs_long_texts_more() -> None:
    losses, tokens = [10.0, 90.0], [10.0, 30.0]
    interval = bootstrap_interval(losses, tokens)
    assert interval.value == pytest.approx(100 / 40)
    assert (interval.low, interval.high) == pytest.approx((1.0, 3.0))


def test_bootstrap_coverage() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        interval = bootstrap_interval(rng.exponential(size=100), resamples=500, seed=trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_permutation_test_exact_by_hand() -> None:
    # |sum| of 1, 2, 3 reaches 6 for two of eight sign patterns.
    assert permutation_test([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    # 1, 2, -3 sum to 0: every pattern is at least as extreme.
    assert permutation_test([1.0, 2.0, -3.0]) == 1.0
    assert permutation_test([0.0, 0.0]) == 1.0
    assert permutation_test([0.0, 1.0, 2.0, 3.0]) == permutation_test([1.0, 2.0, 3.0])


@pytest.mark.parametrize("n", [10, 40])
def test_permutation_test_equals_scipy(n: int) -> None:
    x = np.random.default_rng(n).normal(0.4, 1, size=n)
    theirs = stats.permutation_test(
        (x, np.zeros(n)),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        vectorized=False,
        n_resamples=4000,
    )
    tolerance = 1e-9 if n == 10 else 0.02
    assert permutation_test(x) == pytest.approx(theirs.pvalue, abs=tolerance)


def test_permutation_test_keeps_its_level() -> None:
    rng = np.random.default_rng(1)
    p_values = [permutation_test(rng.normal(size=30), resamples=400, seed=s) for s in range(400)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_permutation_p_value_is_never_zero() -> None:
    assert permutation_test(np.full(50, 9.0) + np.arange(50), resamples=99) == 1 / 100


def test_paired_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 10, size=60)
    a, b = difficulty + rng.normal(0.5, 0.5, size=60), difficulty + rng.normal(0, 0.5, size=60)
    paired = paired_difference(a, b)
    assert paired.p_value < 0.01
    assert paired.interval.low > 0
    assert stats.ttest_ind(a, b).pvalue > 0.5  # unpaired, the difference drowns
    mirrored = paired_difference(b, a)
    assert mirrored.interval.value == pytest.approx(-paired.interval.value)
    assert mirrored.p_value == paired.p_value
    with pytest.raises(DataError, match="60 and 59"):
        paired_difference(a, b[:-1])


def test_mcnemar_by_hand() -> None:
    # 8 rows only a gets right, 1 only b: sign test of 8 against 1 = 2 * (1 + 9) / 2^9.
    a = [True] * 8 + [False] + [True] * 30 + [False] * 5
    b = [False] * 8 + [True] + [True] * 30 + [False] * 5
    assert mcnemar_test(a, b) == pytest.approx(20 / 512)
    assert mcnemar_test(a, a) == 1.0
    with pytest.raises(DataError, match="44 and 43"):
        mcnemar_test(a, b[1:])


def test_seeds_interval_by_hand_and_scipy() -> None:
    # mean 0.75, s = 0.05, t(0.975, 2) = 4.302653, half width t * s / sqrt(3)
    interval = seeds_interval([0.70, 0.75, 0.80])
    assert interval.value == pytest.approx(0.75)
    assert interval.high - 0.75 == pytest.approx(4.302653 * 0.05 / np.sqrt(3), rel=1e-6)
    x = np.random.default_rng(0).normal(size=7)
    theirs = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    ours = seeds_interval(x, level=0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_bootstrap_over_three_seeds_is_too_narrow() -> None:
    """Why t is the default."""
    rng = np.random.default_rng(4)
    hits = {"t": 0, "bootstrap": 0}
    for _ in range(300):
        x = rng.normal(size=3)
        for method in hits:
            interval = seeds_interval(x, method=method, resamples=500)
            hits[method] += interval.low <= 0 <= interval.high
    assert hits["t"] / 300 >= 0.92
    assert hits["bootstrap"] / 300 < 0.85


def test_a_share_over_seeds_stays_a_share() -> None:
    values = [1.0, 14 / 15, 1.0, 1.0, 0.9, 1.0]
    assert seeds_interval(values).high > 1
    found = seeds_interval(values, share=True)
    assert (found.low, found.high) == (seeds_interval(values).low, 1.0)
    assert seeds_interval([0.0, 0.1], share=True).low == 0.0


def test_difference_of_shares_is_bonett_and_price_s() -> None:
    differences = [1.0] * 7 + [-1.0] * 2 + [0.0] * 21
    n, first, second = 32, 8 / 32, 3 / 32
    middle = first - second
    half = 1.959963985 * ((first + second - middle**2) / n) ** 0.5
    found = difference_interval(differences)
    assert found.value == pytest.approx(5 / 30)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    doubled = difference_interval(2 * np.array(differences), np.full(30, 2.0))
    assert doubled.as_dict() == pytest.approx(found.as_dict())  # only relative weights count


@pytest.mark.parametrize(("value", "n"), [(0.0, 9), (0.0, 35), (1.0, 8), (-1.0, 35), (0.0, 1)])
def test_equal_differences_are_not_certain(value: float, n: int) -> None:
    found = difference_interval([value] * n)
    assert found.value == value
    assert -1 <= found.low <= value <= found.high <= 1
    assert found.high - found.low > 0.05
    assert paired_difference([0.5 + value / 2] * n, [0.5 - value / 2] * n, shares=True) == (
        Difference(found, permutation_test([value] * n))
    )


@pytest.mark.parametrize("p", [0.02, 0.1, 0.4])
def test_difference_interval_covers(p: float) -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        kind = draw.choice(3, size=25, p=[p, p / 2, 1 - 1.5 * p])
        found = difference_interval(np.array([1.0, -1.0, 0.0])[kind])
        hits += found.low <= p / 2 <= found.high
    assert hits >= 930


def test_difference_interval_refuses() -> None:
    with pytest.raises(DataError, match="lie in"):
        difference_interval([0.5, 2.0])
    with pytest.raises(DataError, match="2 values came with 1 weights"):
        difference_interval([0.5, 0.1], [1.0])
    with pytest.raises(DataError, match="counts"):
        difference_interval([0.0], [0.0])


def test_seeds_interval_refuses() -> None:
    with pytest.raises(DataError, match="at least two"):
        seeds_interval([0.5])
    with pytest.raises(DataError, match="'normal' is unknown"):
        seeds_interval([0.5, 0.6], method="normal")
    with pytest.raises(DataError, match="entry 1 is not finite"):
        seeds_interval([0.5, float("nan")])


def test_holm_by_hand() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03 0.06 0.06 0.02
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    with pytest.raises(DataError, match="lie in"):
        holm([1.2])
