"""What every loss does with its inputs: enough precision, and shapes that cannot broadcast.

A column (B, 1) beside a row (B,) would make (B, B) losses without a word, so shapes are compared.
Values are not: on a GPU that would stop the queue at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """Half precision and integers as float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def same_shape(name: str, values: Tensor, other: str, others: Tensor) -> None:
    """Refuse two tensors of different shapes.

    Raises:
        ValueError: names both and their shapes.
    """
    if values.shape != others.shape:
        raise ValueError(
            f"{name} has the shape {tuple(values.shape)}; expected {tuple(others.shape)}, "
            f"the shape of {other}"
        )


def real(mask: Tensor | None, values: Tensor, name: str = "values") -> Tensor:
    """The mask as bool, all True where there is none.

    Raises:
        ValueError: its shape is another than that of the values.
    """
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    same_shape("mask", mask, name, values)
    return mask.bool()


def masked_mean(values: Tensor, kept: Tensor) -> Tensor:
    """Mean over the last dimension of what is kept, 0 where nothing is: (B, S) to (B,).

    What is not kept has no influence, on gradients neither, even where it is NaN or infinite.
    """
    total = values.masked_fill(~kept, 0.0).sum(dim=-1)
    return total / kept.sum(dim=-1).clamp(min=1)
