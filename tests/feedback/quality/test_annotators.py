"""Annotators' records: counted by hand, and flags raised for the right people only."""

import math

import pytest

from feedback.agreement import wilson
from feedback.quality.annotators import Limits, annotator_quality
from feedback.records import new_pair
from feedback.schema import Comparison, pair_id
from feedback.simulate import SimulatedAnnotator


def say(prompt, label, annotator="ann", a="long answer", b="short", **kw) -> Comparison:
    return Comparison(prompt, a, b, label, annotator, **kw)


def only(said, gold=None, limits=None):
    (record,) = annotator_quality(said, gold, limits=limits)
    return record


def test_counts_by_hand() -> None:
    said = [
        say("p", "a", lead_time=10.0),
        say("p", "a", swapped=True),  # the same verdict, shown the other way round
        say("p", "b"),  # another verdict, shown the same way
        say("q", "tie", lead_time=40.0),
        say("r", "b", a="same size", b="size same"),  # equal lengths: no trial
    ]
    record = only(said)
    assert (record.annotator, record.n, record.pairs) == ("ann", 5, 3)
    assert record.ties == wilson(1, 5)
    assert record.first == wilson(1, 4)  # a, then a as the second shown, then b twice
    assert record.longer == wilson(2, 3)
    assert record.swapped == wilson(1, 1)
    assert record.repeated == wilson(0, 1)
    assert record.lead_time == pytest.approx(20.0)  # the median of logs is the geometric middle
    assert record.fast == wilson(0, 2)
    assert (record.agreement, record.gold) == (None, None)


def test_a_pair_stored_turned_round_is_the_same_showing() -> None:
    """y|x swapped shows x first, as x|y does: it is a repeat and no swap."""
    said = [
        say("p", "a", a="x1", b="y22"),
        say("p", "b", a="y22", b="x1", swapped=True),
        say("p", "a", a="y22", b="x1"),
    ]
    record = only(said)
    assert (record.repeated, record.swapped) == (wilson(1, 1), wilson(0, 1))
    assert record.longer == wilson(1, 3)


def test_gold_counts_ties_as_wrong_unless_gold_is_a_tie() -> None:
    names = {p: pair_id(p, "long answer", "short") for p in "pqrs"}
    gold = {names["p"]: "a", names["q"]: "b", names["r"]: "tie", "unknown": "a"}
    said = [say("p", "a"), say("q", "tie"), say("r", "tie"), say("s", "b")]
    assert only(said, gold).gold == wilson(2, 3)


def test_nothing_is_nan_and_empty_is_empty() -> None:
    assert annotator_quality([]) == []
    for record in annotator_quality([say("p", "tie"), say("q", "a", "bob", lead_time=0.0)]):
        rates = [v for v in vars(record).values() if hasattr(v, "low")]
        assert rates
        assert all(math.isfinite(x) for r in rates for x in (r.rate, r.low, r.high))
        assert record.flags == ()


def many(name, labels, **kw) -> list[Comparison]:
    return [say(f"p{i}", label, name, **kw) for i, label in enumerate(labels)]


def test_simulated_faults_are_flagged_and_the_honest_are_not() -> None:
    people = [
        SimulatedAnnotator("honest1", temperature=0.3, seed=1),
        SimulatedAnnotator("honest2", temperature=0.3, seed=2),
        SimulatedAnnotator("lefty", temperature=0.3, position_bias=6.0, seed=3),
        SimulatedAnnotator("coin", lapse_rate=1.0, seed=4),
        SimulatedAnnotator("unsure", temperature=0.3, tie_band=6.0, seed=5),
    ]
    said, gold = [], {}
    for i in range(300):
        pair = new_pair(f"p{i}", "aaaa" if i % 2 else "aa", "bbb", "", "", {}, seed=3)
        utility = 1.5 if i % 3 else -1.5
        said += [p.judge(pair, utility, 0.0) for p in people]
        said += [p.judge(pair, utility, 0.0, swapped=not pair.swapped) for p in people if i < 60]
        said += [p.judge(pair, utility, 0.0, repeat=1) for p in people if i < 60]
        if i < 80:
            gold[pair.id] = "a" if utility > 0 else "b"
    flags = {record.annotator: " / ".join(record.flags) for record in annotator_quality(said, gold)}
    assert flags["honest1"] == flags["honest2"] == ""
    assert "chooses what is shown first" in flags["lefty"]
    assert "when the answers change places" in flags["lefty"]
    for reason in ("wrong on gold", "disagrees with the others", "changes verdicts"):
        assert reason in flags["coin"]
    assert "shown" not in flags["coin"]
    assert "says tie often" in flags["unsure"]


def test_length_bias_is_measured_against_the_others() -> None:
    balanced = many("ann", "ab" * 50) + many("bob", "ba" * 50)
    lover = many("lover", "a" * 100)
    flags = {r.annotator: r.flags for r in annotator_quality(balanced + lover)}
    assert any("prefers longer answers" in flag for flag in flags["lover"])
    # Where everybody prefers the longer answer, none stands out.
    alike = many("ann", "a" * 100) + many("bob", "a" * 100)
    assert not any("answers" in f for r in annotator_quality(alike) for f in r.flags)


def test_a_few_judgements_raise_no_flag() -> None:
    assert only(many("ann", "aaaa")).flags == ()


def test_the_one_who_shows_second_is_named() -> None:
    record = only(many("ann", "b" * 60))
    assert any("shown second" in flag for flag in record.flags)


def test_too_fast_is_judged_against_everybodys_pace() -> None:
    steady = [say(f"p{i}", "a", "ann", lead_time=20.0 + i % 7) for i in range(100)]
    hasty = [say(f"p{i}", "a", "bot", lead_time=0.5 if i % 2 else 21.0) for i in range(60)]
    by_name = {r.annotator: r for r in annotator_quality(steady + hasty)}
    assert by_name["ann"].fast == wilson(0, 100)
    assert by_name["bot"].fast == wilson(30, 60)
    assert any("too fast" in flag for flag in by_name["bot"].flags)
    assert not any("too fast" in flag for flag in by_name["ann"].flags)


def test_identical_lead_times_make_no_outliers() -> None:
    said = [say(f"p{i}", "a", lead_time=10.0 if i else 8.0) for i in range(50)]
    assert only(said).fast == wilson(0, 50)


def test_limits_can_be_moved() -> None:
    said = many("ann", "a" * 45 + "b" * 15)
    assert only(said).flags
    assert only(said, limits=Limits(position=0.9)).flags == ()
