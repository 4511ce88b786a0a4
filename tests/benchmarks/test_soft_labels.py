"""The parts of the soft-label benchmark that decide its figures; training is the stages' own."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

from align.data.rows import prompt_key
from feedback.schema import Comparison

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "soft_labels.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("soft_labels_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def votes(labels: str, prompt: str = "p") -> list[Comparison]:
    words: dict[str, Any] = {"a": "a", "b": "b", "t": "tie"}
    return [Comparison(prompt, "xx", "y", words[c], f"ann{i}") for i, c in enumerate(labels)]


class Scorer:
    """Scores an answer by its length times a scale."""

    def __init__(self, scale: float):
        self.scale = scale

    def score(self, prompts: list[str], completions: list[str]) -> list[float]:
        return [self.scale * len(text) for text in completions]


def test_a_prompt_is_on_one_side_and_the_seed_decides(bench):
    said = [vote for i in range(200) for vote in votes("aab", f"question {i // 2}")]
    sides = {}
    for seed in (0, 1):
        known, held_out = bench.split(said, seed)
        assert len(known) + len(held_out) == len(said)
        assert 0.1 < len(held_out) / len(said) < 0.3
        keys = [{prompt_key(vote.prompt) for vote in part} for part in (known, held_out)]
        assert not keys[0] & keys[1]
        sides[seed] = keys[1]
    assert sides[0] != sides[1]


def test_votes_are_measured_one_by_one_and_ties_count_half(bench):
    found = bench.measure(Scorer(math.log(3)), votes("aabt"))  # d = log 3, sigmoid(d) = 3/4
    a, b = -math.log(3 / 4), -math.log(1 / 4)
    assert found["log_loss"] == pytest.approx((2 * a + b + (a + b) / 2) / 4, abs=1e-6)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_the_floor_is_the_entropy_of_the_votes(bench):
    assert bench.floor(votes("aaa")) == 0.0
    assert bench.floor(votes("ab") + votes("aa", "q")) == pytest.approx(math.log(2) / 2)
    margin = math.log(2)  # sigmoid(log 2) = 2/3: who knows the share pays the floor
    paid = bench.measure(Scorer(margin), votes("aab"))["log_loss"]
    assert paid == pytest.approx(bench.floor(votes("aab")), abs=1e-6)


def test_differences_are_paired_by_seed(bench):
    seeds = [
        {name: {"log_loss": base + gain, "accuracy": 0.5} for name, gain in gains.items()}
        for base, gains in (
            (0.7, {"majority": 0.0, "votes": -0.01, "dawid-skene": 0.02}),
            (0.9, {"majority": 0.0, "votes": -0.01, "dawid-skene": 0.00}),
        )
    ]
    table = bench.summarise(seeds)
    gap = table["log_loss minus majority"]["votes"]
    assert (gap["value"], gap["low"], gap["high"]) == pytest.approx((-0.01,) * 3)
    assert table["log_loss minus majority"]["dawid-skene"]["value"] == pytest.approx(0.01)
    assert table["log_loss"]["votes"]["high"] > 1.0  # two seeds far apart
