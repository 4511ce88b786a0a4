"""Doubts on margins made by hand, and the whole module on tiny models."""

import json

import numpy as np
import pytest

from benchmarks import doubt
from benchmarks.overoptimisation import TINY, prepare


def test_doubts_find_the_errors_that_they_should():
    right = np.array([True] * 8)
    each = np.array([[2.0] * 6 + [-0.1, -0.2], [2.0] * 6 + [0.05, 0.1]])  # they split on two pairs
    found = doubt.errors(each, right)
    assert found["accuracy"] == 0.75
    assert found["pairs"] == 8
    for name in ("votes", "spread", "spread over margin", "small margin"):
        assert found[f"auroc of {name}"] == 1.0


def test_a_spread_that_grows_with_the_margin_misleads():
    """Members of unequal scale spread most where all agree: the spread alone then says nothing."""
    each = np.array([[4.0, 5.0, 6.0, -0.2, -0.1], [1.0, 1.5, 2.0, 0.1, 0.05]])
    found = doubt.errors(each, np.array([True] * 5))
    assert found["auroc of spread"] == 0.0
    assert found["auroc of spread over margin"] == 1.0


def test_the_module_on_tiny_models(tmp_path, monkeypatch):
    monkeypatch.setattr(doubt, "Scale", lambda: TINY)
    prepare(tmp_path / "seed-0", 0, TINY)
    options = ["--folder", str(tmp_path), "--json", str(tmp_path / "out.json")]
    doubt.main([*options, "--seeds", "0,0", "--questions", "40"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["seeds"][0] == found["seeds"][1]  # nothing is drawn that no seed decides
    one = found["seeds"][0]
    assert 0 <= one["auroc of votes"] <= 1
    assert one["judgements"] > 40
    assert found["summary"]["ece_before"]["value"] == pytest.approx(one["ece_before"])
