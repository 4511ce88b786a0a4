"""Ties in rankings: what is compared, and what is not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from reward.ranking_losses import better_worse, ranking_pairs_loss


@pytest.mark.parametrize("weighting", ["answer", "ranking"])
def test_the_sum_over_pairs_written_out(weighting):
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, 0.0, 9.0]], dtype=torch.float64)
    ranks = torch.tensor([[1, 1, 2, 2], [2, 1, 3, 0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    found = ranking_pairs_loss(scores, ranks, mask, weighting)
    for row in range(2):
        terms = [
            math.log1p(math.exp(-(float(scores[row, i]) - float(scores[row, j]))))
            for i, j in itertools.product(range(4), repeat=2)
            if mask[row, i] and mask[row, j] and ranks[row, i] < ranks[row, j]
        ]
        answers = int(mask[row].sum())
        expected = sum(terms) / (answers - 1 if weighting == "answer" else len(terms))
        assert float(found[row]) == pytest.approx(expected, rel=1e-12)


def test_padding_has_no_gradient_and_all_ties_no_loss():
    scores = torch.tensor([[0.0, 1.0, math.inf], [1.0, 2.0, 3.0]], requires_grad=True)
    ranks = torch.tensor([[1, 2, 0], [1, 1, 1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    losses = ranking_pairs_loss(scores, ranks, mask)
    losses.sum().backward()
    assert losses[1] == 0
    assert scores.grad is not None
    assert scores.grad[0, 2] == 0
    assert torch.isfinite(scores.grad).all()
    assert better_worse(ranks, mask).sum() == 1
