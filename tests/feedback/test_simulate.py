import math

import pytest

from feedback.records import new_pair
from feedback.simulate import SimulatedAnnotator


def pairs(n: int, seed: int = 0):
    return [new_pair(f"p{i}", "x", "y", "", "", {}, seed) for i in range(n)]


def share_of_a(annotator: SimulatedAnnotator, difference: float, **how) -> float:
    labels = [annotator.judge(p, difference, 0.0, **how).label for p in pairs(4000)]
    return labels.count("a") / len(labels)


def test_the_same_question_gets_the_same_answer() -> None:
    ann = SimulatedAnnotator("ann", seed=3)
    first = [ann.judge(p, 0.2, 0).label for p in pairs(50)]
    assert [ann.judge(p, 0.2, 0).label for p in pairs(50)] == first
    assert [SimulatedAnnotator("bob", seed=3).judge(p, 0.2, 0).label for p in pairs(50)] != first
    assert [SimulatedAnnotator("ann", seed=4).judge(p, 0.2, 0).label for p in pairs(50)] != first
    assert [ann.judge(p, 0.2, 0, repeat=1).label for p in pairs(50)] != first


@pytest.mark.parametrize(("difference", "temperature"), [(1.0, 1.0), (1.0, 0.5), (-2.0, 1.0)])
def test_choices_follow_bradley_and_terry(difference: float, temperature: float) -> None:
    ann = SimulatedAnnotator("ann", temperature=temperature)
    expected = 1 / (1 + math.exp(-difference / temperature))
    assert ann.probability_first(difference) == pytest.approx(expected)
    assert share_of_a(ann, difference) == pytest.approx(expected, abs=0.025)


def test_position_bias_favours_whatever_is_shown_first() -> None:
    ann = SimulatedAnnotator("ann", position_bias=1.0)
    expected = ann.probability_first(0.0)
    assert expected == pytest.approx(0.731, abs=1e-3)
    assert share_of_a(ann, 0.0, swapped=False) == pytest.approx(expected, abs=0.025)
    assert share_of_a(ann, 0.0, swapped=True) == pytest.approx(1 - expected, abs=0.025)
    assert share_of_a(ann, 0.0) == pytest.approx(0.5, abs=0.025)  # a fair coin decides the order


def test_lapses_are_coins() -> None:
    ann = SimulatedAnnotator("ann", lapse_rate=0.5, temperature=0.01)
    assert ann.probability_first(1.0) == pytest.approx(0.75)
    assert share_of_a(ann, 1.0) == pytest.approx(0.75, abs=0.025)


def test_the_tie_band_gives_rao_and_kuppers_shares() -> None:
    ann = SimulatedAnnotator("ann", tie_band=0.5)
    labels = [ann.judge(p, 0.3, 0.0, swapped=False) for p in pairs(4000)]
    shares = [sum(item.label == label for item in labels) / 4000 for label in ("a", "tie")]
    expected_a = 1 / (1 + math.exp(-(0.3 - 0.5)))
    expected_tie = 1 / (1 + math.exp(-(0.3 + 0.5))) - expected_a
    assert shares == pytest.approx([expected_a, expected_tie], abs=0.025)
    assert all((item.strength == 0) == (item.label == "tie") for item in labels)


def test_strong_preferences_are_marked() -> None:
    ann = SimulatedAnnotator("ann")
    assert {ann.judge(p, 40, 0).strength for p in pairs(50)} == {2}
    weak = [ann.judge(p, 0, 0).strength for p in pairs(500)]
    assert weak.count(1) > 400


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"lapse_rate": 1.2}, {"tie_band": -1}])
def test_impossible_annotators_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SimulatedAnnotator("ann", **bad)
