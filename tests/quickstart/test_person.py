"""What a person is asked in the quickstart, and when the labels suffice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align import quickstart
from align.quickstart.person import (
    EVERY,
    HOLDOUT,
    LEAST_DECIDED,
    LEAST_LABELS,
    asking_order,
    held_out,
    lacking,
)
from feedback.records import new_item
from feedback.schema import Comparison

ITEMS = [new_item("pair", f"question number {n}", ("x", "y")) for n in range(400)]


def said(side: bool, label: str, count: int) -> list[Comparison]:
    """So many labels of held-out questions, or of others."""
    prompts = [item.prompt for item in ITEMS if held_out(item.prompt) is side][:count]
    assert len(prompts) == count
    return [Comparison(prompt, "x", "y", label, "me") for prompt in prompts]


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_the_first_questions_hold_held_out_ones_whatever_was_issued_first(start: int):
    order = asking_order(ITEMS[start:])
    assert sorted(item.id for item in order) == sorted(item.id for item in ITEMS[start:])
    sides = [held_out(item.prompt) for item in order]
    assert sides[:LEAST_LABELS] == ([False] * (EVERY - 1) + [True]) * LEAST_DECIDED
    unlucky = [item for item in ITEMS if not held_out(item.prompt)]
    assert asking_order(unlucky) == unlucky  # none to be had


def test_the_run_waits_for_labels_that_decide_on_both_sides():
    train, kept = said(False, "a", 8), said(True, "b", 2)
    assert lacking([*train, *kept], 10) == ""
    assert lacking([*train, *kept], 11) == "1 more labels"
    assert lacking([*train, *kept[:1], *said(True, "tie", 2)], 10).startswith("1 more labels of he")
    ties = said(False, "tie", 8)
    assert lacking([*ties, *kept], 10) == "2 more labels of questions to train on that are not ties"


def test_the_stages_hold_out_the_same_share():
    configs = Path(quickstart.__file__).parent / "configs"
    found = {
        float(value)
        for name in ("reward", "dpo")
        for value in re.findall(
            r"validation_fraction: ([0-9.]+)", (configs / f"{name}.yaml").read_text()
        )
    }
    assert found == {HOLDOUT}
