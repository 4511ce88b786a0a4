"""How much completions repeat themselves, on token ids: a sign that a reward is being gamed."""

from __future__ import annotations

from torch import Tensor


def repetition(ids: Tensor, mask: Tensor, n: int = 4) -> Tensor:
    """Share of each completion's n-grams that occurred in it before: 1 - distinct / all.

    After the diversity measures of Li et al. (2016), NAACL, "A Diversity-Promoting Objective
    Function": distinct-n is the other share. 0 where there is no n-gram.

    Args:
        ids: (B, A) int64 token ids.
        mask: (B, A), 1 on the tokens that count; an n-gram across a gap is none.
        n: tokens in an n-gram.

    Returns:
        (B,) float32 on the device of `ids`, each in [0, 1).

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"an n-gram has at least one token; got n={n}.")
    rows, width = ids.shape
    count = width - n + 1
    if rows == 0 or count < 1:
        return ids.new_zeros(rows).float()
    names = ids[:, :count]
    for offset in range(1, n):  # names are made small again, so that no product overflows
        following = ids[:, offset : offset + count]
        names = (names * (int(ids.max()) + 1) + following).unique(return_inverse=True)[1]
    whole = mask.bool().unfold(1, n, 1).all(dim=2)  # (B, count)
    ordered = names.masked_fill(~whole, -1).sort(dim=1).values
    new = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    distinct = new.sum(dim=1) + (ordered[:, 0] >= 0)
    total = whole.sum(dim=1)
    return (total - distinct) / total.clamp(min=1)
