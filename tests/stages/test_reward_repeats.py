"""What folds and members say together: figures with intervals that a share can have."""

from __future__ import annotations

import pytest

from align.stages.reward_repeats import in_words, summarise


def of(*accuracies: float) -> list[dict[str, float]]:
    return [{"accuracy": value, "log_loss": 0.1, "n": 10} for value in accuracies]


def test_an_accuracy_over_folds_stays_a_share():
    found = summarise(of(1.0, 14 / 15, 1.0, 1.0, 0.9, 1.0), 2)["accuracy"]
    assert found["low"] == pytest.approx(0.9257, abs=1e-4)
    assert found["high"] == 1.0
    assert summarise(of(0.0, 0.1))["accuracy"]["low"] == 0.0


def test_folds_that_agree_wholly_are_no_certainty():
    whole = summarise(of(1.0, 1.0, 1.0, 1.0), 2)  # 20 pairs, each judged twice
    assert whole["accuracy"]["low"] == pytest.approx(20 / (20 + 1.959964**2))
    assert whole["accuracy"]["high"] == 1.0
    assert (whole["log_loss"]["low"], whole["log_loss"]["high"]) == (None, None)
    lines = in_words({"folds": 2, "repeats": 2, "summary": whole})
    assert lines[1] == "accuracy 1.000 [0.839, 1.000]"
    assert lines[2] == "log loss 0.100 (no interval: all alike)"
