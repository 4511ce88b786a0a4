"""Pseudo-labels keep the proportions asked for, and no more are dropped than that takes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align.selftrain.balance import balanced, quotas, shares_of

# The first draw of a process reads constants from every module that is loaded.
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 7), min_size=1)


def fits(counts, shares, slack):
    total = sum(counts.values())
    return all(n <= (1 + slack) * shares.get(g, 0) * total + 1e-6 for g, n in counts.items())


@PROPERTY
@given(COUNTS, st.tuples(*[st.floats(0.05, 1)] * 3), st.floats(0, 1))
def test_quotas_are_the_greatest_that_fit(counts, raw, slack):
    shares = {g: value / sum(raw) for g, value in zip("abc", raw, strict=True)}
    found = quotas(counts, shares, slack)
    assert fits(found, shares, slack)
    # Nothing that fits keeps more of any group: tried one by one.
    for other in itertools.product(*[range(n + 1) for n in counts.values()]):
        tried = dict(zip(counts, other, strict=True))
        if fits(tried, shares, slack) and not any(
            abs((1 + slack) * shares[g] * sum(other) - n) < 1e-4 for g, n in tried.items()
        ):
            assert all(tried[g] <= found[g] for g in counts)


def test_the_majority_gives_way():
    even = {"long": 0.5, "short": 0.5}
    assert quotas({"long": 90, "short": 10}, even, 0.25) == {"long": 16, "short": 10}
    assert quotas({"long": 90, "short": 0}, even, 0.25) == {"long": 0, "short": 0}
    assert quotas({"new": 5, "long": 4}, {"long": 1.0}, 0.0) == {"new": 0, "long": 4}


def test_the_surest_stay_and_every_dimension_holds():
    sides = [True] * 12 + [False] * 6
    lengths = ["longer", "shorter"] * 9
    certainty = [1 - n / 100 for n in range(18)]
    kept = balanced(
        [sides, lengths],
        [{True: 0.5, False: 0.5}, {"longer": 0.5, "shorter": 0.5}],
        certainty,
        0.0,
    )
    assert Counter(sides[n] for n in kept) == {True: 6, False: 6}
    assert Counter(lengths[n] for n in kept) == {"longer": 6, "shorter": 6}
    assert kept == [*range(6), *range(12, 18)]
    assert balanced([], [], certainty) == list(range(18))


@PROPERTY
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("xyz"), st.floats(0.5, 1)), max_size=40))
def test_all_dimensions_fit_at_once(rows):
    dimensions = [[row[0] for row in rows], [row[1] for row in rows]]
    shares = [{True: 0.5, False: 0.5}, {"x": 0.5, "y": 0.3, "z": 0.2}]
    kept = balanced(dimensions, shares, [row[2] for row in rows], 0.3)
    assert kept == sorted(set(kept))
    for groups, wanted in zip(dimensions, shares, strict=True):
        assert fits(Counter(groups[n] for n in kept), wanted, 0.3)


def test_shares_and_mistakes():
    assert shares_of(["a", "b", "a", "a"]) == {"a": 0.75, "b": 0.25}
    assert shares_of(["a", "b"], [3.0, 1.0]) == {"a": 0.75, "b": 0.25}
    assert shares_of([]) == {}
    with pytest.raises(ValueError, match="one group of each dimension"):
        balanced([["a"]], [{"a": 1.0}], [0.9, 0.8])
