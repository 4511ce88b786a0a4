"""What a stage's guards are made of: stored rows that do not fit leave the others' ages alone."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from align.config.guards import ReplaySection
from align.stages.guards import Builder

KNOWN = ["old", "new", "newer"]


class Stored(Builder):
    """With rows of two tasks at hand."""

    def stored_rows(self, section):
        return ["old", "too long", "new", "newer"], [1, 1, 0, 0]


def test_rows_that_do_not_fit_leave_the_others_their_ages():
    def encode(rows):
        for row in rows:
            if row != "too long":
                yield {"input_ids": torch.tensor([[KNOWN.index(row)]])}

    source = SimpleNamespace(encode=encode, loss=None, collate=None, size=None, step_rows=4)
    section = ReplaySection(type="replay", strength=1.0, data="x", age_decay=0.25)
    guard = Stored(None, source, "model", None, 0)._replay(section)
    drawn = [KNOWN[int(e["input_ids"])] for _ in range(400) for e in guard.stored.draw(1)]
    shares = {row: drawn.count(row) / len(drawn) for row in KNOWN}
    assert abs(shares["old"] - 0.25 / 2.25) < 0.04
    assert abs(shares["new"] - 1 / 2.25) < 0.06
    assert sum(shares.values()) == 1
