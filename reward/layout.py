"""A padded batch as a tree of its unique tokens, and the way back from them to its places.

Any padding side will do, and rows that hold several documents one after the other (packing). Only
ids and masks are looked at, so that one layout serves every model that reads the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.tree import LEAST, Tree, share

UNSHARED = 1 << 30  # as `least`: padding goes, and nothing is shared


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch lie in the flat row of its unique ones."""

    tree: Tree
    ids: Tensor  # (N,) int64, unique tokens
    places: Tensor  # (B, T) int64, of each token in `ids`; N where there is padding
    real: int  # tokens that are no padding

    @property
    def unique(self) -> int:
        """N."""
        return len(self.tree.ids)

    @property
    def padded(self) -> int:
        """B times T."""
        return self.places.numel()

    def spread(self, states: Tensor) -> Tensor:
        """States of the unique tokens, (N, H), at the batch's places, (B, T, H); 0 on padding."""
        filled = torch.cat([states, states.new_zeros(1, states.shape[1])])
        return filled.index_select(0, self.places.flatten()).view(*self.places.shape, -1)


def lay_out(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    firsts: Tensor | None = None,
    least: int = LEAST,
) -> Layout:
    """The layout of a padded batch.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T), 1 on real tokens, at any places; None: all of them are.
        firsts: (B, T) bool, True where a document begins within a row; None: a row is one.
        least: as of `reward.tree.share`.

    Raises:
        ValueError: the batch has no real token.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        real = attention_mask.bool()
    flat: list[int] = input_ids[real].tolist()
    lengths = [count for count in real.sum(dim=1).tolist() if count]
    if firsts is not None:
        lengths = _document_lengths(lengths, firsts[real].tolist())
    if not flat:
        raise ValueError("the batch has no real token: its attention mask is 0 everywhere.")
    rows, start = [], 0
    for length in lengths:
        rows.append(flat[start : start + length])
        start += length
    tree = share(rows, least)
    places = torch.full(input_ids.shape, len(tree.ids), dtype=torch.long)
    places[real.cpu()] = torch.tensor(tree.all_places())
    device = input_ids.device
    return Layout(tree, torch.tensor(tree.ids, device=device), places.to(device), len(flat))


def is_contiguous(attention_mask: Tensor) -> bool:
    """Whether the real tokens of every row lie side by side, as padding on one side leaves them."""
    edges = (
        attention_mask.bool()
        .int()
        .diff(dim=1, prepend=torch.zeros_like(attention_mask[:, :1]).int())
    )
    return bool(((edges == 1).sum(dim=1) <= 1).all())


def _document_lengths(lengths: Sequence[int], firsts: Sequence[bool]) -> list[int]:
    """Lengths of documents, from those of rows and where documents begin."""
    found, start = [], 0
    for length in lengths:
        begins = [at for at in range(length) if at == 0 or firsts[start + at]]
        found += [b - a for a, b in zip(begins, [*begins[1:], length], strict=True)]
        start += length
    return found
