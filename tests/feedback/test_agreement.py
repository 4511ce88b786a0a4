import pytest

from feedback.agreement import (
    majority_agreement,
    pairwise_agreement,
    position_bias,
    self_consistency,
    wilson,
)
from feedback.records import new_pair
from feedback.schema import Comparison
from feedback.simulate import SimulatedAnnotator


def say(prompt: str, annotator: str, label: str, swapped: bool = False) -> Comparison:
    return Comparison(prompt, "x", "y", label, annotator, swapped=swapped)  # type: ignore[arg-type]


def test_wilson_matches_a_calculation_by_hand() -> None:
    rate = wilson(15, 20)
    assert (rate.rate, rate.n) == (0.75, 20)
    assert (rate.low, rate.high) == pytest.approx((0.5313, 0.8881), abs=1e-4)


def test_pairwise_agreement_counts_every_couple_once_and_leaves_ties_out() -> None:
    said = [say("p", "ann", "a"), say("p", "bob", "a"), say("p", "cy", "b")]  # 1 of 3 couples
    said += [say("q", "ann", "b"), say("q", "bob", "b"), say("q", "cy", "tie")]  # 1 of 1
    rate = pairwise_agreement(said)
    assert (rate.rate, rate.n) == (0.5, 4)
    assert rate.low <= rate.rate <= rate.high


def test_an_annotator_does_not_agree_with_their_own_repeat() -> None:
    assert pairwise_agreement([say("p", "ann", "a"), say("p", "ann", "a")]).n == 0


def test_answers_stored_the_other_way_round_are_the_same_verdict() -> None:
    turned = Comparison("p", "y", "x", "b", "bob")
    assert pairwise_agreement([say("p", "ann", "a"), turned]).rate == 1.0


def test_the_interval_counts_pairs_and_not_couples() -> None:
    """Ten annotators of one mind on few pairs tell less than their 45 couples a pair suggest."""
    labels = ["a", "b"]
    said = []
    for i in range(20):
        for j in range(10):
            said.append(say(f"p{i}", f"ann{j}", "a" if i % 2 else labels[j % 2]))
    rate = pairwise_agreement(said)
    naive = wilson(round(rate.rate * rate.n), rate.n)
    assert rate.high - rate.low > 2 * (naive.high - naive.low)


def test_own_vote_is_left_out_of_the_majority() -> None:
    said = [say("p", "ann", "a"), say("p", "bob", "b"), say("p", "cy", "b")]
    rates = majority_agreement(said)
    assert (rates["ann"].rate, rates["ann"].n) == (0.0, 1)
    assert rates["bob"].n == 0  # the others, ann and cy, cancel out


def test_position_bias_and_reliability_are_recovered_from_simulated_people() -> None:
    people = [
        SimulatedAnnotator("sharp", temperature=0.5),
        SimulatedAnnotator("blunt", temperature=4.0, lapse_rate=0.2),
        SimulatedAnnotator("lefty", temperature=1.0, position_bias=1.5),
    ]
    pairs = [new_pair(f"p{i}", "x", "y", "", "", {}) for i in range(1500)]
    utilities = [(i % 7 - 3) / 2 for i in range(1500)]
    said = [p.judge(pair, u, 0) for pair, u in zip(pairs, utilities, strict=True) for p in people]
    bias = position_bias(said)
    assert bias["lefty"].low > 0.6
    assert bias["sharp"].low < 0.5 < bias["sharp"].high
    with_others = majority_agreement(said)
    assert with_others["sharp"].rate > with_others["blunt"].rate + 0.05


def test_self_consistency_compares_repeats_with_the_first_verdict() -> None:
    said = [say("p", "ann", "a"), say("p", "ann", "a", True), say("p", "ann", "b")]
    said += [say("p", "bob", "a")]
    rates = self_consistency(said)
    assert (rates["ann"].rate, rates["ann"].n) == (0.5, 2)
    assert "bob" not in rates
