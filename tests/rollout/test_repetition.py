"""Repeated n-grams, against counting by hand and by sets."""

from __future__ import annotations

import pytest
import torch

from align.rollout.repetition import repetition


def counted(row, mask, n):
    grams = [tuple(row[at : at + n]) for at in range(len(row) - n + 1) if all(mask[at : at + n])]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@pytest.mark.parametrize(
    ("row", "n", "share"),
    [
        ([1, 2, 3, 4, 5], 2, 0.0),
        ([7, 7, 7, 7, 7], 1, 0.8),
        ([1, 2, 1, 2, 1], 2, 0.5),  # 12 21 12 21
        ([1, 2, 3, 1, 2], 3, 0.0),
        ([1, 2], 4, 0.0),  # no n-gram
    ],
)
def test_by_hand(row, n, share):
    ids = torch.tensor([row])
    assert repetition(ids, torch.ones_like(ids), n).item() == pytest.approx(share)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_against_sets_with_padding_and_gaps(n):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (40, 24), generator=generator)
    mask = torch.ones(40, 24)
    for row in range(40):
        mask[row, 24 - row % 20 :] = 0  # padding
        mask[row, row % 24] = 0  # an environment's token in between
    mask[0] = 0
    expected = [counted(r, m, n) for r, m in zip(ids.tolist(), mask.tolist(), strict=True)]
    assert repetition(ids, mask, n).tolist() == pytest.approx(expected)


def test_large_token_ids_do_not_collide():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 2**31, (64, 128), generator=generator)
    ids[5, 64:] = ids[5, :64]
    found = repetition(ids, torch.ones(64, 128), 8)
    assert found[5].item() == pytest.approx(57 / 121)
    assert found.sum() == found[5]


def test_padding_does_not_matter():
    ids = torch.tensor([[4, 4, 4, 4, 9, 9, 9]])
    short = repetition(ids[:, :4], torch.ones(1, 4), 2)
    assert repetition(ids, torch.tensor([[1, 1, 1, 1, 0, 0, 0]]), 2) == short


def test_nothing_to_count():
    assert repetition(torch.zeros(0, 5, dtype=torch.long), torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(ValueError, match="n=0"):
        repetition(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5), 0)
