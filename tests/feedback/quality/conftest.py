"""Votes with a known truth, and the real ones of three annotators."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def synthetic_votes(seed: int, items: int = 60, missing: float = 0.2) -> list[tuple[str, str, str]]:
    """Five annotators of falling accuracy on three labels, some votes missing."""
    rng = np.random.default_rng(seed)
    labels = ["a", "b", "tie"]
    votes = []
    for i in range(items):
        truth = int(rng.integers(3))
        for k, accuracy in enumerate([0.95, 0.85, 0.75, 0.6, 0.4]):
            keep, hit, other = rng.random(), rng.random(), int(rng.integers(1, 3))
            if keep >= missing:
                said = truth if hit < accuracy else (truth + other) % 3
                votes.append((f"item{i}", f"ann{k}", labels[said]))
    return votes


@pytest.fixture(scope="session")
def pandalm_votes() -> list[tuple[str, str, str]]:
    path = SHARED / "pandalm_votes.jsonl.gz"
    if not path.is_file():
        pytest.skip("shared/data/pandalm_votes.jsonl.gz is not beside the project")
    names = {0: "tie", 1: "a", 2: "b"}
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [
        (str(row["idx"]), f"annotator{k}", names[row[f"annotator{k}"]])
        for row in rows
        for k in (1, 2, 3)
    ]


@pytest.fixture(scope="session")
def make_votes():
    return synthetic_votes
